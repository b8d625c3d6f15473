"""Trained models as other programs load them: open_clip's state dict, a Hugging Face CLIP."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from drrho.files import opened_atomically, write_atomically
from drrho.models.hugging_face import as_tensor, import_transformers
from drrho.models.open_clip import CONFIG_FILE, import_open_clip
from drrho.models.two_tower import TwoTower

# Largest difference of an embedding after conversion, relative to its length.
CONVERSION_TOLERANCE = 1e-4
# All that a CLIPModel has an option for; anything else would be lost.
VISION_OPTIONS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
TEXT_OPTIONS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
THEIR_TOKENS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
MODEL_OPTIONS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}


def export_open_clip(model: TwoTower, path: Path) -> None:
    """Writes what `open_clip.create_model_and_transforms(NAME, pretrained=PATH)` loads.

    Args:
        model: built from open_clip.
        path: `.safetensors`, or `.pt` as open_clip's own training writes it.

    Raises:
        ValueError: another ending, or a model that is none of open_clip's.
    """
    _open_clip_config(model)
    weights = {name: value.contiguous() for name, value in model.module.state_dict().items()}
    match path.suffix:
        case ".safetensors":
            write_atomically(path, save(weights))
        case ".pt":
            with opened_atomically(path) as file:
                torch.save({"state_dict": weights}, file)
        case _:
            raise ValueError(f"output must end in .safetensors or .pt, got {path}")


def export_hugging_face(model: TwoTower, folder: Path) -> None:
    """Writes a folder that `transformers.CLIPModel.from_pretrained` loads, with image processor
    and tokenizer, after it was compared with the model on random inputs.

    Raises:
        ValueError: the architecture has what a CLIPModel has not.
    """
    config = _open_clip_config(model)
    clip_config = _hugging_face_config(config["model_cfg"])
    transformers = import_transformers()
    converted = transformers.CLIPModel(transformers.CLIPConfig(**clip_config)).eval()
    weights = _converted(model.module.state_dict(), clip_config)
    unknown = converted.load_state_dict(weights, strict=False)
    if unknown.unexpected_keys or any("position_ids" not in k for k in unknown.missing_keys):
        raise _inexpressible(f"its weights differ: {unknown}")
    _require_equal(model.module, converted, config["model_cfg"])
    folder.mkdir(parents=True, exist_ok=True)
    _image_processor(config, transformers).save_pretrained(str(folder))
    _tokenizer(config["model_cfg"], transformers).save_pretrained(str(folder))
    converted.save_pretrained(str(folder))


def _open_clip_config(model: TwoTower) -> dict[str, Any]:
    if CONFIG_FILE not in model.architecture:
        raise ValueError(
            f"model {model.identity['architecture']!r} is none of open_clip's and cannot be "
            "written as one; `small` is read by drrho alone, and a model 'transformers:PATH' is "
            "written as a folder of transformers already"
        )
    return model.architecture[CONFIG_FILE]


def _hugging_face_config(config: dict[str, Any]) -> dict[str, Any]:
    vision, text = config["vision_cfg"], config["text_cfg"]
    lost = [
        name
        for given, known in (
            (config, MODEL_OPTIONS),
            (vision, VISION_OPTIONS),
            (text, TEXT_OPTIONS),
        )
        for name, value in given.items()
        if name not in known and value not in (None, False)
    ]
    if lost or not isinstance(vision.get("layers"), int):
        raise _inexpressible(f"it has {', '.join(lost) or 'no vision transformer'}")
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    return {
        "projection_dim": config["embed_dim"],
        "vision_config": {
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4.0)),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": activation,
            "projection_dim": config["embed_dim"],
        },
        "text_config": {
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4.0)),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "hidden_act": activation,
            "projection_dim": config["embed_dim"],
            "bos_token_id": text["vocab_size"] - 2,
            "eos_token_id": text["vocab_size"] - 1,
        },
    }


def _converted(weights: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """open_clip's weights under transformers' names."""
    return (
        _converted_layers(
            weights,
            "visual.transformer.resblocks",
            "vision_model.encoder.layers",
            num_layers=config["vision_config"]["num_hidden_layers"],
        )
        | _converted_layers(
            weights,
            "transformer.resblocks",
            "text_model.encoder.layers",
            num_layers=config["text_config"]["num_hidden_layers"],
        )
        | _affine(weights, "visual.ln_pre", "vision_model.pre_layrnorm")
        | _affine(weights, "visual.ln_post", "vision_model.post_layernorm")
        | _affine(weights, "ln_final", "text_model.final_layer_norm")
        | {
            theirs: weights[ours]
            for ours, theirs in (
                ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
                ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
                (
                    "visual.positional_embedding",
                    "vision_model.embeddings.position_embedding.weight",
                ),
                ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
                ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
                ("logit_scale", "logit_scale"),
            )
        }
        | {
            "visual_projection.weight": weights["visual.proj"].T.contiguous(),
            "text_projection.weight": weights["text_projection"].T.contiguous(),
        }
    )


def _converted_layers(
    weights: dict[str, Tensor], ours: str, theirs: str, *, num_layers: int
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for layer in range(num_layers):
        source, target = f"{ours}.{layer}", f"{theirs}.{layer}"
        for kind in ("weight", "bias"):
            parts = weights[f"{source}.attn.in_proj_{kind}"].chunk(3)
            for name, part in zip("qkv", parts, strict=True):
                found[f"{target}.self_attn.{name}_proj.{kind}"] = part.contiguous()
        for one, other in (
            ("attn.out_proj", "self_attn.out_proj"),
            ("ln_1", "layer_norm1"),
            ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
        ):
            found |= _affine(weights, f"{source}.{one}", f"{target}.{other}")
    return found


def _affine(weights: dict[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    return {f"{theirs}.{kind}": weights[f"{ours}.{kind}"] for kind in ("weight", "bias")}


@torch.no_grad()
def _require_equal(module: Any, converted: nn.Module, config: dict[str, Any]) -> None:
    """A conversion that is only nearly right would be found much later."""
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
            raise _inexpressible(f"the converted model's embeddings differ by {difference:.2g}")


def _image_processor(config: dict[str, Any], transformers: Any) -> Any:
    size = config["model_cfg"]["vision_cfg"]["image_size"]
    preprocess = config["preprocess_cfg"]
    open_clip = import_open_clip()
    return transformers.CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        resample=2 if preprocess.get("interpolation") == "bilinear" else 3,
        image_mean=list(preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        image_std=list(preprocess.get("std") or open_clip.OPENAI_DATASET_STD),
    )


def _tokenizer(config: dict[str, Any], transformers: Any) -> Any:
    """CLIP's tokenizer, which open_clip ships, from files as transformers reads them."""
    length = config["text_cfg"]["context_length"]
    ours = import_open_clip().SimpleTokenizer(context_length=length)
    merges = sorted(ours.bpe_ranks, key=ours.bpe_ranks.get)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = {THEIR_TOKENS.get(name, name): i for name, i in ours.encoder.items()}
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
        (Path(folder) / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
        return transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _inexpressible(reason: str) -> ValueError:
    return ValueError(
        f"this model cannot be written as a Hugging Face CLIPModel: {reason}. Those with "
        "open_clip's own vision and text transformers can, such as ViT-B-32; export others for "
        "open_clip"
    )
