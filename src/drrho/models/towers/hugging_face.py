"""Vision models and text models of transformers (ViT, DINOv2, BERT, ...) from a local folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from drrho.models.hugging_face import (
    PaddingTokenizer,
    ProcessorTransform,
    build_hugging_face,
    in_float32,
    open_folder,
    require_bounded,
    text_mask,
)
from drrho.models.towers.tower import (
    ImageTower,
    Side,
    TextTower,
    image_tower_of,
    text_tower_of,
)
from drrho.models.two_tower import weights_sha256

LONGEST_TEXT = 512  # tokens, where a tokenizer knows no limit


class HuggingFaceImages(nn.Module):
    """The pooled output of a vision model; without one the mean over its places, or its CLS token.

    Args:
        model: vision model of transformers.
        processor: its image processor, saved with it.
    """

    def __init__(self, model: nn.Module, processor: Any) -> None:
        super().__init__()
        self.model: Any = model
        self.processor = processor

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch features"]:
        found = self.model(pixel_values=images)
        pooled = getattr(found, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        hidden = found.last_hidden_state
        return hidden[:, 0] if hidden.ndim == 3 else hidden.flatten(2).mean(dim=2)

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write a folder that transformers itself loads."""
        self.processor.save_pretrained(str(folder))
        _save(self.model, folder, weights)


class HuggingFaceTexts(nn.Module):
    """The mean of a text model's last hidden states over the tokens of a text.

    Args:
        model: text model of transformers.
        tokenizer: its tokenizer, saved with it.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.pad_token: int = tokenizer.pad_token_id
        self.end_is_pad = tokenizer.pad_token_id == tokenizer.eos_token_id

    def forward(self, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch features"]:
        tokens, mask = trimmed(tokens, self.pad_token, end_is_pad=self.end_is_pad)
        hidden = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write a folder that transformers itself loads."""
        self.tokenizer.save_pretrained(str(folder))
        _save(self.model, folder, weights)


def trimmed(
    tokens: Int[Tensor, "batch context"], pad_token: int, *, end_is_pad: bool
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """Cut off the columns that are padding in every text; return tokens and mask."""
    mask = text_mask(tokens, pad_token, end_is_pad=end_is_pad)
    used = mask.any(dim=0).nonzero().squeeze(1)
    span = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
    return tokens[:, span], mask[:, span]


def build_hugging_face_tower(folder: Path, side: Side) -> ImageTower | TextTower:
    """Load one tower from a folder: that of a dual encoder, or a vision or text model alone.

    Nothing is fetched, and no code or pickle from the folder is run.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it cannot be loaded, or has weights that do not fit.
    """
    transformers, local = open_folder(folder)
    try:
        require_bounded(folder, transformers, local)
        config = transformers.AutoConfig.from_pretrained(str(folder), **local)
        if hasattr(config, "text_config") and hasattr(config, "vision_config"):
            model = build_hugging_face(folder)
            return image_tower_of(model) if side == "image" else text_tower_of(model)
        loader = transformers.AutoImageProcessor if side == "image" else transformers.AutoTokenizer
        prepares = loader.from_pretrained(str(folder), **local)
        model, found = transformers.AutoModel.from_pretrained(
            str(folder), use_safetensors=True, output_loading_info=True, **local
        )
    except Exception as error:  # whatever files and configurations can raise
        raise ValueError(
            f"'transformers:{folder}' cannot be loaded as a model of {side}s: {error}. It needs "
            "config.json, model.safetensors (a .bin is a pickle, which is not read), and "
            + ("preprocessor_config.json" if side == "image" else "the tokenizer's files")
        ) from error
    # A pooler that was never trained is left out: transformers would draw it at random.
    missing = sorted(found["missing_keys"])
    if missing and all("pooler" in name for name in missing):
        model.pooler = None
    elif missing:
        raise ValueError(
            f"'transformers:{folder}': its weights lack {len(missing)} parameters of a "
            f"{type(model).__name__}, such as {missing[0]}; was the download complete?"
        )
    model = in_float32(model, folder)
    return _images(model, prepares) if side == "image" else _texts(model, prepares, folder)


def _images(model: Any, processor: Any) -> ImageTower:
    module, transform = HuggingFaceImages(model, processor), ProcessorTransform(processor)
    return ImageTower(
        module=module,
        transform=transform,
        identity={
            "architecture": f"transformers {type(model).__name__}",
            "weights_sha256": weights_sha256(module),
            "eval_transform": repr(transform),
        },
    )


def _texts(model: Any, tokenizer: Any, folder: Path) -> TextTower:
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"'transformers:{folder}': its tokenizer has no padding token; set the one that it "
            "was trained with and save it again: tokenizer.pad_token = ..."
        )
    positions = getattr(model.config, "max_position_embeddings", LONGEST_TEXT)
    context = min(positions, tokenizer.model_max_length, LONGEST_TEXT)
    module = HuggingFaceTexts(model, tokenizer)
    return TextTower(
        module=module,
        tokenizer=PaddingTokenizer(tokenizer, context),
        identity={
            "architecture": f"transformers {type(model).__name__}, mean of the tokens",
            "weights_sha256": weights_sha256(module),
            "tokenizer": f"{type(tokenizer).__name__}, context {context}",
        },
    )


def _save(model: Any, folder: Path, weights: Mapping[str, Tensor]) -> None:
    plain = {name.removeprefix("model."): value for name, value in weights.items()}
    model.save_pretrained(str(folder), state_dict=plain)
