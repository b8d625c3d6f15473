"""Pairs with their similarities and weights, by stage of training, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Side = Literal["image", "text"]
Change = Literal["raised", "lowered"]


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """An image-text pair of the data set.

    Attributes:
        sample_id: its place in the data set.
        caption: its text.
        image: a small picture as a data: URL.
    """

    sample_id: int
    caption: str
    image: str


@dataclass(frozen=True, kw_only=True)
class ShownNegative:
    """An image and a text that do not belong together, as an anchor and its negative.

    Attributes:
        anchor: which of the two is the anchor.
        image, text: samples whose image and whose text they are.
        target, reference: similarity by either model, a cosine.
        gap: the anchor's loss at this negative in units of cosine similarity: the excess gap
            `(S_ij - S_ii) - (R_ij - R_ii)`, or `S_ij - S_ii` without a reference.
        weight: times its even share.
        plain_weight: the same without the reference.
    """

    anchor: Side
    image: int
    text: int
    target: float
    reference: float | None
    gap: float
    weight: float
    plain_weight: float


@dataclass(frozen=True, kw_only=True)
class ShownStage:
    """The pairs shown of one stage of training.

    Attributes:
        title: of the stage.
        temperature: tau of the weights.
        changed: pairs that count more ("raised") or less ("lowered") by the reference; without
            one, "raised" holds the hardest negatives.
        hardest: sample -> hardest negatives of its image and of its text.
        anchor_weights: sample -> share of the gradient that its two anchors keep.
        histogram: share of all weights in each bin.
    """

    title: str
    temperature: float
    changed: Mapping[Change, tuple[ShownNegative, ...]]
    hardest: Mapping[int, tuple[ShownNegative, ...]]
    anchor_weights: Mapping[int, tuple[float, float]]
    histogram: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The gallery of one run.

    Attributes:
        run: its name.
        num_pairs: how many pairs of the data set were looked at.
        with_reference: whether there was one.
        stages: in the order of the steps.
        samples: all that the stages name.
        edges: of the histograms' bins, log10 of the weight.
        notes: what could not be shown, and why.
    """

    run: str
    num_pairs: int
    with_reference: bool
    stages: tuple[ShownStage, ...]
    samples: Mapping[int, ShownSample]
    edges: tuple[float, ...]
    notes: tuple[str, ...]
