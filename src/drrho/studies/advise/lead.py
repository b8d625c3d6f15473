"""A use by how far a reference is ahead of where plain training is expected to end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from drrho.evaluation.metrics.interval import Interval
from drrho.reference.judgement import NEAR_GUESSING
from drrho.runtime.checks import require_share
from drrho.studies.advise.arms import Arm
from drrho.studies.advise.config import Use

Level = Literal["none", "a little", "half", "all"]

# Retrieval improves about as this power of the steps, in odds. This and the levels were set by
# hand on the cells of docs/results/advise.md, and frozen before those of "Another architecture".
GROWTH = 1 / 3
# From which lead on each level is recommended; "none" is of a reference that is far behind.
LEVELS: tuple[tuple[float, Level], ...] = ((0.25, "a little"), (0.65, "half"), (1.5, "all"))
# The uses of a level, the preferred first, each at the strength or weight nearest to its number.
PREFERRED: Mapping[Level, tuple[tuple[Use, float], ...]] = {
    "none": (),
    "a little": (("steer", 0.2), ("distil", 0.3)),
    "half": (("steer", 0.5), ("distil", 0.3)),
    "all": (("both", 0.5), ("distil", 1.0), ("steer", 0.5)),
}
DECIDED_BY_LEAD: frozenset[Use] = frozenset({"steer", "distil", "both"})


@dataclass(frozen=True, kw_only=True)
class Lead:
    """A reference against the expected end of plain training.

    Attributes:
        reference: mean reciprocal rank of the reference, with its 95 % interval over pairs.
        held_out: whether it is of the held-out pairs; else it is of as many training pairs.
        guessing: what guessing reaches there.
        plain: mean reciprocal rank of plain training on the held-out pairs, after the pilot.
        share: steps of the pilot as a share of the whole run.
        lead: `expected_lead` of these.
        seen: whether the reference is known to be trained on shards of the held-out pairs.
    """

    reference: Interval
    held_out: bool
    guessing: float
    plain: float
    share: float
    lead: float
    seen: bool

    @property
    def is_near_guessing(self) -> bool:
        """Whether the reference may be no better than twice guessing."""
        return self.reference.low <= NEAR_GUESSING * self.guessing

    @property
    def level(self) -> Level:
        """How much of the reference to use; nothing of one that is near guessing.

        Beside a target that is guessing too its lead would be about 1.
        """
        return "none" if self.is_near_guessing else level_of(self.lead)


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


def choose_by_lead(
    arms: Sequence[Arm], leads: Mapping[str, Lead], *, plain: str
) -> tuple[str, str]:
    """Choose a use of the reference with the largest lead, of those that are not near guessing.

    Args:
        arms: arms; those without a recipe are passed over.
        leads: lead of each reference, by name.
        plain: name of the arm of plain training.

    Returns:
        Name of the arm, and of the reference that was looked at.
    """
    reference = max(leads, key=lambda name: (not leads[name].is_near_guessing, leads[name].lead))
    for use, wanted in PREFERRED[leads[reference].level]:
        own = {
            arm.name: arm.amount
            for arm in arms
            if (arm.use, arm.reference) == (use, reference)
            and arm.recipe is not None
            and arm.amount is not None
        }
        if own:
            return min(own, key=lambda name: abs(own[name] - wanted)), reference
    return plain, reference
