"""open_clip's vision transformer and text transformer under the names of transformers' CLIP."""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from drrho.models.open_clip import import_open_clip

# All that a CLIPModel has an option for; anything else would be lost.
VISION_OPTIONS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
TEXT_OPTIONS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
MODEL_OPTIONS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}

# open_clip's names -> transformers' names: of tensors, of affine maps, of the towers' lists of
# layers, and of the affine maps in each layer.
TENSORS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
AFFINE = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
KINDS = ("weight", "bias")
ENCODERS = {
    "vision_config": ("visual.transformer.resblocks", "vision_model.encoder.layers"),
    "text_config": ("transformer.resblocks", "text_model.encoder.layers"),
}
LAYER = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Fill in open_clip's defaults; raises ValueError for what a CLIPModel lacks."""
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
    """Make the configuration of a CLIPModel from that of `with_defaults`."""
    vision, text = config["vision_cfg"], config["text_cfg"]

    def transformer(tower: dict[str, Any], *, heads: int) -> dict[str, Any]:
        return {
            "hidden_size": tower["width"],
            "intermediate_size": int(tower["width"] * tower["mlp_ratio"]),
            "num_hidden_layers": tower["layers"],
            "num_attention_heads": heads,
            "hidden_act": "quick_gelu" if config.get("quick_gelu") else "gelu",
            "projection_dim": config["embed_dim"],
        }

    return {
        "projection_dim": config["embed_dim"],
        "vision_config": transformer(vision, heads=vision["width"] // vision["head_width"])
        | {"image_size": vision["image_size"], "patch_size": vision["patch_size"]},
        "text_config": transformer(text, heads=text["heads"])
        | {
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "bos_token_id": text["vocab_size"] - 2,
            "eos_token_id": text["vocab_size"] - 1,
        },
    }


def converted_weights(weights: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Rename open_clip's weights to transformers' names."""
    found = {theirs: weights[ours] for ours, theirs in TENSORS.items()}
    found["visual_projection.weight"] = weights["visual.proj"].T.contiguous()
    found["text_projection.weight"] = weights["text_projection"].T.contiguous()
    affine = dict(AFFINE)
    for tower, (ours, theirs) in ENCODERS.items():
        for layer in range(config[tower]["num_hidden_layers"]):
            source, target = f"{ours}.{layer}", f"{theirs}.{layer}"
            affine |= {f"{source}.{one}": f"{target}.{other}" for one, other in LAYER.items()}
            for kind in KINDS:
                parts = weights[f"{source}.attn.in_proj_{kind}"].chunk(3)
                for name, part in zip("qkv", parts, strict=True):
                    found[f"{target}.self_attn.{name}_proj.{kind}"] = part.contiguous()
    for ours, theirs in affine.items():
        found |= {f"{theirs}.{kind}": weights[f"{ours}.{kind}"] for kind in KINDS}
    return found


def inexpressible(reason: str) -> ValueError:
    """Make the error for a model that cannot be a CLIPModel."""
    return ValueError(
        f"this model cannot be written as a Hugging Face CLIPModel: {reason}. Those with "
        "open_clip's own vision and text transformers can, such as ViT-B-32; export others for "
        "open_clip"
    )
