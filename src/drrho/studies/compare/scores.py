"""The scores of a finished run on test sets, kept in its folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from drrho.data.examples import evaluation_batches
from drrho.evaluation.evaluate import evaluate_model
from drrho.evaluation.sets import EvaluationSet, open_evaluation_set
from drrho.models.build import Model, build_model
from drrho.models.flops import forward_flops
from drrho.models.two_tower import TwoTower
from drrho.runtime.files import write_atomically, write_json
from drrho.runtime.launch import Device, resolve_device
from drrho.runtime.records import from_json, read_json_object, to_json
from drrho.studies.compare.results import Gflop, Metrics

SCORES_FILE = "scores.json"
RANKS_FILE = "scores.safetensors"
COUNTED_SAMPLES = 32  # whose forward pass is counted


@dataclass(frozen=True, kw_only=True)
class ScoresFile:
    """Contents of `scores.json`: hashes of the sets' contents, and scores as in `Scores`."""

    contents: Mapping[str, str]
    metrics: Mapping[str, Metrics]
    gflop: Gflop | None
    chance: Mapping[str, Metrics] = field(default_factory=dict)


class Scores(NamedTuple):
    """Scores of a model on test sets.

    Attributes:
        metrics: set -> metric -> value.
        gflop: forward GFLOP of a sample; None without captions.
        reciprocal_ranks: set with captions -> one value per image, whose mean is `mrr`.
        chance: set -> metric -> what guessing reaches; empty in files of earlier versions.
    """

    metrics: Mapping[str, Metrics]
    gflop: Gflop | None
    reciprocal_ranks: Mapping[str, Float[Tensor, " images"]]
    chance: Mapping[str, Metrics]


Tests = Mapping[str, EvaluationSet]


def open_tests(sources: Mapping[str, str]) -> Tests:
    """Opens evaluation sets by name; FileNotFoundError or ValueError where one is not there."""
    return {name: open_evaluation_set(source) for name, source in sources.items()}


def score(model: Model, folder: Path, tests: Tests, *, batch_size: int, device: Device) -> None:
    """Evaluates a model on all test sets and writes the scores to the folder, if they are not
    there yet.
    """
    if read_scores(folder, tests) is not None:
        return
    two_tower = build_model(model, seed=0)
    place = resolve_device(device)
    two_tower.module.to(place).eval()
    metrics, chance, ranks = {}, {}, {}
    for name, test in tests.items():
        evaluation = evaluate_model(two_tower, test, device=place, batch_size=batch_size)
        metrics[name], chance[name] = evaluation.metrics, evaluation.chance
        if len(evaluation.reciprocal_ranks):
            ranks[name] = evaluation.reciprocal_ranks.cpu().contiguous()
    found = ScoresFile(
        contents=_contents(tests),
        metrics=metrics,
        gflop=_gflop(two_tower, tests),
        chance=chance,
    )
    write_atomically(folder / RANKS_FILE, save(ranks))
    write_json(folder / SCORES_FILE, to_json(found))  # last: it says that both are there


def read_scores(folder: Path, tests: Tests) -> Scores | None:
    """Reads the scores of a folder; None if there are none, or if they are of other test sets.

    Raises:
        ValueError: a file is damaged.
    """
    path = folder / SCORES_FILE
    if not path.is_file():
        return None
    found = from_json(ScoresFile, read_json_object(path), where=str(path))
    if found.contents != _contents(tests):
        return None
    try:
        ranks = load_file(folder / RANKS_FILE)
        if not set(ranks) <= set(found.metrics) == set(tests):
            raise ValueError(f"they are of {sorted(ranks)}, and the metrics of other test sets")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"the scores in {folder} are damaged ({error}); remove {SCORES_FILE} there, and they "
            "are computed again"
        ) from error
    return Scores(found.metrics, found.gflop, ranks, found.chance)


def _gflop(model: TwoTower, tests: Tests) -> Gflop | None:
    """Counts the first samples of the first set that has captions."""
    for test in tests.values():
        if test.with_captions:
            batches = evaluation_batches(
                test.manifest,
                model.eval_transform,
                batch_size=COUNTED_SAMPLES,
                parts=("caption",),
            )
            batch = next(iter(batches))
            flops = forward_flops(model, batch.images, batch.first_captions)
            return Gflop(image=flops.image / 1e9, text=flops.text / 1e9)
    return None


def _contents(tests: Tests) -> dict[str, str]:
    return {name: test.manifest.contents_sha256 for name, test in tests.items()}
