"""Contamination: has a reference seen the target's training samples?

Source: docs/mathematics.md, "Contamination".
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from drrho.evaluation.metrics.bootstrap import draw_resamples
from drrho.studies.probe.steerability import FEWEST_SAMPLES

ALARM_LEVEL = 0.995  # one-sided: among a dozen clean references one false alarm in 17 probes


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
) -> Contamination:
    """Compares losses on samples of two sets that are drawn alike.

    What makes a sample hard for every model is noise here. So, where the pilots' losses are known,
    give the reference's minus those: on a training sample that of the pilot that has not seen it,
    on a held-out sample the pilots' mean.

    Raises:
        ValueError: fewer than 10 samples of either kind, or a loss that is not finite.
    """
    for name, losses in (("training", train), ("held-out", held_out)):
        if len(losses) < FEWEST_SAMPLES or not losses.isfinite().all():
            raise ValueError(
                f"contamination needs at least {FEWEST_SAMPLES} finite losses on {name} samples, "
                f"got {len(losses)}, {int((~losses.isfinite()).sum())} of them not finite"
            )

    def means(losses: Tensor) -> Tensor:
        drawn = draw_resamples(len(losses), resamples=resamples, generator=generator)
        return losses[drawn].mean(dim=1)

    gaps = means(train) - means(held_out)
    upper = float(gaps.quantile(ALARM_LEVEL))
    return Contamination(float(train.mean() - held_out.mean()), upper, upper < 0)
