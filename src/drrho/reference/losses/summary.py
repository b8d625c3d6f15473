"""Summary of a folder of losses: counts, mean, spread, and correlations of references."""

import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from drrho.reference.losses.store import (
    FILE_NAME,
    LOSS_CARDS,
    REMEDY,
    LossCard,
    LossUnit,
    ShardLosses,
    load_losses_so_far,
    references_in,
)

Contents = tuple[int, str, str]  # `Shard.contents`


@dataclass(frozen=True, kw_only=True)
class LossSummary:
    """The losses of one reference.

    Attributes:
        num_samples: samples of its shards.
        num_missing: samples without a loss.
        num_losses: stored losses, of samples or of tokens.
        num_nonfinite: stored losses that are infinite or NaN.
        mean, standard_deviation: over the finite losses; NaN if there is none.
    """

    reference: str
    identity: str
    unit: LossUnit
    num_samples: int
    num_missing: int
    num_losses: int
    num_nonfinite: int
    mean: float
    standard_deviation: float


@dataclass(frozen=True, kw_only=True)
class LossCorrelation:
    """Correlation of the losses of two references.

    Attributes:
        num_samples: samples for which both have a finite loss.
        correlation: Pearson's, over these samples, of the mean over a sample's tokens where each
            has a loss; NaN if it is not defined.
    """

    references: tuple[str, str]
    num_samples: int
    correlation: float


def summarise_losses(folder: str | Path) -> tuple[list[LossSummary], list[LossCorrelation]]:
    """Summarise each reference's losses in a folder, and correlate each pair of references."""
    names = references_in(folder)
    if not names:
        raise FileNotFoundError(f"{folder} holds no losses, no NAME/{FILE_NAME}; {REMEDY}")
    summaries, samples = [], {}
    for name in names:
        card, shards = _read(folder, name)
        summaries.append(_summarise(name, card, list(shards.values())))
        samples[name] = {contents: _sample_losses(shard) for contents, shard in shards.items()}
    return summaries, [_correlate(pair, samples) for pair in combinations(names, 2)]


def sample_losses(folder: str | Path, reference: str) -> dict[Contents, Float64[Tensor, " rows"]]:
    """Load the losses of one reference by contents of the shard, averaged over a sample's tokens.

    They are not finite where there are none.
    """
    _, shards = _read(folder, reference)
    return {contents: _sample_losses(shard) for contents, shard in shards.items()}


def _read(folder: str | Path, reference: str) -> tuple[LossCard, dict[Contents, ShardLosses]]:
    card = LOSS_CARDS.load(Path(folder) / reference)
    files = LOSS_CARDS.files(card, Path(folder) / reference)
    shards = {
        entry.contents: load_losses_so_far(files, entry, unit=card.unit) for entry in card.shards
    }
    return card, shards


def _summarise(name: str, card: LossCard, shards: list[ShardLosses]) -> LossSummary:
    num_samples = sum(len(shard.written) for shard in shards)
    num_stored = sum(int(shard.written.sum()) for shard in shards)
    num_losses = sum(len(_stored(shard)) for shard in shards)
    finite = [stored[stored.isfinite()].double() for stored in map(_stored, shards)]
    num_finite = sum(map(len, finite))
    mean = deviation = math.nan
    if num_finite > 0:
        mean = sum(float(losses.sum()) for losses in finite) / num_finite
        square = sum(float((losses - mean).square().sum()) for losses in finite) / num_finite
        deviation = math.sqrt(square)
    return LossSummary(
        reference=name,
        identity=card.identity,
        unit=card.unit,
        num_samples=num_samples,
        num_missing=num_samples - num_stored,
        num_losses=num_losses,
        num_nonfinite=num_losses - num_finite,
        mean=mean,
        standard_deviation=deviation,
    )


def _stored(shard: ShardLosses) -> Tensor:
    return shard.losses[shard.written] if shard.offsets is None else shard.losses


def _sample_losses(shard: ShardLosses) -> Float64[Tensor, " rows"]:
    """Average the losses of each row's tokens; not finite where there is none."""
    if shard.offsets is None:
        return shard.losses.double()
    lengths = shard.offsets.diff()
    rows = torch.arange(len(lengths)).repeat_interleave(lengths)
    sums = torch.zeros(len(lengths), dtype=torch.float64)
    return sums.index_add(0, rows, shard.losses.double()) / lengths


def _correlate(
    pair: tuple[str, str], samples: dict[str, dict[Contents, Tensor]]
) -> LossCorrelation:
    first, second = (samples[name] for name in pair)
    common = [torch.stack([first[c], second[c]]) for c in first if c in second]
    losses = torch.cat([torch.empty(2, 0, dtype=torch.float64), *common], dim=1)
    losses = losses[:, losses.isfinite().all(dim=0)]
    # corrcoef warns of fewer than two samples.
    correlation = float(losses.corrcoef()[0, 1]) if losses.shape[1] > 1 else math.nan
    return LossCorrelation(references=pair, num_samples=losses.shape[1], correlation=correlation)
