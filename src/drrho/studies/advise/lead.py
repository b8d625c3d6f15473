"""A use by how far a reference is ahead of where plain training is expected to end."""

from typing import Literal

from drrho.runtime.checks import require_share
from drrho.studies.advise.config import Use

Level = Literal["none", "a little", "half", "all"]

# Retrieval improves about as this power of the steps, in odds. This and the levels were set by
# hand on the cells of docs/results/advise.md, and frozen before those of "Another architecture".
GROWTH = 1 / 3
# From which lead on each level is recommended; the first is of a reference that is far behind.
LEVELS: tuple[tuple[float, Level], ...] = ((0.25, "a little"), (0.65, "half"), (1.5, "all"))
# What a level means: the uses by preference, and the strength or weight nearest to which it is.
PREFERRED: dict[Level, tuple[tuple[Use, float], ...]] = {
    "none": (),
    "a little": (("steer", 0.2),),
    "half": (("steer", 0.5), ("distil", 0.3)),
    "all": (("both", 0.5), ("distil", 1.0), ("steer", 0.5)),
}


def odds(reciprocal_rank: float) -> float:
    """Compute `m / (1 - m)` of a mean reciprocal rank in (0, 1]; infinity at 1."""
    require_share(reciprocal_rank=reciprocal_rank)
    return float("inf") if reciprocal_rank == 1 else reciprocal_rank / (1 - reciprocal_rank)


def expected_lead(*, reference: float, plain: float, share: float) -> float:
    """Compute the odds of the reference over those that plain training is expected to end with.

        lead = odds(reference) / (odds(plain) share^(-1/3)),    odds(m) = m / (1 - m)

    It is 0 where plain training is without a fault already.

    Args:
        reference: mean reciprocal rank of the reference on some held-out pairs.
        plain: that of plain training on as many, after a share of its steps.
        share: steps of the pilot as a share of the whole run, in (0, 1].

    Raises:
        ValueError: a number outside (0, 1].

    Source: docs/mathematics.md, "Why early order misleads".
    """
    require_share(share=share)
    end = odds(plain) * share**-GROWTH
    return 0.0 if end == float("inf") else odds(reference) / end


def level_of(lead: float) -> Level:
    """Return how much of a reference to use at a lead."""
    found: Level = "none"
    for least, level in LEVELS:
        if lead >= least:
            found = level
    return found
