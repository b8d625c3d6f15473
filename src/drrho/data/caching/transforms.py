"""Parts of an image transform: what is always the same, what is drawn, and the normalisation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import Any

import numpy as np
import PIL
import torch
from jaxtyping import Float32, UInt8
from PIL import Image, features
from torch import Tensor

from drrho.data.caching.resizing import Resizer, TorchResized, by_torch, drawn_box
from drrho.data.reading.images import WHOLE_SIZE

Step = Callable[[Image.Image], Image.Image]
# By the package that a step comes from and its name. What these give follows from the image alone,
# and their attributes say what they do.
FIXED = {
    *(("torchvision", name) for name in ("Resize", "CenterCrop", "Grayscale", "Pad")),
    *(("open_clip", name) for name in ("MaybeConvertMode", "_convert_to_rgb")),
}
COMPOSE = ("torchvision", "Compose")
TO_TENSOR = {("torchvision", "ToTensor"), ("open_clip", "MaybeToTensor")}
NORMALIZE = ("torchvision", "Normalize")
RANDOM_CROP = ("torchvision", "RandomResizedCrop")
RESIZE = ("torchvision", "Resize")
PIECE = 2**17  # values normalised at once, which stay in a processor's cache


@dataclass(frozen=True)
class Normalization:
    """Pixels of 8 bits to what a tower takes: (x / 255 - mean) / std, rounded at each operation.

    The result equals torchvision's ToTensor and Normalize bit for bit, on a GPU too.

    Attributes:
        mean, std: of each channel; both empty for x / 255 alone.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(
        self, pixels: UInt8[Tensor, "batch channels height width"]
    ) -> Float32[Tensor, "batch channels height width"]:
        """Normalise a batch on its device."""
        # Tensors: by a number a GPU would multiply with its rounded inverse.
        divisor = torch.tensor(255.0, device=pixels.device)
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        found = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
        size = len(pixels)
        if not pixels.is_cuda and pixels.numel() > 0:
            size = max(1, PIECE // pixels[0].numel())
        for part, values in zip(found.split(max(1, size)), pixels.split(max(1, size)), strict=True):
            part.copy_(values).div_(divisor)
            if self.mean:
                part.sub_(mean).div_(std)
        return found


@dataclass(frozen=True, kw_only=True)
class SplitTransform:
    """A transform in parts: `fixed` and `drawn` give an image, and then it becomes a tensor.

    Attributes:
        fixed: steps whose result follows from the image.
        drawn: steps behind them, up to the last that gives an image; None if it is not known
            which they are.
        normalization: what makes the tensor; None if that is not known.
        rest: everything behind `fixed`.
        target: shorter side in pixels that the first step needs at least; None if not known.
    """

    fixed: tuple[Step, ...]
    drawn: tuple[Step, ...]
    normalization: Normalization | None
    rest: Callable[[Any], Tensor]
    target: int | None = None

    def fix(self, image: Image.Image) -> Image.Image:
        """Apply the fixed part."""
        return reduce(lambda found, step: step(found), self.fixed, image)

    @property
    def draws(self) -> bool:
        """Whether something behind the fixed part may be drawn."""
        return self.normalization is None or len(self.drawn) > 0

    def behind_fixed(self, image: Image.Image) -> Tensor:
        """Apply what follows the fixed part, without the normalisation if that is known."""
        if self.normalization is None:
            return self.rest(image)
        found, steps = image, self.drawn
        if WHOLE_SIZE in image.info and steps and _name(steps[0]) == RANDOM_CROP:
            found, steps = _crop_of_draft(steps[0], image), steps[1:]
        return torch.from_numpy(pixels_of(reduce(lambda x, step: step(x), steps, found)))

    def unnormalized(self, image: Image.Image) -> Tensor:
        """Apply the transform, without the normalisation if that is known."""
        return self.behind_fixed(self.fix(image))

    @property
    def description(self) -> str:
        """What the fixed part gives depends on, beside the image."""
        steps = [
            f"{_name(step)} {_plain_attributes(_plain_step(step))}"
            + (f" by PyTorch {torch.__version__}" if isinstance(step, TorchResized) else "")
            for step in self.fixed
        ]
        codecs = [features.version(codec) for codec in ("jpg", "libjpeg_turbo", "webp", "zlib")]
        return f"{steps} {torch_vision_version()} Pillow {PIL.__version__} {codecs}"

    def fixed_size(self) -> tuple[int, int] | None:
        """Return width and height that the fixed part gives every image; None if they differ."""
        if not self.fixed:
            return None
        sizes = {self.fix(Image.new("RGB", size)).size for size in ((97, 31), (40, 83), (64, 64))}
        return sizes.pop() if len(sizes) == 1 else None


def split_transform(
    transform: Callable[[Image.Image], Tensor], *, resize: Resizer = "pillow"
) -> SplitTransform:
    """Split a transform; one that is not composed of known steps has only a `rest`.

    Raises:
        ValueError: PyTorch is to resize, and no step is known that it could take over.
    """
    whole = SplitTransform(fixed=(), drawn=(), normalization=None, rest=transform)
    steps = []
    if _name(transform) == COMPOSE and torch.get_default_dtype() == torch.float32:
        steps = list(transform.transforms)  # pyright: ignore[reportFunctionMemberAccess]
    if resize == "torch":
        steps = [by_torch(step, _name(step)) for step in steps]
        if not any(isinstance(step, TorchResized) for step in steps):
            raise ValueError(
                'loading.resize = "torch" has no effect where the transform has no Resize or '
                "RandomResizedCrop of torchvision with bilinear or bicubic interpolation; leave it "
                "out"
            )
    if not steps:
        return whole
    count = next((n for n, step in enumerate(steps) if _name(step) not in FIXED), len(steps))
    rest: Callable[[Any], Tensor] = type(transform)(steps[count:])  # pyright: ignore
    split = replace(whole, fixed=tuple(steps[:count]), rest=rest, target=_target(steps))
    places = [place for place, step in enumerate(steps) if _name(step) in TO_TENSOR]
    if len(places) != 1 or places[0] < count:
        return split
    normalization = _normalization(steps[places[0] + 1 :])
    return replace(split, drawn=tuple(steps[count : places[0]]), normalization=normalization)


def behind_augmentation(
    transform: Callable[[Image.Image], Tensor], augmentation: Callable[[Image.Image], Tensor]
) -> Callable[[Image.Image], Tensor]:
    """Compose a model's transform behind the steps by which another's training changes an image.

    The steps of `augmentation` are taken up to its tensor. What they draw is drawn first, so from
    the same state of the generators both models get the same crop.

    Raises:
        ValueError: the augmentation is not composed of steps, or torchvision's `ToTensor` is not
            among them, so that it is not known where its image ends.
    """
    steps = list(getattr(augmentation, "transforms", ())) if _name(augmentation) == COMPOSE else []
    places = [place for place, step in enumerate(steps) if _name(step) in TO_TENSOR]
    if len(places) != 1:
        raise ValueError(
            "the target's training transform is not composed of torchvision's steps with one "
            "ToTensor among them, so its augmented image cannot be taken out of it"
        )
    own = list(transform.transforms) if _name(transform) == COMPOSE else [transform]  # pyright: ignore
    return type(augmentation)([*steps[: places[0]], *own])  # pyright: ignore


def pixels_of(image: Image.Image) -> UInt8[np.ndarray, "channels height width"]:
    """Return an RGB image as an array, channels first.

    Raises:
        ValueError: it is no RGB image.
    """
    if image.mode != "RGB":
        raise ValueError(f"the transform gave an image of mode {image.mode}, not RGB")
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


@cache
def torch_vision_version() -> str:
    """Return the version of torchvision, which resizes."""
    import torchvision  # noqa: PLC0415  # not before a transform of it is there

    return torchvision.__version__


def _crop_of_draft(step: Any, image: Image.Image) -> Image.Image:
    """Take the crop that the whole image would have had from one that was decoded smaller."""
    if isinstance(step, TorchResized):
        return step.crop_of(image, whole=image.info[WHOLE_SIZE])
    box = drawn_box(step, image, whole=image.info[WHOLE_SIZE])
    resample = Image.Resampling[step.interpolation.name]
    return image.resize(tuple(step.size[::-1]), resample, box=box)


def _target(steps: Sequence[Any]) -> int | None:
    """Return the shorter side that the first step makes smaller or equal, with room for crops."""
    first = _plain_step(next(iter(steps), None))
    size = getattr(first, "size", None)
    sides = [size] if isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or not all(isinstance(side, int) for side in sides):
        return None
    if _name(first) == RESIZE:
        return max(sides)
    if _name(first) == RANDOM_CROP and first is not None:
        return math.ceil(max(sides) / math.sqrt(first.scale[0]))
    return None


def _normalization(steps: Sequence[Any]) -> Normalization | None:
    if not steps:
        return Normalization()
    if len(steps) > 1 or _name(steps[0]) != NORMALIZE:
        return None
    mean, std = (tuple(map(float, values)) for values in (steps[0].mean, steps[0].std))
    return Normalization(mean, std) if len(mean) == len(std) == 3 and all(std) else None


def _name(step: object) -> tuple[str, str]:
    """Return the package of a step and the name of its class or function."""
    step = _plain_step(step)
    named = step if hasattr(step, "__name__") else type(step)
    return named.__module__.partition(".")[0], named.__name__  # pyright: ignore


def _plain_step(step: Any) -> Any:
    """Return the step that is there when Pillow resizes."""
    return step.step if isinstance(step, TorchResized) else step


def _plain_attributes(step: object) -> list[tuple[str, str]]:
    kinds = (int, float, str, tuple, list, bool, type(None))
    found = vars(step) if hasattr(step, "__dict__") else {}
    named = [(name, value) for name, value in sorted(found.items()) if not name.startswith("_")]
    enums = [(name, getattr(value, "value", value)) for name, value in named]
    return [(name, repr(value)) for name, value in enums if isinstance(value, kinds)]
