"""CLIP's objective: the symmetric cross-entropy of matching the pairs of a batch."""

from dataclasses import dataclass
from typing import ClassVar

from drrho.contrastive.memory.temperature import (
    DEFAULT_TEMPERATURE,
    OneTemperatureOrFloat,
    as_temperature,
)
from drrho.contrastive.objectives.distillation import DistillationTerm, count_teachers


@dataclass(frozen=True, kw_only=True)
class CLIP:
    """CLIP's objective: the symmetric cross-entropy of the batch (InfoNCE).

    Attributes:
        temperature: `Constant` (a float will do) or `Learned`.
        distillation: teachers' probabilities, imitated as well; None leaves them out.

    Source: docs/mathematics.md, "CLIP and FastCLIP as special cases"; Radford et al., arXiv
        2103.00020.
    """

    method: ClassVar = "clip"
    needs_reference: ClassVar = False
    has_averages: ClassVar = False
    temperature: OneTemperatureOrFloat = DEFAULT_TEMPERATURE
    distillation: DistillationTerm | None = None
    num_teachers = property(count_teachers)

    def __post_init__(self):
        as_temperature(self)
