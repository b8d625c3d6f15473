"""open_clip's vision transformer and text transformer under the names of transformers' CLIP."""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from drrho.models.open_clip import import_open_clip

# All that a CLIPModel has an option for; anything else would be lost.
VISION_OPTIONS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
TEXT_OPTIONS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
MODEL_OPTIONS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The architecture with what its configuration leaves to open_clip.

    Raises:
        ValueError: it has what a CLIPModel has not.
    """
    open_clip = import_open_clip()
    towers = {
        "vision_cfg": (asdict(open_clip.CLIPVisionCfg()), VISION_OPTIONS),
        "text_cfg": (asdict(open_clip.CLIPTextCfg()), TEXT_OPTIONS),
    }
    lost = [
        name
        for name, value in config.items()
        if name not in MODEL_OPTIONS and value not in (None, False)
    ]
    for tower, (defaults, known) in towers.items():
        lost += [
            name
            for name, value in config[tower].items()
            if name not in known and value not in (None, False, defaults.get(name))
        ]
    vision = towers["vision_cfg"][0] | config["vision_cfg"]
    if lost or not isinstance(vision["layers"], int):
        raise inexpressible(f"it has {', '.join(lost) or 'no vision transformer'}")
    return config | {"vision_cfg": vision, "text_cfg": towers["text_cfg"][0] | config["text_cfg"]}


def hugging_face_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a CLIPModel, from `with_defaults`."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    return {
        "projection_dim": config["embed_dim"],
        "vision_config": {
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": activation,
            "projection_dim": config["embed_dim"],
        },
        "text_config": {
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text["mlp_ratio"]),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "hidden_act": activation,
            "projection_dim": config["embed_dim"],
            "bos_token_id": text["vocab_size"] - 2,
            "eos_token_id": text["vocab_size"] - 1,
        },
    }


def converted_weights(weights: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
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


def inexpressible(reason: str) -> ValueError:
    """The error of a model that has no form as a CLIPModel."""
    return ValueError(
        f"this model cannot be written as a Hugging Face CLIPModel: {reason}. Those with "
        "open_clip's own vision and text transformers can, such as ViT-B-32; export others for "
        "open_clip"
    )
