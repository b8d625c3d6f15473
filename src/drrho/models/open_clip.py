"""open_clip's models: any architecture, pretrained tag, `local-dir:` or `hf-hub:`."""

import difflib
import tempfile
import zipfile
from copy import copy
from functools import cache
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from drrho.models.bounds import Held, require_fits, require_in_proportion
from drrho.models.hugging_face import import_transformers
from drrho.models.small import register
from drrho.models.two_tower import (
    TwoTower,
    freeze_own_temperature,
    weights_sha256,
    without_wrappers,
)
from drrho.runtime.files import require_regular
from drrho.runtime.optional import import_optional
from drrho.runtime.records import read_json_object
from drrho.runtime.torchvision import import_torchvision

# Architectures of open_clip's own parts that have a name here; what is exported of them has it not.
ARCHITECTURES = Path(__file__).parent / "architectures"
OWN_ARCHITECTURES = {path.stem: read_json_object(path) for path in ARCHITECTURES.glob("*.json")}
OPEN_CLIP_FILE = "open_clip_config.json"
# What open_clip reads in a folder, and the names that it takes first where there are several.
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth")
WITHOUT_WEIGHTS = {"", ".json", ".jsonl", ".md", ".model", ".txt"}  # of other files there
WEIGHTS_NAMES = {
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "pytorch_model.bin"),
    *("pytorch_model.pth", "model.pth"),
}
# Where checkpoints of other programs keep the weights.
STATE_NAMES = ("state_dict", "model_state_dict", "model", "module")


def import_open_clip() -> ModuleType:
    """Import open_clip, also where torchvision's compiled operators cannot be loaded."""
    import_torchvision()
    open_clip = import_optional("open_clip", user="open_clip models and tokenizers", extra="clip")
    register()
    if not set(open_clip.list_models()) >= OWN_ARCHITECTURES.keys():
        open_clip.add_model_config(ARCHITECTURES)
    return open_clip


def simple_tokenizer(context_length: int) -> Any:
    """Return open_clip's own tokenizer; a process reads the vocabulary once, which takes 0.1 s."""
    tokenizer = copy(_vocabulary())
    tokenizer.context_length = context_length
    return tokenizer


@cache
def _vocabulary() -> Any:
    return import_open_clip().SimpleTokenizer()


def build_open_clip(name: str, pretrained: str | None, *, untrained: bool = False) -> TwoTower:
    """Build an open_clip model in float32, on the CPU.

    Args:
        name: an architecture ("ViT-B-32"), "local-dir:PATH" or "hf-hub:OWNER/NAME".
        pretrained: a tag ("laion2b_s34b_b79k") or a checkpoint file; None gives random
            weights for an architecture, and the folder's own for "local-dir:".
        untrained: whether a "local-dir:" that is a configuration alone gets random weights.

    Raises:
        ValueError: open_clip knows no such architecture or tag, could not load it, or found no
            weights; the message names the nearest names and the remedy.
    """
    open_clip = import_open_clip()
    schema, _, location = name.partition(":")
    if schema == "local-dir":
        _require_local_model(Path(location), untrained=untrained)
    elif schema != "hf-hub":
        name = name.replace("/", "-")  # OpenAI's names have slashes, open_clip's files dashes
        _require_known(open_clip, name, pretrained)
    try:
        config = open_clip.get_model_config(name)
        options = _tokenizer_options(config)
        if schema in ("local-dir", "hf-hub") and not untrained:
            _require_bounded(open_clip, name, Path(location))
        with tempfile.TemporaryDirectory() as folder:
            module, train_transform, eval_transform = open_clip.create_model_and_transforms(
                name,
                pretrained=None if pretrained is None else plain_checkpoint(pretrained, folder),
                precision="fp32",
                # Without it open_clip continues with random weights.
                require_pretrained=pretrained is not None or (":" in name and not untrained),
            )
        tokenizer = open_clip.get_tokenizer(name, **options)
    except Exception as error:  # whatever a hub, a file or a config can raise
        raise ValueError(
            f"open_clip could not load model {name!r} with pretrained {pretrained!r}: "
            f"{shorten(str(error), 800)}. Without a network, pass the path of a downloaded "
            "checkpoint as pretrained, or 'local-dir:PATH' as the model"
        ) from error
    freeze_own_temperature(module)
    return TwoTower(
        module=module,
        train_transform=train_transform,
        eval_transform=eval_transform,
        tokenizer=tokenizer,
        identity={
            "architecture": name,
            "pretrained": str(pretrained),
            "weights_sha256": weights_sha256(module),
            "eval_transform": repr(eval_transform),
            "tokenizer": f"{type(tokenizer).__name__}, context {tokenizer.context_length}",
        },
        architecture={
            OPEN_CLIP_FILE: {
                "model_cfg": config,
                # The transform belongs to the weights: tags of one architecture differ in it.
                "preprocess_cfg": dict(module.visual.preprocess_cfg),
            }
        },
    )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write what open_clip needs to build a Hugging Face tokenizer again; others need nothing."""
    if type(tokenizer).__name__ == "HFTokenizer":
        tokenizer.tokenizer.save_pretrained(str(folder))


def is_configuration_alone(folder: Path) -> bool:
    """Whether a folder has open_clip's configuration, perhaps a tokenizer, and nothing else."""
    if not (folder / OPEN_CLIP_FILE).is_file():
        return False
    return all(path.suffix in WITHOUT_WEIGHTS for path in folder.iterdir() if path.is_file())


