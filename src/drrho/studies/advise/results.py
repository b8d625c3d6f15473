"""Results of `drrho advise`: what was raced, how it went, and what follows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from drrho.evaluation.metrics.interval import Interval
from drrho.reference.judgement import Judgement
from drrho.runtime.checks import require_at_least
from drrho.runtime.records import OPTIONAL
from drrho.studies.advise.arms import PLAIN
from drrho.studies.advise.config import Use
from drrho.studies.advise.halving import Rung
from drrho.studies.advise.lead import Lead
from drrho.studies.advise.references import Geometry

FILE_NAME = "advice.json"


@dataclass(frozen=True, kw_only=True)
class ReferenceFound:
    """What was found about a reference before the race.

    Attributes:
        given: what the user named.
        judgement: how it does on training pairs; None if it has embeddings of fewer than two.
        geometry: its cosines.
        lead: how far it is ahead of plain training; None where a race decided.
    """

    given: str
    judgement: Judgement | None
    geometry: Geometry
    lead: Lead | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class ArmFound:
    """What became of an arm.

    Attributes:
        title: the use in words.
        use: kind of use.
        reference: name of the reference; None for plain training.
        run: folder of its run; None where there can be none.
        steps: optimiser steps that it has taken.
        reason: why there is no run, or why it went no further; None for who reached the last rung,
            and where no race was run.
        behind: the recommended arm's score less its own at their last common step, with its 95 %
            interval; None for the recommended arm and for those not raced.
    """

    title: str
    use: Use
    reference: str | None
    run: str | None
    steps: int
    reason: str | None
    behind: Interval | None


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Cost of a race.

    Attributes:
        steps: optimiser steps of all arms together.
        kept: those of the recommended arm, which its training continues from.
        seconds: training and scoring of the arms.
        reference_seconds: encoding by the references.
    """

    steps: int
    kept: int
    seconds: float
    reference_seconds: float


@dataclass(frozen=True, kw_only=True)
class AdviceResults:
    """What `drrho advise` found. Printing it gives the recommendation and the tables.

    Attributes:
        planned_steps: optimiser steps of the whole training.
        budget_steps: those that the race could take.
        pairs: training pairs.
        held_out: held-out images that arms were scored on.
        held_out_data: where they are.
        guessing: mean reciprocal rank of guessing among them.
        references: what was found about each reference, by name.
        arms: what became of each arm, the simplest first.
        rungs: steps at which arms were compared.
        recommended: name of the arm to continue with.
        decided_by: what recommends it: a "race", or the "lead" of a reference over plain training,
            which alone was trained.
        alike: arms of the last rung that cannot be told apart from it.
        notes: what makes the recommendation doubtful.
        spent: cost.
        sentence: the recommendation.
        command: command that trains the recommended arm to its end.
    """

    version: ClassVar[int] = 1
    planned_steps: int
    budget_steps: int
    pairs: int
    held_out: int
    held_out_data: str
    guessing: float
    references: Mapping[str, ReferenceFound]
    arms: Mapping[str, ArmFound]
    rungs: tuple[Rung, ...]
    recommended: str
    decided_by: Literal["race", "lead"] = field(default="race", metadata=OPTIONAL)
    alike: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    notes: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    spent: Spent
    sentence: str
    command: str

    def __post_init__(self) -> None:
        require_at_least(1, planned_steps=self.planned_steps, held_out=self.held_out)
        possible = {name for name, arm in self.arms.items() if arm.run is not None}
        expected = possible if self.decided_by == "race" else {PLAIN}
        if self.recommended not in possible or expected != self.compared:
            raise ValueError(
                "advice must recommend an arm that can be trained, and every one that was raced "
                f"must be in a rung; got {self.recommended!r}, {sorted(expected)} and "
                f"{sorted(self.compared)}"
            )

    @property
    def compared(self) -> set[str]:
        """Names of the arms that were trained and scored."""
        return {name for rung in self.rungs for name in rung.mrr}

    def __str__(self) -> str:
        # The tables are of this module's types.
        from drrho.studies.advise.tables import advice_text  # noqa: PLC0415

        return advice_text(self)
