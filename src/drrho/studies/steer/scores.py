"""Scores of the models of `drrho steer` on the held-out pairs, kept with what they were made of."""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from drrho.data.manifest import Manifest
from drrho.evaluation.evaluate import EvaluateConfig, evaluate_sets
from drrho.runtime.files import parse_json, read_regular, write_json

MAX_RANKS = 2**28  # bytes of a file of reciprocal ranks


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of a model on the held-out pairs.

    Attributes:
        metrics: as `drrho evaluate` has them.
        ranks: reciprocal rank of each held-out image, their mean over both directions.
    """

    metrics: dict[str, float]
    ranks: Float64[Tensor, " images"]

    @property
    def first(self) -> float:
        """Share of the images whose own text is first."""
        return self.metrics["image_to_text/R@1"]


def score(config: EvaluateConfig, ranks: Path, *, made_of: str) -> Scores:
    """Evaluate a model on the one set that is named, or read what was found before.

    Metrics go to `config.output`, as by `drrho evaluate`, and reciprocal ranks to `ranks`.

    Args:
        made_of: text that is another one for another model; the data are compared besides.

    Raises:
        ValueError: the set has no captions; or as `evaluate_sets`.
    """
    (data,) = config.data
    assert config.output is not None
    contents = f"{Manifest.load(data).contents_sha256} {made_of}"
    key = hashlib.sha256(contents.encode()).hexdigest()
    if (kept := _read(ranks, Path(config.output), key)) is not None:
        return kept
    ((name, found),) = evaluate_sets(config).items()
    if len(found.reciprocal_ranks) == 0:
        raise ValueError(f"{data} has no captions, by which models are compared here")
    write_json(Path(config.output), {name: found.metrics})
    values = found.reciprocal_ranks.double()
    write_json(ranks, {"of": key, "reciprocal_ranks": values.tolist()})
    return Scores(metrics=found.metrics, ranks=values)


def _read(ranks: Path, metrics: Path, key: str) -> Scores | None:
    """Read the scores that were kept; None if there are none of this model and data."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        kept = parse_json(read_regular(ranks, most=MAX_RANKS))
        (found,) = json.loads(read_regular(metrics, most=MAX_RANKS)).values()
        if kept["of"] == key:
            values = torch.tensor(kept["reciprocal_ranks"], dtype=torch.float64)
            return Scores(metrics=found, ranks=values)
    return None
