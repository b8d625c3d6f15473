"""An encoder and its metrics of every kind of set, by one process or several."""

from functools import partial
from pathlib import Path

from drrho.encoding.encoder import EmbeddingModel
from drrho.encoding.shared import Encoder
from drrho.evaluation.evaluate import evaluate_encoder
from drrho.evaluation.sets import open_evaluation_set
from drrho.evaluation.tasks.scores import open_task_set, score_task
from drrho.evaluation.tasks.task import ListedTask
from drrho.models.build import Model, build_model
from drrho.models.small import SmallConfig
from drrho.runtime.launch import Launch, joined

SMALL = SmallConfig(embed_dim=8, image_width=2, text_width=8, text_layers=1, text_heads=1)
TASK = ListedTask(key="letters", name="letters", group_by={"region": 0})
OTHER_KINDS = (
    ListedTask(key="faces", name="faces", kind="faces", main_metric="acc_race_avg"),
    ListedTask(key="cues", name="cues", kind="associations", main_metric="avg_jaccard_score"),
    ListedTask(key="short", name="short", kind="faces", main_metric=None),
)


def encoder(processes):
    model = build_model(Model(name="small", small=SMALL), seed=0)
    model.module.eval()
    return Encoder(model=EmbeddingModel(model, device="cpu"), batch_size=5, processes=processes)


def answers(processes, folder):
    """Metrics of every set in a folder, or the error."""
    found = {}
    own = encoder(processes)
    for name in ("scenes", "one"):
        opened = open_evaluation_set(folder / name)
        evaluation = evaluate_encoder(own, opened)
        found[name] = evaluation.metrics | {"each": evaluation.reciprocal_ranks.tolist()}
    for name in ("letters", "wrong"):
        try:
            found[name] = score_task(own, open_evaluation_set(folder / name), TASK)
        except ValueError as error:
            found[name] = str(error)
    for task in OTHER_KINDS:
        opened = processes.on_first(partial(open_task_set, task, folder / task.key))
        try:
            found[task.key] = score_task(own, opened, task)
        except ValueError as error:
            found[task.key] = str(error)
    return found


def answers_of(rank, port, folder):
    launch = Launch(rank=rank, size=2, local_rank=rank, meeting=f"tcp://127.0.0.1:{port}")
    with joined(launch, device_type="cpu") as (processes, _):
        return answers(processes, Path(folder))
