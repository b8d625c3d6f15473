"""Pairs with their similarities and weights, by stage of training, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Side = Literal["image", "text"]
Change = Literal["raised", "lowered"]
Kind = Literal["learnable", "mismatched", "redundant", "hardest"]


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """An image-text pair of the data set, its picture as a data: URL."""

    sample_id: int
    caption: str
    image: str


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """A training pair, and how either model ranks its own partners among all drawn pairs.

    Attributes:
        place: place of the sample.
        target_ranks, reference_ranks: rank of the own caption for the image, and of the own image
            for the caption.
        excess: contrastive loss of the target minus the reference's, in units of the
            temperature; None without a reference.
        equal_captions: number of other drawn pairs with the same caption.
        repeats: place of an earlier pair that it repeats.
    """

    place: int
    target_ranks: tuple[int, int]
    reference_ranks: tuple[int, int] | None
    excess: float | None
    equal_captions: int
    repeats: int | None


@dataclass(frozen=True, kw_only=True)
class ShownNegative:
    """An image and a text that do not belong together, as an anchor and its negative.

    Attributes:
        anchor: which of the two is the anchor.
        image, text: places of the samples whose image and whose text they are.
        target, reference: cosine similarity by either model.
        gap: the anchor's loss at this negative in units of cosine similarity: the excess gap
            `(S_ij - S_ii) - (R_ij - R_ii)`, or `S_ij - S_ii` without a reference.
        weight, plain_weight: weight with and without the reference; 1 is an even share.
    """

    anchor: Side
    image: int
    text: int
    target: float
    reference: float | None
    gap: float
    weight: float
    plain_weight: float

    @property
    def gain(self) -> float:
        """Weight that the reference adds."""
        return self.weight - self.plain_weight


@dataclass(frozen=True, kw_only=True)
class ShownStage:
    """Pairs shown for one stage of training.

    Attributes:
        title: name of the stage.
        temperature: tau of the weights.
        changed: pairs that count more ("raised") or less ("lowered") by the reference; without
            one, "raised" holds the hardest negatives.
        hardest: sample -> hardest negatives of its image and of its text.
        anchor_weights: sample -> share of the gradient that its image and its text keep.
        histogram: share of all weights in each bin.
    """

    title: str
    temperature: float
    changed: Mapping[Change, tuple[ShownNegative, ...]]
    hardest: Mapping[int, tuple[ShownNegative, ...]]
    anchor_weights: Mapping[int, tuple[float, ...]]
    histogram: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pairs of one run, by stage of training.

    Attributes:
        run: name of the run.
        num_pairs: number of pairs that were examined.
        with_reference: whether the run has a reference.
        stages: stages in the order of their steps.
        pairs: kind -> training pairs at the last stage.
        samples: place -> sample that a stage names.
        edges: edges of the histograms' bins, log10 of the weight.
        notes: sentences on what could not be shown, and why.
    """

    run: str
    num_pairs: int
    with_reference: bool
    stages: tuple[ShownStage, ...]
    pairs: Mapping[Kind, tuple[ShownPair, ...]]
    samples: Mapping[int, ShownSample]
    edges: tuple[float, ...]
    notes: tuple[str, ...]
