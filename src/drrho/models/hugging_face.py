"""Dual encoders of transformers (CLIP, SigLIP, AltCLIP, ...) from a local folder."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from drrho.models.bounds import Held, require_fits, require_in_proportion
from drrho.models.two_tower import TwoTower, freeze_own_temperature, weights_sha256
from drrho.runtime.optional import import_optional
from drrho.runtime.records import read_json_object
from drrho.runtime.torchvision import import_torchvision

HUGGING_FACE_FILE, PROCESSOR_FILE = "config.json", "preprocessor_config.json"
# Types of models that were trained on padded texts without a mask.
WITHOUT_MASK = {"siglip"}
# Types that have both methods, but take images of any shape, or embed every patch and token.
OTHERWISE = {"siglip2", "flava"}


def import_transformers() -> ModuleType:
    """Import transformers, also where torchvision's compiled operators cannot be loaded."""
    import_torchvision()
    transformers = import_optional(
        "transformers", user="models 'transformers:PATH'", extra="clip,hf"
    )
    # A folder with code of its own is refused, and not asked about on the terminal.
    loading: Any = importlib.import_module("transformers.dynamic_module_utils")
    loading.TIME_OUT_REMOTE_CODE = 0
    return transformers


class HuggingFaceTwoTower(nn.Module):
    """open_clip's interface for a model with `get_image_features` and `get_text_features`.

    Args:
        pad_token: id of padding; None gives the text tower no mask.
        end_token: id that ends a text.
    """

    def __init__(self, model: nn.Module, *, pad_token: int | None, end_token: int | None) -> None:
        super().__init__()
        self.model: Any = model  # nn.Module does not say that its attributes are functions
        self.pad_token = pad_token
        self.end_token = end_token

    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"], normalize: bool = False
    ) -> Float[Tensor, "batch dim"]:
        """Embed images that went through the model's processor."""
        return _embeddings(self.model.get_image_features(pixel_values=images), normalize)

    def encode_text(
        self, tokens: Int[Tensor, "batch context"], normalize: bool = False
    ) -> Float[Tensor, "batch dim"]:
        """Embed token ids, padded as by the tokenizer."""
        mask = None
        if self.pad_token is not None:
            end_is_pad = self.pad_token == self.end_token
            mask = text_mask(tokens, self.pad_token, end_is_pad=end_is_pad)
        found = self.model.get_text_features(input_ids=tokens, attention_mask=mask)
        return _embeddings(found, normalize)


def text_mask(
    tokens: Int[Tensor, "batch context"], pad_token: int, *, end_is_pad: bool
) -> Int[Tensor, "batch context"]:
    """Mark the first to the last token that is no padding; in between, its id is a word."""
    text = (tokens != pad_token).long()
    begun = text.cumsum(dim=1) > 0
    lasts = text.flip(1).cumsum(dim=1).flip(1) > 0
    mask = begun & lasts
    if end_is_pad:  # the token after the last word ends the text
        mask = mask | nn.functional.pad(mask, (1, 0))[:, :-1]
    return mask.long()


class ProcessorTransform:
    """A model's image processor as a transform of one RGB image."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]

    def __repr__(self) -> str:
        return json.dumps(self.processor.to_dict(), sort_keys=True, default=str)


class PaddingTokenizer:
    """A model's tokenizer, which pads every text to the same length."""

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length

    def __call__(self, captions: list[str]) -> Tensor:
        return self.tokenizer(
            captions,
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )["input_ids"]


def build_hugging_face(folder: Path) -> TwoTower:
    """Load a dual encoder in float32, on the CPU, with its own processor and tokenizer.

    Nothing is fetched, and no code or pickle from the folder is run.

    Args:
        folder: what `save_pretrained` or `huggingface-cli download` wrote: config.json, weights as
            safetensors, image processor and tokenizer.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it cannot be loaded, or is no dual encoder.
    """
    transformers, local = open_folder(folder)
    try:
        require_bounded(folder, transformers, local)
        model, found = transformers.AutoModel.from_pretrained(
            str(folder), use_safetensors=True, output_loading_info=True, **local
        )
        processor = transformers.AutoImageProcessor.from_pretrained(str(folder), **local)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **local)
    except Exception as error:  # whatever files and configurations can raise
        raise ValueError(
            f"model 'transformers:{folder}' cannot be loaded: {error}. {_remedy(folder)}"
        ) from error
    methods = [getattr(model, f"get_{kind}_features", None) for kind in ("image", "text")]
    if not all(map(callable, methods)) or model.config.model_type in OTHERWISE:
        raise ValueError(
            f"model 'transformers:{folder}' is a {type(model).__name__}, which does not embed "
            "images of one size and texts in one space; CLIP, SigLIP, AltCLIP, ChineseCLIP and "
            "their like do"
        )
    # transformers draws what is missing and passes over what is left, and only logs it.
    missing, left = (sorted(found[f"{name}_keys"]) for name in ("missing", "unexpected"))
    left = [name for name in left if "position_ids" not in name]
    if missing or left:
        raise ValueError(
            f"model 'transformers:{folder}': its weights lack {len(missing)} parameters of a "
            f"{type(model).__name__} {missing[:1]} and have {len(left)} others {left[:1]}; was it "
            "trained as another class, saved with a wrapper's prefix, or the download incomplete?"
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"model 'transformers:{folder}': its tokenizer has no padding token; set the one that "
            "it was trained with and save it again: tokenizer.pad_token = ..."
        )
    return _two_tower(in_float32(model, folder), processor, tokenizer)


