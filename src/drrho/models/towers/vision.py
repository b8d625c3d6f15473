"""Vision models of timm and torchvision, without their classifiers."""

import difflib
import importlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from drrho.models.bounds import Held, require_fits
from drrho.models.open_clip import plain_checkpoint
from drrho.models.towers.tower import ImageTower
from drrho.models.two_tower import ImageTransform, weights_sha256
from drrho.runtime.files import require_regular, write_atomically
from drrho.runtime.optional import import_optional
from drrho.runtime.records import read_record, write_record
from drrho.runtime.torchvision import import_torchvision

Library = Literal["timm", "torchvision"]
VISION_FILE = "vision.json"
WEIGHTS_FILE = "model.safetensors"
MAX_SIDE = 4096  # pixels of an image after the transform
FROM_HUB = ("model.safetensors", "pytorch_model.bin")  # the files of timm's repositories


@dataclass(frozen=True, kw_only=True)
class VisionTransform:
    """Resize, crop and normalise an image.

    Attributes:
        size: pixels of each side of the result.
        resize: pixels of the shorter side before the middle is cut out; None squashes the image
            into a square.
        interpolation: name of the interpolation, as Pillow's.
        mean, std: of each channel, subtracted and divided by.
    """

    size: int
    resize: int | None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("resize", self.resize or 1)):
            if not 1 <= value <= MAX_SIDE:
                raise ValueError(f"{name} must be 1 to {MAX_SIDE} pixels, got {value}")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be positive, got {self.std}")

    def build(self) -> ImageTransform:
        """Build the transform of torchvision."""
        import_torchvision()
        transforms: Any = importlib.import_module("torchvision.transforms")
        mode = transforms.InterpolationMode(self.interpolation)
        steps = [
            transforms.Resize((self.size, self.size), mode)
            if self.resize is None
            else transforms.Resize(self.resize, mode)
        ]
        if self.resize is not None:
            steps.append(transforms.CenterCrop(self.size))
        return transforms.Compose(
            [*steps, transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        )


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Contents of `vision.json`: an architecture and its transform."""

    version: ClassVar = 1
    library: Library
    architecture: str
    transform: VisionTransform


class VisionFeatures(nn.Module):
    """The features of a vision model, which a classifier would take.

    Args:
        config: what `model` is.
        model: gives features (B, d).
    """

    def __init__(self, config: VisionConfig, model: nn.Module) -> None:
        super().__init__()
        self.config, self.model = config, model

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch features"]:
        return self.model(images).flatten(1)

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write what `load_vision` reads."""
        plain = {n.removeprefix("model."): w.contiguous().clone() for n, w in weights.items()}
        write_atomically(folder / WEIGHTS_FILE, save(plain))
        write_record(folder / VISION_FILE, self.config)


def build_vision(
    library: Library, name: str, weights: str | None, *, image_size: int | None
) -> ImageTower:
    """Build a vision model with weights of a file, or of this machine's cache of downloads.

    Nothing is fetched, and no model has random weights.

    Args:
        name: of an architecture of the library.
        weights: a checkpoint with the names of that library; None looks for the default weights
            in the cache.
        image_size: pixels of each side; None takes the size of the weights.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: no such architecture, the weights do not fit it, or it has one size alone.
    """
    model, transform, cached = (_timm if library == "timm" else _torchvision)(name, weights is None)
    source = f"{library}:{name}"
    file = cached if weights is None else Path(weights).expanduser()
    if file is None:
        raise FileNotFoundError(
            f"{source}: its weights are not among the downloads on this machine, and random ones "
            f"are of no use; name a file of them, '{source}@FILE'"
        )
    if not file.is_file():
        raise FileNotFoundError(f"{source}: there is no file of weights {file}")
    if image_size is not None:
        transform = _resized(transform, image_size)
    _load_weights(model, file, source=source)
    short = name.partition(".")[0]  # what follows names weights, and these are saved
    config = VisionConfig(library=library, architecture=short, transform=transform)
    return _tower(config, model)


def load_vision(folder: Path) -> ImageTower:
    """Load what `VisionFeatures.save` wrote.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is damaged, or the weights do not fit the architecture.
    """
    config = read_record(folder / VISION_FILE, VisionConfig)
    make = _timm if config.library == "timm" else _torchvision
    require_fits(
        lambda: make(config.architecture, False)[0],
        Held.by(folder),
        config={},
        where=str(folder / VISION_FILE),
    )
    model, _, _ = make(config.architecture, False)
    _load_weights(model, folder / WEIGHTS_FILE, source=str(folder / VISION_FILE))
    return _tower(config, model)


def _tower(config: VisionConfig, model: nn.Module) -> ImageTower:
    module = VisionFeatures(config, model)
    transform = config.transform
    return ImageTower(
        module=module,
        transform=transform.build(),
        identity={
            "architecture": f"{config.library} {config.architecture}",
            "weights_sha256": weights_sha256(module),
            "eval_transform": repr(transform),
        },
    )


def _timm(name: str, look: bool) -> tuple[nn.Module, VisionTransform, Path | None]:
    """Return timm's model without classifier, its transform, and the file of its weights."""
    import_torchvision()
    timm: Any = import_optional("timm", user="models 'timm:NAME'", extra="clip")
    data: Any = importlib.import_module("timm.data")
    short = name.partition(".")[0]
    _require_known(name, short in timm.list_models(), timm.list_models(), library="timm")
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    model = timm.create_model(short, pretrained=False, num_classes=0)
    found = data.resolve_data_config({}, pretrained_cfg=config.to_dict() if config else {})
    size = found["input_size"][-1]
    if found["crop_mode"] == "border":
        raise ValueError(f"timm:{name}: its transform adds a border, which is not supported")
    squash = found["crop_mode"] == "squash"
    transform = VisionTransform(
        size=size,
        resize=None if squash else int(size / found["crop_pct"]),
        interpolation=found["interpolation"],
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
    )
    if config is None or not look:
        return model, transform, None
    hub: Any = importlib.import_module("huggingface_hub")
    repository = config.hf_hub_id
    files = [hub.try_to_load_from_cache(repository, file) for file in FROM_HUB if repository]
    files.append(_torch_hub(config.url))
    return model, transform, next((Path(file) for file in files if isinstance(file, str)), None)


def _torchvision(name: str, look: bool) -> tuple[nn.Module, VisionTransform, Path | None]:
    """Return torchvision's model without classifier, its transform, and its weights' file."""
    import_torchvision()
    models: Any = import_optional(
        "torchvision.models", user="models 'torchvision:NAME'", extra="clip"
    )
    known = models.list_models(module=models)
    _require_known(name, name in known, known, library="torchvision")
    weights = models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    transform = VisionTransform(
        size=preset.crop_size[0],
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    model = models.get_model(name, weights=None)
    linear = [n for n, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ValueError(f"torchvision:{name} has no linear classifier, so no features before it")
    parent, _, last = linear[-1].rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Identity())
    file = _torch_hub(weights.url) if look else None
    return model, transform, None if file is None else Path(file)


def _torch_hub(url: str | None) -> str | None:
    """Return where PyTorch's cache of downloads has what an address has, if it is there."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / str(url).rpartition("/")[2]
    return str(file) if url and file.is_file() else None


def _require_known(name: str, known: bool, names: list[str], *, library: str) -> None:
    if not known:
        near = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
        raise ValueError(f"{library} has no architecture {name!r}; near: {near}")


def _resized(transform: VisionTransform, size: int) -> VisionTransform:
    """Return the transform for images of another size, showing as much of the image."""
    resize = transform.resize
    return VisionTransform(
        **vars(transform)
        | {"size": size, "resize": resize and round(resize * size / transform.size)}
    )


def _load_weights(model: nn.Module, file: Path, *, source: str) -> None:
    """Load a checkpoint; what it has of a classifier alone is passed over."""
    require_regular(file)
    try:
        with tempfile.TemporaryDirectory() as folder:
            plain = plain_checkpoint(str(file), folder)
            if plain.endswith(".safetensors"):
                content: Any = load_file(plain)
            else:
                content = torch.load(plain, map_location="cpu", weights_only=True)
        weights = content.get("state_dict", content)
        missing, left = model.load_state_dict(weights, strict=False)
    except (RuntimeError, SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{source}: {file} does not fit it: {error}") from error
    left = [name for name in left if not _is_classifier(name)]
    if missing or left:
        raise ValueError(
            f"{source}: {file} lacks {len(missing)} of its tensors {missing[:1]} and has "
            f"{len(left)} others {left[:1]}; is it a checkpoint of that architecture?"
        )


def _is_classifier(name: str) -> bool:
    return name.split(".")[0] in {"classifier", "fc", "head", "heads", "head_dist", "last_linear"}
