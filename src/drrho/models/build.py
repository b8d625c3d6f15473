"""Models from their configuration, and trained models to and from a folder."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from drrho.models.bounds import Held, require_fits, require_in_proportion
from drrho.models.hugging_face import (
    HUGGING_FACE_FILE,
    HuggingFaceTwoTower,
    build_hugging_face,
    save_hugging_face,
)
from drrho.models.open_clip import (
    OPEN_CLIP_FILE,
    build_open_clip,
    import_open_clip,
    is_configuration_alone,
    require_configuration_fits,
    save_tokenizer,
    simple_tokenizer,
)
from drrho.models.program import (
    PROGRAM_FILE,
    build_by_program,
    load_with_program,
    require_trusted,
    save_with_program,
)
from drrho.models.small import IMAGE_MEAN, IMAGE_SIZE, IMAGE_STD, SmallConfig, SmallTwoTower
from drrho.models.towers.joined import JOINED_FILE, JoinedTwoTower, load_joined, save_joined
from drrho.models.towers.sentence_transformers import (
    MODULES_FILE,
    build_sentence_two_tower,
    embeds_images,
)
from drrho.models.towers.text_pairs import TextPairTower, build_text_pairs, save_text_pairs
from drrho.models.two_tower import TwoTower, weights_sha256, with_trained_weights
from drrho.runtime.files import write_atomically, write_json
from drrho.runtime.records import from_json, read_json_object

SMALL_CONFIG_FILE = "small.json"
WEIGHTS_FILE = "open_clip_model.safetensors"  # the name that open_clip looks for


@dataclass(frozen=True)
class Model:
    """Architecture and weights of a model.

    Attributes:
        name: "small"; "small-vit"; an open_clip architecture such as "ViT-B-32";
            "local-dir:PATH" or "hf-hub:OWNER/NAME" as open_clip reads them; the first may
            be a configuration alone, for a target with random weights; "transformers:PATH", a
            folder of a Hugging Face dual encoder; "sentence-transformers:PATH", one of images and
            texts, or of texts alone for pairs of texts; "python:FILE.py", whose `build()` returns a
            `TwoTower`; or "run:PATH", the model that a finished `drrho train` left in its run
            folder, or the folder of that model or of an exported one.
        pretrained: open_clip tag or checkpoint file; only for open_clip architectures.
        small: widths of the small model; only for the model "small".
    """

    name: str
    _: KW_ONLY
    pretrained: str | None = None
    small: SmallConfig = field(default_factory=SmallConfig)

    def __post_init__(self):
        if self.pretrained is not None and (self.name == "small" or ":" in self.name):
            raise ValueError(
                f"model.pretrained = {self.pretrained!r} has no effect on model.name = "
                f"{self.name!r}; leave it out"
            )
        if self.name != "small" and self.small != SmallConfig():
            raise ValueError(f"model.small has no effect on model.name = {self.name!r}")

    @property
    def names_weights(self) -> bool:
        """Whether there are weights; an architecture alone has random ones."""
        schema, _, place = self.name.partition(":")
        if schema == "local-dir" and is_configuration_alone(Path(place).expanduser()):
            return False
        return self.pretrained is not None or ":" in self.name

    def require_trained(self) -> None:
        """Raise ValueError for an architecture alone, whose weights would be random."""
        if not self.names_weights:
            raise ValueError(
                f"model {self.name!r} without pretrained has random weights; give --pretrained "
                "TAG_OR_FILE, or a model such as local-dir:PATH or run:PATH"
            )


def find_model(place: str, *, pretrained: str | None = None) -> Model:
    """Name the model of a place: the folder of a run or of a model, or a name that `Model` takes.

    Raises:
        FileNotFoundError: it can only be a folder, and there is none.
    """
    is_folder = pretrained is None and Path(place).expanduser().is_dir()
    if pretrained is None and not is_folder and "/" in place and ":" not in place:
        raise FileNotFoundError(
            f"{place} is no folder of a run or of a model; an architecture also needs its weights "
            "(pretrained)"
        )
    return Model(name=f"run:{place}" if is_folder else place, pretrained=pretrained)


def named_model(name: str) -> Model:
    """Name a model in one word: as `find_model`, with ARCHITECTURE@PRETRAINED for weights of
    open_clip, a tag or a checkpoint file.
    """
    pretrained = ""
    if ":" not in name and not Path(name).expanduser().is_dir():
        name, _, pretrained = name.partition("@")
    return find_model(name, pretrained=pretrained or None)


def build_model(config: Model, *, seed: int, target: bool = False) -> TwoTower:
    """Build a model, on the CPU, in float32.

    Args:
        seed: random seed of weights that are not loaded; the global generator is untouched.
        target: whether "local-dir:PATH" may be a configuration alone, which gets random weights.

    Raises:
        ValueError: no such model, or it could not be loaded.
        FileNotFoundError: "run:PATH" holds no finished model.
    """
    schema, _, place = config.name.partition(":")
    match schema:
        case "run":
            return load_model(_model_folder(Path(place).expanduser()))
        case "transformers":
            return build_hugging_face(Path(place).expanduser())
        case "sentence-transformers":
            return _build_sentences(Path(place).expanduser())
        case "python":
            return build_by_program(Path(place).expanduser())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.name == "small":
            return _build_small(config.small)
        untrained = target and not config.names_weights
        return build_open_clip(config.name, config.pretrained, untrained=untrained)


def require_trusted_model(config: Model) -> None:
    """Raise ValueError if a model that a file names is a program, or would be fetched, and that is
    not trusted (`trusting`).
    """
    schema, _, place = config.name.partition(":")
    who = f"the recipe that this run's folder records ({config.name})"
    if schema == "python":
        require_trusted(who, f"running the program {place}", path=place)
    elif schema == "hf-hub":
        require_trusted(who, f"fetching {place}")
    elif config.pretrained is not None and not Path(config.pretrained).expanduser().is_file():
        require_trusted(who, f"fetching its weights {config.pretrained!r}")


def build_recorded_model(config: Model, *, seed: int, run: Path) -> TwoTower:
    """Build the model that the `recipe.json` of a run names; as `build_model`.

    Args:
        run: folder of the run, whose weights say how large its model can be.

    Raises:
        ValueError: as `require_trusted_model`; or the model is out of proportion to the folder.
    """
    require_trusted_model(config)
    if ":" not in config.name or not config.names_weights:
        _require_bounded_by_run(config, run)
    return build_model(config, seed=seed, target=True)


def _require_bounded_by_run(config: Model, run: Path) -> None:
    """Raise ValueError if an architecture is out of proportion to the weights of its run."""
    where, held = str(run / "recipe.json"), Held.below(run)
    if config.name == "small":
        _require_bounded_small(config.small, held, where=f"{where} (model.small)")
        return
    schema, _, place = config.name.partition(":")
    if schema == "local-dir":
        require_configuration_fits(config.name, Path(place), held)
        return
    name, open_clip = config.name.replace("/", "-"), import_open_clip()
    if name in open_clip.list_models():  # else `build_model` says what is wrong
        where, fields = f"{where} (model.name = {name!r})", open_clip.get_model_config(name)

        def build() -> nn.Module:
            return open_clip.create_model(name, device="meta", pretrained_text=False)

        require_fits(build, held, config=fields, where=where)


def save_model(
    model: TwoTower, folder: Path, *, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write weights and architecture; `load_model` needs nothing else, wherever the folder goes.

    An open_clip model is written as a folder that open_clip itself reads as "local-dir:PATH", one
    of Hugging Face as a folder that transformers reads, one of sentence-transformers as a folder
    that it reads. One of "python:FILE.py" needs the file,
    unchanged and in its place.

    Args:
        weights: the whole state where the module holds a share of it; None takes the module's.

    Raises:
        ValueError: the model was not built by `build_model`.
    """
    if not model.architecture:
        raise ValueError(
            f"model {model.identity.get('architecture')!r} has no architecture to save; only what "
            "build_model made can be saved"
        )
    weights = model.module.state_dict() if weights is None else weights
    if PROGRAM_FILE in model.architecture:  # first: what it returns may be one of the others
        save_with_program(model, folder, weights)
        return
    if isinstance(model.module, JoinedTwoTower):
        save_joined(model, folder, weights)
        return
    if isinstance(model.module, HuggingFaceTwoTower):
        save_hugging_face(model, folder, weights)
        return
    if isinstance(model.module, TextPairTower):
        save_text_pairs(model, folder, weights)
        return
    content = save({name: tensor.contiguous() for name, tensor in weights.items()})
    write_atomically(folder / WEIGHTS_FILE, content)
    save_tokenizer(model.tokenizer, folder)
    for name, content in model.architecture.items():  # last: its presence says all is there
        write_json(folder / name, content)