def open_folder(folder: Path) -> tuple[Any, dict[str, bool]]:
    """Check a folder of transformers; return the library, and the options that keep it local.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the folder names code of its own.
    """
    if not (folder / HUGGING_FACE_FILE).is_file():
        raise FileNotFoundError(
            f"model 'transformers:{folder}': it has no {HUGGING_FACE_FILE}; give the folder that "
            "save_pretrained or a download from Hugging Face made"
        )
    require_no_code(folder)
    return import_transformers(), {"local_files_only": True, "trust_remote_code": False}


def in_float32(model: Any, folder: Path) -> Any:
    """Convert a loaded model's weights to float32; quantised ones have types of their own."""
    # Named here: what from_pretrained calls the type changed between its versions.
    return model if _quantised_by(folder) else model.to(torch.float32)


def _remedy(folder: Path) -> str:
    method = _quantised_by(folder)
    if method is not None:
        return (
            f"Its weights are quantised by {method}: install the package of that method, and use a "
            "device that it has code for, or take the weights that are not quantised"
        )
    return (
        "It needs config.json, model.safetensors (a .bin is a pickle, which is not read: load and "
        "save it with safe_serialization=True), preprocessor_config.json and the tokenizer's files"
    )


def _quantised_by(folder: Path) -> str | None:
    """Return the method by which weights are quantised; None for plain ones."""
    found = read_json_object(folder / HUGGING_FACE_FILE).get("quantization_config")
    return None if found is None else str(dict(found).get("quant_method", "an unknown method"))


def require_no_code(folder: Path) -> None:
    """Raise ValueError if a folder names kernels, which are code, or weights of another place."""
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"model 'transformers:{folder}' is an adapter of another model; merge it into that "
            "model first (merge_and_unload of peft) and save the result"
        )
    parts: list[Any] = [read_json_object(folder / HUGGING_FACE_FILE)]
    while parts:
        part = parts.pop()
        parts += [value for value in part.values() if isinstance(value, dict)]
        for name, value in part.items():
            if name.endswith("_implementation") and "/" in str(value):
                raise ValueError(
                    f"model 'transformers:{folder}': {name} = {value!r} of its {HUGGING_FACE_FILE} "
                    "names code to fetch and run; remove it"
                )


def require_bounded(folder: Path, transformers: Any, options: Mapping[str, Any]) -> None:
    """Raise ValueError if a configuration asks for more than the weights beside it hold."""
    held = Held.by(folder)
    for name in (PROCESSOR_FILE, HUGGING_FACE_FILE):
        path = folder / name
        if path.is_file():
            require_in_proportion(read_json_object(path), held, where=str(path))

    def build() -> nn.Module:
        config = transformers.AutoConfig.from_pretrained(str(folder), **options)
        return transformers.AutoModel.from_config(config)

    path = folder / HUGGING_FACE_FILE
    require_fits(build, held, config=read_json_object(path), where=str(path))


def save_hugging_face(model: TwoTower, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a folder that transformers itself loads."""
    module, tokenizer, transform = model.module, model.tokenizer, model.eval_transform
    assert isinstance(module, HuggingFaceTwoTower)
    assert isinstance(tokenizer, PaddingTokenizer)
    assert isinstance(transform, ProcessorTransform)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.tokenizer.save_pretrained(str(folder))
    transform.processor.save_pretrained(str(folder))
    module.model.save_pretrained(
        str(folder),
        state_dict={name.removeprefix("model."): value for name, value in weights.items()},
    )


def _two_tower(model: Any, processor: Any, tokenizer: Any) -> TwoTower:
    text_config = getattr(model.config, "text_config", model.config)
    context_length = min(text_config.max_position_embeddings, tokenizer.model_max_length)
    masked = model.config.model_type not in WITHOUT_MASK
    module = HuggingFaceTwoTower(
        model,
        pad_token=tokenizer.pad_token_id if masked else None,
        end_token=tokenizer.eos_token_id,
    )
    freeze_own_temperature(module)
    transform = ProcessorTransform(processor)
    return TwoTower(
        module=module,
        train_transform=transform,
        eval_transform=transform,
        tokenizer=PaddingTokenizer(tokenizer, context_length),
        identity={
            "architecture": f"transformers {type(model).__name__}",
            "pretrained": str(model.config.name_or_path and Path(model.config.name_or_path).name),
            "weights_sha256": weights_sha256(module),
            "eval_transform": repr(transform),
            "tokenizer": f"{type(tokenizer).__name__}, context {context_length}",
        },
        architecture={HUGGING_FACE_FILE: model.config.to_dict()},
    )


def as_tensor(features: Any) -> Tensor:
    """Return embeddings, a tensor in transformers 4 and a part of the output in 5."""
    return features if isinstance(features, Tensor) else features.pooler_output


def _embeddings(features: Any, normalize: bool) -> Tensor:
    embeddings = as_tensor(features)
    return nn.functional.normalize(embeddings, dim=-1) if normalize else embeddings
