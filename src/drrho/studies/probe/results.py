"""The results of a probe as typed data, and `probe.json`, its file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from drrho.reference.judgement import Judgement
from drrho.runtime.records import OPTIONAL
from drrho.studies.probe.contamination import Contamination
from drrho.studies.probe.steerability import Estimate, Steerability

FILE_NAME = "probe.json"


@dataclass(frozen=True, kw_only=True)
class ProbedReference(Steerability):
    """Results of one reference; temperature and radius are set by a probe of losses.

    Attributes:
        contamination: None if not measured.
        alarm: whether it seems to have seen what it would steer on.
        held_out_loss: mean loss on the held-out samples.
        effective_share: effective sample size of the weights, as a share of the samples.
        mrr: mean reciprocal rank of the right partner; only in a probe of pairs, as the rest.
        by_anchor: steerability of the anchors' losses.
        divergence: divergence of the weights from uniform, in nats.
        precompute_seconds: time to embed all training pairs; None if they are stored.
        judgement: how it does on the held-out pairs, and whether it was trained on the pairs that
            it would steer on.
    """

    contamination: Contamination | None
    alarm: bool
    held_out_loss: float
    effective_share: float
    mrr: Estimate | None = field(default=None, metadata=OPTIONAL)
    by_anchor: float | None = field(default=None, metadata=OPTIONAL)
    divergence: float | None = field(default=None, metadata=OPTIONAL)
    precompute_seconds: float | None = None
    judgement: Judgement | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class ProbeResults:
    """A ranking of references. Printing it gives a table.

    Attributes:
        kind: "losses" of any training loop, or "pairs" of a contrastive recipe.
        held_out: number of held-out samples.
        references: name -> results, best first, those with an alarm last.
        not_used: reason -> number of held-out pairs that the ranking does without; only in a probe
            of pairs.
        left_out: samples without a finite loss of every model; only in a probe of losses.
        pilot_steps: optimiser steps of each pilot; only in a probe of pairs.
        temperature: the recipe's; only in a probe of pairs.
    """

    version: ClassVar = 1
    kind: Literal["losses", "pairs"]
    held_out: int
    references: Mapping[str, ProbedReference]
    not_used: Mapping[str, int] | None = field(default=None, metadata=OPTIONAL)
    left_out: int | None = field(default=None, metadata=OPTIONAL)
    pilot_steps: int | None = field(default=None, metadata=OPTIONAL)
    temperature: float | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self):
        needed = {"losses": ("temperature", "radius"), "pairs": ("mrr", "by_anchor", "divergence")}
        for name, found in self.references.items():
            if absent := [part for part in needed[self.kind] if getattr(found, part) is None]:
                raise ValueError(f"a probe of {self.kind} has no {absent[0]} of {name!r}")

    def __str__(self) -> str:
        # The table is of this module's types.
        from drrho.studies.probe.tables import probe_table  # noqa: PLC0415

        return probe_table(self)

    def ranked_by(self, found: ProbedReference) -> Estimate:
        """The estimate that orders references: steerability of losses, else reciprocal rank."""
        return found.steerability if found.mrr is None else found.mrr