def load_model(folder: Path) -> TwoTower:
    """Load the model that `save_model` wrote.

    Raises:
        FileNotFoundError: the folder holds no finished model, or the program of one is gone.
        ValueError: its weights do not fit its architecture, or the program was changed.
    """
    for name, load in LOADERS.items():
        if (folder / name).is_file():
            return load(folder)
    raise FileNotFoundError(
        f"{folder} holds no model: it is written when training ends. Finish the run "
        "(`drrho train` with the same recipe continues it), or give the folder of one"
    )


def _model_folder(place: Path) -> Path:
    """Return the folder itself if a model is in it, else the model folder of a run."""
    return place if any((place / name).is_file() for name in LOADERS) else place / "model"


def _build_sentences(folder: Path) -> TwoTower:
    """Load a model of sentence-transformers: of images and texts, or of pairs of texts."""
    return build_sentence_two_tower(folder) if embeds_images(folder) else build_text_pairs(folder)


def _build_small(config: SmallConfig) -> TwoTower:
    tokenizer = simple_tokenizer(config.context_length)
    module = SmallTwoTower(config, tokenizer.vocab_size)
    transform = import_open_clip().image_transform(
        IMAGE_SIZE, is_train=False, mean=IMAGE_MEAN, std=IMAGE_STD
    )
    return TwoTower(
        module=module,
        train_transform=transform,
        eval_transform=transform,
        tokenizer=tokenizer,
        identity={
            "architecture": f"small {asdict(config)}",
            "pretrained": "None",
            "weights_sha256": weights_sha256(module),
            "eval_transform": repr(transform),
            "tokenizer": f"open_clip SimpleTokenizer, context {config.context_length}",
        },
        architecture={SMALL_CONFIG_FILE: asdict(config)},
    )


