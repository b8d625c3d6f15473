"""Contamination: has a reference seen the target's training samples?

Source: docs/mathematics.md, "Contamination".
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from drrho.evaluation.metrics.bootstrap import draw_resamples
from drrho.studies.probe.familiarity import Matched
from drrho.studies.probe.steerability import FEWEST_SAMPLES

ALARM_LEVEL = 0.995  # one-sided: among a dozen clean references one false alarm in 17 probes
# Of held-out pairs that are matched with training pairs, experiments/contamination.py.
LEAST_EFFECT = 0.5


@dataclass(frozen=True)
class Contamination:
    """Difference of a reference's losses between training and held-out samples.

    Attributes:
        gap: mean on training samples minus mean on held-out ones; negative where the reference
            knows the training samples.
        upper: end of its one-sided 99.5 % bootstrap interval.
        alarm: whether `upper` is below zero.
    """

    gap: float
    upper: float
    alarm: bool


def contamination(
    train: Float64[Tensor, " seen"],
    held_out: Float64[Tensor, " unseen"],
    *,
    resamples: int,
    generator: torch.Generator,
    weights: Matched | None = None,
    least_effect: float = 0.0,
) -> Contamination:
    """Compares losses on samples of two sets that are drawn alike, or weighed to be so.

    What makes a sample hard for every model is noise here.

    Args:
        weights: weights of the samples, for sets that are not drawn alike; None counts all alike.
        least_effect: gap from which on there is an alarm, in standard deviations of the losses:
            what sets that are weighed may still differ by.

    Raises:
        ValueError: fewer than 10 samples of either kind, or a loss that is not finite.
    """
    for name, losses in (("training", train), ("held-out", held_out)):
        if len(losses) < FEWEST_SAMPLES or not losses.isfinite().all():
            raise ValueError(
                f"contamination needs at least {FEWEST_SAMPLES} finite losses on {name} samples, "
                f"got {len(losses)}, {int((~losses.isfinite()).sum())} of them not finite"
            )

    def means(losses: Tensor, weight: Tensor | None) -> Tensor:
        drawn = draw_resamples(len(losses), resamples=resamples, generator=generator)
        if weight is None:
            return losses[drawn].mean(dim=1)
        # A resample may have none of weight; then it says nothing.
        return (weight * losses)[drawn].sum(dim=1) / weight[drawn].sum(dim=1)

    of_train, of_held_out = (None, None) if weights is None else weights
    gaps = means(train, of_train) - means(held_out, of_held_out)
    upper = float(gaps[gaps.isfinite()].quantile(ALARM_LEVEL))
    gap = _mean(train, of_train) - _mean(held_out, of_held_out)
    spread = float(((train.var() + held_out.var()) / 2).sqrt())
    return Contamination(gap, upper, upper < -least_effect * spread)


def _mean(losses: Tensor, weight: Tensor | None) -> float:
    return float(losses.mean() if weight is None else (weight * losses).sum() / weight.sum())