def _require_local_model(folder: Path, *, untrained: bool) -> None:
    if not (folder / OPEN_CLIP_FILE).is_file():
        raise ValueError(
            f"model 'local-dir:{folder}': it has no {OPEN_CLIP_FILE}; give the folder that "
            "open_clip's push_to_hf_hub, a Hugging Face download or `drrho train` made"
        )
    if untrained and is_configuration_alone(folder):
        return
    names = {path.name for path in folder.iterdir()}
    weights = sorted(name for name in names if name.endswith(WEIGHTS_SUFFIXES))
    if not weights:
        found = ", ".join(sorted(names - {OPEN_CLIP_FILE})[:5]) or "nothing"
        raise ValueError(
            f"model 'local-dir:{folder}': it has no weights ({', '.join(WEIGHTS_SUFFIXES)}) beside "
            f"{OPEN_CLIP_FILE}, but {found}; was the download complete? open_clip does not read "
            "a .pt there: give it as pretrained of its architecture, or rename it to .pth. A "
            "configuration alone can only be a target, trained from random weights"
        )
    for file in weights:
        require_regular(folder / file)
    if len(weights) > 1 and not WEIGHTS_NAMES.intersection(weights):
        raise ValueError(
            f"model 'local-dir:{folder}': which of {', '.join(weights)} are its weights cannot be "
            "told; leave one there, or call it open_clip_model.safetensors"
        )


def _require_bounded(open_clip: ModuleType, name: str, folder: Path) -> None:
    """Raise ValueError if a configuration asks for more than the weights beside it hold."""
    if name.startswith("hf-hub:"):
        folder = Path(open_clip.download_pretrained_from_hf(str(folder))).parent
    require_configuration_fits(name, folder, Held.by(folder))


def require_configuration_fits(name: str, folder: Path, held: Held) -> None:
    """Raise ValueError if the configuration in a folder asks for more than some weights hold."""
    open_clip, where = import_open_clip(), str(folder / OPEN_CLIP_FILE)
    config = read_json_object(folder / OPEN_CLIP_FILE)
    require_in_proportion(config, held, where=where)

    def build() -> nn.Module:
        own = {"load_weights": False, "pretrained_image": False, "pretrained_text": False}
        return open_clip.create_model(name, device="meta", precision="fp32", **own)

    require_fits(build, held, config=config, where=where)


def _tokenizer_options(config: dict[str, Any]) -> dict[str, Any]:
    """Return options under which the tokenizer of a configuration runs no code of others.

    Raises:
        ValueError: the configuration names a vision model of another place.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    if ":" in str(vision.get("timm_model_name")):
        raise ValueError(
            f"its configuration takes the vision model {vision['timm_model_name']!r} from "
            "elsewhere; name one of timm's own"
        )
    if not text.get("hf_tokenizer_name") and not text.get("hf_model_name"):
        return {}
    import_transformers()  # which then refuses code of others
    return {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}


def plain_checkpoint(path: str, folder: str) -> str:
    """Return a checkpoint as open_clip reads it: rewritten into a folder where its tensors' names
    have prefixes of wrappers, or it is nested otherwise; else itself, also if it is a tag.
    """
    if not Path(path).is_file() or Path(path).suffix in (".npz", ".npy"):
        return path
    if Path(path).suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        if without_wrappers(names) == names:
            return path
        weights: Any = load_file(path)
    else:
        is_zip = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds a {type(content).__name__}, no tensors by name")
        place = next((it for it in STATE_NAMES if isinstance(content.get(it), dict)), None)
        weights = content if place is None else content[place]
        if wrong := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
            raise ValueError(
                f"{path}: {wrong[0]!r} is no tensor, so it is no checkpoint of a model"
            )
        names = list(weights)
        if without_wrappers(names) == names and place in (None, "state_dict"):
            return path
    plain = Path(folder) / "weights.pt"
    renamed = zip(without_wrappers(names), weights.values(), strict=True)
    torch.save({"state_dict": dict(renamed)}, plain)
    return str(plain)


def _require_known(open_clip: ModuleType, name: str, pretrained: str | None) -> None:
    known = open_clip.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        if Path(name).is_dir():
            raise ValueError(
                f"model {name!r} is a folder; name what it holds: a run 'run:{name}', a model of "
                f"open_clip 'local-dir:{name}', or of Hugging Face 'transformers:{name}'"
            )
        raise ValueError(
            f"model {name!r} is neither 'small' or 'small-vit' nor an architecture of open_clip "
            f"{open_clip.__version__}, 'local-dir:PATH', 'hf-hub:OWNER/NAME', "
            f"'transformers:PATH', 'python:FILE.py' or 'run:PATH'; "
            f"near: {near}"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is not None and pretrained not in tags and not Path(pretrained).is_file():
        raise ValueError(
            f"pretrained {pretrained!r} is neither a file nor one of open_clip's tags for "
            f"{name}: {tags}"
        )
    # open_clip only warns when the weights were trained with another activation.
    quick = open_clip.pretrained.get_pretrained_cfg(name, pretrained or "").get("quick_gelu", False)
    if pretrained in tags and quick != open_clip.get_model_config(name).get("quick_gelu", False):
        other = f"{name}-quickgelu" if quick else name.removesuffix("-quickgelu")
        raise ValueError(
            f"the weights {pretrained!r} were trained with {'QuickGELU' if quick else 'GELU'}, "
            f"{name} has the other activation; use model {other!r}"
        )