def _require_bounded_small(config: SmallConfig, held: Held, *, where: str) -> None:
    """Raise ValueError if widths that a file names are out of proportion to its weights."""
    fields = asdict(config)
    require_in_proportion(fields, held, where=where)
    vocabulary_size = simple_tokenizer(1).vocab_size
    build = partial(SmallTwoTower, config, vocabulary_size)
    require_fits(build, held, config=fields, where=where)


def _load_small(folder: Path) -> TwoTower:
    path = folder / SMALL_CONFIG_FILE
    config = from_json(SmallConfig, read_json_object(path), where=str(path), strict=True)
    _require_bounded_small(config, Held.by(folder), where=str(path))
    model = build_model(Model(name="small", small=config), seed=0)
    return with_trained_weights(model, folder / WEIGHTS_FILE, builder=SMALL_CONFIG_FILE)


# How to load a folder, by the file in it that says so. The program comes first: the model that it
# returns may be one of the others.
LOADERS: dict[str, Callable[[Path], TwoTower]] = {
    PROGRAM_FILE: load_with_program,
    JOINED_FILE: load_joined,
    OPEN_CLIP_FILE: lambda folder: build_open_clip(f"local-dir:{folder}", None),
    MODULES_FILE: _build_sentences,  # before the file of transformers, which may be beside it
    HUGGING_FACE_FILE: build_hugging_face,
    SMALL_CONFIG_FILE: _load_small,
}
