"""Fixed augmented views of pairs, shared by a stored reference and a training run.

A reference's embeddings are of images as they are, and training sees random crops. A view is a
crop that a seed and the sample decide: the reference is stored for a few views of every sample,
and training takes one of these at each visit, so both models see the same pixels and words.
"""

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from PIL import Image
from torch import Tensor

from drrho.data.reading.images import MAX_PIXELS, transformed
from drrho.data.reading.shards import RawSample
from drrho.runtime.checks import require_at_least
from drrho.runtime.randomness import derived_seed

MAX_SIDE = math.isqrt(MAX_PIXELS)  # of a crop after stretching
ASPECT_RATIO = 4 / 3  # of a crop, at most; its logarithm is uniform
IDENTITY = "view"  # the name of a view in the identity of what is stored


@dataclass(frozen=True, kw_only=True)
class Views:
    """Fixed views of every sample.

    Attributes:
        count: number of views of each sample; training takes one of them at each visit.
        seed: random seed of the crops and of random captions.
        scale: smallest and largest share of the image's area in a crop.
        captions: caption of a sample that has several: the "first" for every view, or a "random"
            one for each.
    """

    count: int
    seed: int = 0
    scale: tuple[float, float] = (0.9, 1.0)
    captions: Literal["first", "random"] = "first"

    def __post_init__(self):
        require_at_least(1, **{"views.count": self.count})
        require_at_least(0, **{"views.seed": self.seed})
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"views.scale must be (low, high), 0 < low <= high <= 1, got {low, high}"
            )

    def view(self, number: int) -> "View":
        """Return one view by number, or raise IndexError if there are not that many."""
        if not 0 <= number < self.count:
            raise IndexError(f"there are {self.count} views, and none with the number {number}")
        return View(number=number, seed=self.seed, scale=self.scale, captions=self.captions)

    def drawn(self, *parts: str | int) -> "View":
        """Choose a view at random, as a function of the parts."""
        return self.view(derived_seed("which view", *parts) % self.count)


@dataclass(frozen=True, kw_only=True)
class View:
    """One view of every sample, by its number; the other fields are as in `Views`."""

    number: int
    seed: int
    scale: tuple[float, float]
    captions: Literal["first", "random"]

    @property
    def identity(self) -> dict[str, str]:
        """Entry for the identity of a store whose embeddings are of this view."""
        return {IDENTITY: json.dumps(asdict(self))}

    @classmethod
    def of_identity(cls, identity: dict[str, str]) -> "View | None":
        """Parse the view in the identity of a store; None for images as they are."""
        if IDENTITY not in identity:
            return None
        fields = json.loads(identity[IDENTITY])
        return cls(**fields | {"scale": tuple(fields["scale"])})

    def image(self, image: Image.Image, sample: RawSample) -> Image.Image:
        """Crop and stretch to a square: area uniform in `scale`, logarithm of the aspect ratio
        uniform, place uniform; what would reach over the edge is cut to the edge.
        """
        draws = self._draws("crop", sample)
        area = image.width * image.height * draws.uniform(*self.scale)
        ratio = math.exp(draws.uniform(-1, 1) * math.log(ASPECT_RATIO))
        width = min(image.width, max(1, round(math.sqrt(area * ratio))))
        height = min(image.height, max(1, round(math.sqrt(area / ratio))))
        left = round(draws.random() * (image.width - width))
        top = round(draws.random() * (image.height - height))
        side = min(max(width, height), MAX_SIDE)
        box = (left, top, left + width, top + height)
        return image.resize((side, side), Image.Resampling.BICUBIC, box=box)

    def caption(self, captions: list[str], sample: RawSample) -> str:
        """Choose one of the captions of a sample."""
        if self.captions == "first":
            return captions[0]
        return captions[int(self._draws("caption", sample).random() * len(captions))]

    def _draws(self, purpose: str, sample: RawSample) -> random.Random:
        """Seed by the contents of the sample, not by its id, which differs between data sets that
        share a shard. Python promises that `random.Random` draws the same in later versions.
        """
        return random.Random(derived_seed("view", purpose, self.seed, self.number, sample.checksum))


def transformed_view(
    transform: Callable[[Image.Image], Tensor],
    image: Image.Image | str,
    sample: RawSample,
    *,
    view: View | None,
) -> Tensor:
    """Transform a view of a sample's image, or the image itself; errors as `transformed`."""
    if view is None:
        return transformed(transform, image)
    if isinstance(image, str):
        raise ValueError(
            "views are crops of images, and the data are pairs of texts; leave views out"
        )
    return transformed(lambda whole: transform(view.image(whole, sample)), image)
