"""Export of trained models: open_clip's state dict, a folder for transformers."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from drrho.models.clip_conversion import (
    converted_weights,
    hugging_face_config,
    inexpressible,
    with_defaults,
)
from drrho.models.hugging_face import (
    HuggingFaceTwoTower,
    as_tensor,
    import_transformers,
    save_hugging_face,
)
from drrho.models.open_clip import (
    OPEN_CLIP_FILE,
    OWN_ARCHITECTURES,
    import_open_clip,
    simple_tokenizer,
)
from drrho.models.small import SmallTwoTower, open_clip_form
from drrho.models.towers.text_pairs import TextPairTower, save_text_pairs
from drrho.models.two_tower import TwoTower
from drrho.runtime.files import opened_atomically, write_atomically, write_json

WEIGHTS_FILE = "open_clip_model.safetensors"  # the name that open_clip looks for
# Largest difference of an embedding after conversion, relative to its length.
CONVERSION_TOLERANCE = 1e-4
THEIR_TOKENS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


def export_open_clip(model: TwoTower, path: Path) -> None:
    """Write what `open_clip.create_model_and_transforms(NAME, pretrained=PATH)` loads.

    The small model becomes a folder that it loads as "local-dir:PATH", in a program that has called
    `drrho.models.small.register`.

    Args:
        path: `.safetensors`, or `.pt` as open_clip's own training writes it; without ending a
            folder with the configuration too, which `small` and `small-vit` need.

    Raises:
        ValueError: another ending, or a model that is none of open_clip's.
    """
    if isinstance(model.module, SmallTwoTower):
        _export_small(model.module, path)
        return
    config = _open_clip_config(model)
    if path.suffix and config["model_cfg"] in OWN_ARCHITECTURES.values():
        raise _needs_folder(path)
    weights = {name: value.contiguous() for name, value in model.module.state_dict().items()}
    match path.suffix:
        case ".safetensors":
            write_atomically(path, save(weights))
        case ".pt":
            with opened_atomically(path) as file:
                torch.save({"state_dict": weights}, file)
        case "":
            write_atomically(path / WEIGHTS_FILE, save(weights))
            write_json(path / OPEN_CLIP_FILE, config)
        case _:
            raise ValueError(
                f"output must end in .safetensors or .pt, or be a folder without ending, got {path}"
            )


def export_hugging_face(model: TwoTower, folder: Path) -> None:
    """Write a folder that `transformers` loads, with image processor and tokenizer.

    A model of open_clip becomes a `CLIPModel`, after it was compared with the model on random
    inputs; one of Hugging Face's is written as what it is.

    Raises:
        ValueError: the architecture has what a CLIPModel has not.
    """
    if isinstance(model.module, HuggingFaceTwoTower):
        save_hugging_face(model, folder, model.module.state_dict())
        return
    if isinstance(model.module, TextPairTower):
        save_text_pairs(model, folder, model.module.state_dict())
        return
    config = _open_clip_config(model)
    architecture = with_defaults(config["model_cfg"])
    clip_config = hugging_face_config(architecture)
    transformers = import_transformers()
    processor = _image_processor(architecture, config["preprocess_cfg"], transformers)
    converted = transformers.CLIPModel(transformers.CLIPConfig(**clip_config)).eval()
    weights = converted_weights(model.module.state_dict(), clip_config)
    unknown = converted.load_state_dict(weights, strict=False)
    if unknown.unexpected_keys or any("position_ids" not in k for k in unknown.missing_keys):
        raise inexpressible(f"its weights differ: {unknown}")
    _require_equal(model.module, converted, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(str(folder))
    _tokenizer(architecture, transformers).save_pretrained(str(folder))
    converted.save_pretrained(str(folder))


def _export_small(module: SmallTwoTower, folder: Path) -> None:
    if folder.suffix in (".pt", ".safetensors"):
        raise _needs_folder(folder)
    vocabulary_size = len(module.token_embedding.weight)
    config, weights = open_clip_form(
        module.config, module.state_dict(), vocabulary_size=vocabulary_size
    )
    content = {name: value.contiguous() for name, value in weights.items()}
    write_atomically(folder / WEIGHTS_FILE, save(content))
    write_json(folder / OPEN_CLIP_FILE, config)


def _needs_folder(path: Path) -> ValueError:
    return ValueError(
        f"a small model is no architecture that open_clip has by name, and is written as a folder "
        f"with its configuration; got {path}, give a name without ending"
    )


def _open_clip_config(model: TwoTower) -> dict[str, Any]:
    if OPEN_CLIP_FILE not in model.architecture:
        raise ValueError(
            f"model {model.identity['architecture']!r} is none of open_clip's and cannot be "
            "written as one; `small` can be written for open_clip, and a model 'transformers:PATH' "
            "can be written for Hugging Face"
        )
    return model.architecture[OPEN_CLIP_FILE]


@torch.no_grad()
def _require_equal(module: Any, converted: nn.Module, config: dict[str, Any]) -> None:
    """Raise ValueError unless both models embed random inputs alike."""
    generator = torch.Generator().manual_seed(0)
    size, text = config["vision_cfg"]["image_size"], config["text_cfg"]
    images = torch.randn(2, 3, size, size, generator=generator)
    tokens = torch.zeros(2, text["context_length"], dtype=torch.int64)
    tokens[:, 0] = text["vocab_size"] - 2
    tokens[:, 1:4] = torch.randint(1, text["vocab_size"] - 2, (2, 3), generator=generator)
    tokens[:, 4] = text["vocab_size"] - 1
    training = module.training
    module.eval()
    pairs = (
        (module.encode_image(images), converted.get_image_features(pixel_values=images)),  # pyright: ignore[reportCallIssue]
        (module.encode_text(tokens), converted.get_text_features(input_ids=tokens)),  # pyright: ignore[reportCallIssue]
    )
    module.train(training)
    for ours, theirs in pairs:
        difference = float((ours - as_tensor(theirs)).norm() / ours.norm())
        if not difference < CONVERSION_TOLERANCE:
            raise inexpressible(f"the converted model's embeddings differ by {difference:.2g}")


def _image_processor(config: dict[str, Any], preprocess: dict[str, Any], transformers: Any) -> Any:
    side = config["vision_cfg"]["image_size"]
    square = {"height": side, "width": side}
    open_clip = import_open_clip()
    resize_mode = preprocess.get("resize_mode") or "shortest"
    if resize_mode not in ("shortest", "squash"):
        raise inexpressible(f"its images are resized with {resize_mode!r}")
    return transformers.CLIPImageProcessor(
        size=square if resize_mode == "squash" else {"shortest_edge": side},
        crop_size=square,
        resample=2 if preprocess.get("interpolation") == "bilinear" else 3,
        image_mean=list(preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        image_std=list(preprocess.get("std") or open_clip.OPENAI_DATASET_STD),
    )


def _tokenizer(config: dict[str, Any], transformers: Any) -> Any:
    """CLIP's tokenizer, which open_clip ships, from files as transformers reads them."""
    length = config["text_cfg"]["context_length"]
    ours = simple_tokenizer(length)
    merges = sorted(ours.bpe_ranks, key=ours.bpe_ranks.get)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = {THEIR_TOKENS.get(name, name): i for name, i in ours.encoder.items()}
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
        (Path(folder) / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
