"""Labels of pairs: what a data set can do without, and what there is to learn."""

from typing import Literal

from jaxtyping import Bool, Int64
from torch import Tensor

from drrho.studies.curate.scores import Quality

Label = Literal["mismatched", "redundant", "learned", "learnable"]
Dropped = Literal["mismatched", "redundant", "learned"]


def label_pairs(
    quality: Quality, repeats: Int64[Tensor, " pairs"], mismatched: Bool[Tensor, " pairs"]
) -> list[Label]:
    """Labels each pair by the first that fits of mismatched, redundant, learned, learnable.

    Learned is what the target does at least as well as the reference.
    """
    columns = mismatched.tolist(), repeats.tolist(), quality.excess_loss.tolist()

    def label(is_mismatched: bool, repeated: int, excess: float) -> Label:
        if is_mismatched:
            return "mismatched"
        if repeated >= 0:
            return "redundant"
        return "learnable" if excess > 0 else "learned"

    return [label(*pair) for pair in zip(*columns, strict=True)]
