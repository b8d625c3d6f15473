"""The rank from which on a caption is called mismatched, by a stated precision.

Right captions of held-out pairs say how often a right one ranks so badly, whatever the reference
does not know; captions exchanged among these pairs on purpose say how many wrong ones are found.
Source: docs/mathematics.md, "Quality of pairs".
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.contrastive.pairs import PairEmbeddings
from drrho.studies.curate.pair_quality import match_ranks

SAME_TEXT = 0.99  # cosine from which on an exchanged caption says the same
Z = 1.645  # of a one-sided 95 % interval
JUDGED_SHARE = 0.1  # share of wrong captions at which a reference must find some


class HeldOutRanks(NamedTuple):
    """Ranks of held-out pairs with their own captions, and with captions of each other."""

    right: Float[Tensor, " pairs"]
    exchanged: Float[Tensor, " exchanged"]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How well mismatched captions are told, by held-out pairs.

    Attributes:
        precision: stated precision.
        threshold: rank from which on a caption is called mismatched; None if no rank reaches the
            precision.
        held_out: number of held-out pairs.
        false_alarms: share of them that rank so badly with their own captions.
        recall: share of them that rank so badly with exchanged captions.
        separation: probability that an exchanged caption ranks worse than a right one; 0.5 is
            guessing.
        too_weak: whether the reference would find nothing if a tenth of the captions were wrong.
    """

    precision: float
    threshold: float | None
    held_out: int
    false_alarms: float
    recall: float
    separation: float
    too_weak: bool

    def __str__(self) -> str:
        told = (
            f"among {self.held_out:,} held-out pairs an exchanged caption ranks worse than a "
            f"right one with probability {self.separation:.2f}"
        )
        if self.too_weak:
            return (
                f"The reference is too weak to call captions mismatched with a precision of "
                f"{self.precision:g} ({told}); pairs are ranked only."
            )
        if self.threshold is None:
            return (
                "No caption can be called mismatched with a precision of "
                f"{self.precision:g} ({told})."
            )
        return (
            f"Mismatched, with a precision of at least {self.precision:g}: log_rank from "
            f"{self.threshold:.3f} on; {told}, and {self.recall:.1%} of the exchanged captions "
            f"(recall) and {self.false_alarms:.2%} of the right ones rank so badly."
        )


@torch.no_grad()
def held_out_ranks(
    pairs: PairEmbeddings, negatives: PairEmbeddings, *, generator: torch.Generator
) -> HeldOutRanks:
    """Ranks pairs among negatives, with their own captions and with exchanged ones.

    Args:
        pairs: the reference's embeddings of held-out pairs; ValueError for fewer than two.
        negatives: its embeddings of the negatives of the data set that is judged.
        generator: generator of the exchange, in which no pair keeps its caption.
    """
    if len(pairs.image) < 2:
        raise ValueError(f"captions cannot be exchanged among {len(pairs.image)} held-out pairs")
    order = torch.randperm(len(pairs.image), generator=generator)
    image, text, other = pairs.image[order], pairs.text[order], pairs.text[order.roll(1)]
    differ = (text.float() * other.float()).sum(dim=1) < SAME_TEXT
    wrong = PairEmbeddings(image[differ], other[differ])
    return HeldOutRanks(match_ranks(pairs, negatives), match_ranks(wrong, negatives))


def judge(ranks: Float[Tensor, " pairs"], held_out: HeldOutRanks, *, precision: float) -> Judgement:
    r"""Finds the lowest threshold t at which the stated precision is reached.

    Right captions of the data rank like captions of the held-out pairs, so of the calls from t on
    at most `P(right >= t) / (#{ranks >= t} / n)` are false. The probability is taken at the upper
    end of its one-sided 95 % interval (Wilson's), since there are few held-out pairs in the tail.

    Source: Benjamini and Hochberg, "Controlling the false discovery rate", 1995, with an empirical
    null distribution, as in Bates et al., "Testing for outliers with conformal p-values", 2023.
    """
    right, exchanged = held_out
    passing = ranks[_at_most(right, ranks) <= (1 - precision) * _share_from(ranks, ranks)]
    threshold = float(passing.min()) if len(passing) > 0 else None
    # The same, for data in which a tenth of the captions were exchanged.
    false, found = _at_most(right, exchanged), _share_from(exchanged, exchanged)
    called = (1 - JUDGED_SHARE) * _share_from(right, exchanged) + JUDGED_SHARE * found
    ties = (_share_from(right, exchanged) + _share_above(right, exchanged)) / 2
    at = torch.tensor([torch.inf if threshold is None else threshold], dtype=ranks.dtype)
    return Judgement(
        precision=precision,
        threshold=threshold,
        held_out=len(right),
        false_alarms=float(_share_from(right, at)),
        recall=float(_share_from(exchanged, at)),
        separation=float(1 - ties.mean()) if len(exchanged) > 0 else 0.5,
        too_weak=threshold is None and not bool((false <= (1 - precision) * called).any()),
    )


def _at_most(
    values: Float[Tensor, " values"], thresholds: Float[Tensor, " thresholds"]
) -> Float[Tensor, " thresholds"]:
    """The probability of a value from each threshold on, estimated from above."""
    number, share = len(values), _share_from(values, thresholds)
    spread = (share * (1 - share) / number + Z**2 / (4 * number**2)).sqrt()
    return (share + Z**2 / (2 * number) + Z * spread) / (1 + Z**2 / number)


def _share_from(
    values: Float[Tensor, " values"], thresholds: Float[Tensor, " thresholds"]
) -> Float[Tensor, " thresholds"]:
    """The share of the values that are at least each threshold."""
    places = torch.searchsorted(values.sort().values, thresholds)
    return (1 - places / max(1, len(values))).double()


def _share_above(
    values: Float[Tensor, " values"], thresholds: Float[Tensor, " thresholds"]
) -> Float[Tensor, " thresholds"]:
    places = torch.searchsorted(values.sort().values, thresholds, right=True)
    return (1 - places / max(1, len(values))).double()
