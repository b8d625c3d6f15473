"""open_clip's models: any architecture, pretrained tag, `local-dir:` or `hf-hub:`."""

import difflib
from pathlib import Path
from types import ModuleType
from typing import Any

from drrho.models.two_tower import TwoTower, freeze_own_temperature, weights_sha256
from drrho.runtime.optional import import_optional
from drrho.runtime.torchvision import import_torchvision

OPEN_CLIP_FILE = "open_clip_config.json"
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def import_open_clip() -> ModuleType:
    """Import open_clip, also where torchvision's compiled operators cannot be loaded."""
    import_torchvision()
    return import_optional("open_clip", user="open_clip models and tokenizers", extra="clip")


def build_open_clip(name: str, pretrained: str | None) -> TwoTower:
    """Build an open_clip model in float32, on the CPU.

    Args:
        name: an architecture ("ViT-B-32"), "local-dir:PATH" or "hf-hub:OWNER/NAME".
        pretrained: a tag ("laion2b_s34b_b79k") or a checkpoint file; None gives random
            weights for an architecture, and the folder's own for "local-dir:".

    Raises:
        ValueError: open_clip knows no such architecture or tag, or could not load it; the
            message names the nearest names and the remedy.
    """
    open_clip = import_open_clip()
    schema, _, location = name.partition(":")
    if schema == "local-dir":
        _require_local_model(Path(location))
    elif schema != "hf-hub":
        _require_known(open_clip, name, pretrained)
    try:
        module, train_transform, eval_transform = open_clip.create_model_and_transforms(
            name, pretrained=pretrained, precision="fp32"
        )
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # whatever a hub, a file or a config can raise
        raise ValueError(
            f"open_clip could not load model {name!r} with pretrained {pretrained!r}: {error}. "
            "Without a network, pass the path of a downloaded checkpoint as pretrained, or "
            "'local-dir:PATH' as the model"
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
                "model_cfg": open_clip.get_model_config(name),
                # The transform belongs to the weights: tags of one architecture differ in it.
                "preprocess_cfg": dict(module.visual.preprocess_cfg),
            }
        },
    )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write what open_clip needs to build a Hugging Face tokenizer again; others need nothing."""
    if type(tokenizer).__name__ == "HFTokenizer":
        tokenizer.tokenizer.save_pretrained(str(folder))


def _require_local_model(folder: Path) -> None:
    if not (folder / OPEN_CLIP_FILE).is_file():
        raise ValueError(
            f"model 'local-dir:{folder}': it has no {OPEN_CLIP_FILE}; give the folder that "
            "open_clip's push_to_hf_hub, a Hugging Face download or `drrho train` made"
        )
    # open_clip only logs a warning here, and goes on with random weights.
    if not any(path.suffix in WEIGHTS_SUFFIXES for path in folder.iterdir()):
        raise ValueError(
            f"model 'local-dir:{folder}': it has no weights ({', '.join(WEIGHTS_SUFFIXES)}); "
            "was the download complete?"
        )


def _require_known(open_clip: ModuleType, name: str, pretrained: str | None) -> None:
    known = open_clip.list_models()
    # OpenAI's names have slashes, open_clip's configurations have dashes; it accepts both.
    if name.replace("/", "-") not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        raise ValueError(
            f"model {name!r} is neither 'small' nor an architecture of open_clip "
            f"{open_clip.__version__}, 'local-dir:PATH', 'hf-hub:OWNER/NAME', "
            f"'transformers:PATH', 'python:FILE.py' or 'run:PATH'; "
            f"near: {near}"
        )
    name = name.replace("/", "-")
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
