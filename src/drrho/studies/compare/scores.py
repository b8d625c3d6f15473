"""The scores of a finished run on test sets, kept in its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from drrho.data.loading import evaluation_batches
from drrho.evaluation.evaluate import evaluate_model
from drrho.evaluation.sets import EvaluationSet, open_evaluation_set
from drrho.models.build import Model, build_model
from drrho.models.flops import forward_flops
from drrho.models.two_tower import TwoTower
from drrho.runtime.files import write_atomically, write_json
from drrho.runtime.launch import Device, resolve_device
from drrho.runtime.records import from_json, read_json_object, to_json
from drrho.studies.compare.results import Gflop

SCORES_FILE = "scores.json"
RANKS_FILE = "scores.safetensors"
COUNTED_SAMPLES = 32  # whose forward pass is counted


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a model on test sets.

    Attributes:
        metrics: set -> metric -> value.
        reciprocal_ranks: set with captions -> one value per image, whose mean is `mrr`.
        gflop: forward GFLOP of a sample; None without captions.
    """

    metrics: Mapping[str, Mapping[str, float]]
    reciprocal_ranks: Mapping[str, Float[Tensor, " images"]]
    gflop: Gflop | None


class TestSets:
    """Evaluation sets by name, opened when first read."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = sources
        self._opened: dict[str, EvaluationSet] = {}

    def open(self, name: str) -> EvaluationSet:
        if name not in self._opened:
            self._opened[name] = open_evaluation_set(self.sources[name])
        return self._opened[name]

    def contents(self) -> dict[str, str]:
        """Hashes of the contents of the sets, by name."""
        return {name: self.open(name).manifest.contents_sha256 for name in self.sources}


def score(model: Model, folder: Path, tests: TestSets, *, batch_size: int, device: Device) -> None:
    """Evaluates a model on all test sets and writes the scores to the folder, if they are not
    there yet.
    """
    if read_scores(folder, tests) is not None:
        return
    two_tower = build_model(model, seed=0)
    place = resolve_device(device)
    two_tower.module.to(place).eval()
    metrics, ranks = {}, {}
    for name in tests.sources:
        evaluation = evaluate_model(
            two_tower, tests.open(name), device=place, batch_size=batch_size
        )
        metrics[name] = evaluation.metrics
        if len(evaluation.reciprocal_ranks):
            ranks[name] = evaluation.reciprocal_ranks.cpu().contiguous()
    gflop = to_json(_gflop(two_tower, tests))
    content = {"contents": tests.contents(), "metrics": metrics, "gflop": gflop}
    write_atomically(folder / RANKS_FILE, save(ranks))
    write_json(folder / SCORES_FILE, content)  # last: it says that both are there


def read_scores(folder: Path, tests: TestSets) -> Scores | None:
    """Reads the scores of a folder; None if there are none, or if they are of other test sets."""
    path = folder / SCORES_FILE
    if not path.is_file():
        return None
    content = read_json_object(path)
    if content["contents"] != tests.contents():
        return None
    return Scores(
        metrics=content["metrics"],
        reciprocal_ranks=load_file(folder / RANKS_FILE),
        gflop=from_json(Gflop | None, content["gflop"], where=str(path)),
    )


def _gflop(model: TwoTower, tests: TestSets) -> Gflop | None:
    """Counts the first samples of the first set that has captions."""
    for name in tests.sources:
        if tests.open(name).with_captions:
            batches = evaluation_batches(
                tests.open(name).manifest,
                model.eval_transform,
                batch_size=COUNTED_SAMPLES,
                parts=("caption",),
            )
            batch = next(iter(batches))
            flops = forward_flops(model, batch.images, batch.first_captions)
            return Gflop(image=flops.image / 1e9, text=flops.text / 1e9)
    return None
