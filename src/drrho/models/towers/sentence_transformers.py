"""Models of sentence-transformers from a local folder: of texts, or of images and texts."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drrho.models.hugging_face import (
    HUGGING_FACE_FILE,
    build_hugging_face,
    import_transformers,
    require_bounded,
    require_no_code,
)
from drrho.models.towers.hugging_face import trimmed
from drrho.models.towers.tower import TextTower
from drrho.models.two_tower import TwoTower, weights_sha256
from drrho.runtime.files import parse_json, read_regular
from drrho.runtime.optional import import_optional

MODULES_FILE = "modules.json"
MAX_JSON = 2**20  # bytes
# Parts of a model that are built of what their files say, and name no code.
KNOWN_PARTS = {"CLIPModel", "Transformer", "Pooling", "Normalize", "Dense", "LayerNorm"}
# Weights as pickles, which are not read.
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class SentenceTexts(nn.Module):
    """Sentence embeddings of a `SentenceTransformer`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        tokenizer = self.model.tokenizer
        self.pad_token: int = tokenizer.pad_token_id
        self.end_is_pad = tokenizer.pad_token_id == tokenizer.eos_token_id

    def forward(self, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch features"]:
        tokens, mask = trimmed(tokens, self.pad_token, end_is_pad=self.end_is_pad)
        found = self.model({"input_ids": tokens, "attention_mask": mask})
        return found["sentence_embedding"]

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write a folder that sentence-transformers itself loads."""
        own = self.state_dict()
        if any(own[name] is not weights[name] for name in own):
            self.load_state_dict(dict(weights))
        self.model.save_pretrained(str(folder), create_model_card=False)


class SentenceTokenizer:
    """A sentence model's tokenizer, with the text that the model puts before every caption."""

    def __init__(self, tokenizer: Any, context_length: int, prompt: str) -> None:
        self.tokenizer, self.context_length, self.prompt = tokenizer, context_length, prompt

    def __call__(self, captions: list[str]) -> Tensor:
        return self.tokenizer(
            [self.prompt + caption for caption in captions],
            padding="longest",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )["input_ids"]


def build_sentence_tower(folder: Path) -> TextTower:
    """Load a text model in float32, on the CPU.

    Nothing is fetched, and no code or pickle from the folder is run.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it cannot be loaded, or has parts that are not known to run no code.
    """
    _require_no_code(folder)
    library = import_sentence_transformers()
    if (folder / HUGGING_FACE_FILE).is_file():
        local = {"local_files_only": True, "trust_remote_code": False}
        require_bounded(folder, import_transformers(), local)
    try:
        model: Any = library.SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "torch_dtype": torch.float32},
        )
        model.eval()
        tokenizer, prompts = model.tokenizer, model.prompts
        context = model.max_seq_length or tokenizer.model_max_length
    except Exception as error:  # whatever files and configurations can raise
        raise ValueError(
            f"'sentence-transformers:{folder}' cannot be loaded: {error}. It needs modules.json, "
            "config.json, model.safetensors (a .bin is a pickle, which is not read) and the "
            "tokenizer's files"
        ) from error
    prompt = prompts.get(model.default_prompt_name) or ""
    module = SentenceTexts(model)
    return TextTower(
        module=module,
        tokenizer=SentenceTokenizer(tokenizer, context, prompt),
        identity={
            "architecture": "sentence-transformers "
            + ", ".join(type(part).__name__ for part in model),
            "weights_sha256": weights_sha256(module),
            "tokenizer": f"{type(tokenizer).__name__}, context {context}, prompt {prompt!r}",
        },
    )


def embeds_images(folder: Path) -> bool:
    """Tell whether a model embeds images too; errors as `build_sentence_tower`."""
    first = _require_no_code(folder)[0]
    file = first / HUGGING_FACE_FILE
    return file.is_file() and {"text_config", "vision_config"} <= _json(file).keys()


def build_sentence_two_tower(folder: Path) -> TwoTower:
    """Load a model of images and texts: a dual encoder of transformers in its folder.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it embeds texts alone, changes the embeddings of its dual encoder, or cannot be
            loaded.
    """
    first, *others = _require_no_code(folder)
    if not embeds_images(folder):
        raise ValueError(
            f"model 'sentence-transformers:{folder}' embeds texts alone; `drrho reference join` "
            "joins it with a vision model"
        )
    names = [part["type"].rpartition(".")[2] for part in _json(folder / MODULES_FILE)[1:]]
    if set(names) - {"Normalize"}:
        raise ValueError(
            f"model 'sentence-transformers:{folder}' has {', '.join(names)} after its dual "
            f"encoder in {first}, of {len(others) + 1} parts; of images and texts only that "
            "encoder itself can be loaded"
        )
    return build_hugging_face(first)


def import_sentence_transformers() -> Any:
    """Import sentence-transformers, also where torchvision's operators cannot be loaded."""
    import_transformers()
    return import_optional(
        "sentence_transformers", user="models 'sentence-transformers:PATH'", extra="clip,text"
    )


def _require_no_code(folder: Path) -> list[Path]:
    """Raise ValueError unless all parts of a model are known, lie in its folder and are no pickle.

    sentence-transformers imports the class that `modules.json` names.

    Returns:
        The folders of the parts.
    """
    file = folder / MODULES_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"'sentence-transformers:{folder}': it has no {MODULES_FILE}; give the folder that "
            "SentenceTransformer.save or a download made"
        )
    parts = _json(file)
    where = f"'sentence-transformers:{folder}': {MODULES_FILE}"
    folders = []
    for part in parts if isinstance(parts, list) and parts else [None]:
        fields = part if isinstance(part, dict) else {}
        kind, place = fields.get("type"), fields.get("path")
        if not isinstance(kind, str) or not isinstance(place, str):
            raise ValueError(f"{where} is no list of parts with type and path; was it damaged?")
        package, _, name = kind.rpartition(".")
        if package.partition(".")[0] != "sentence_transformers" or name not in KNOWN_PARTS:
            raise ValueError(
                f"{where} has a part {kind!r:.80}; of those that run no code of others there are "
                f"{', '.join(sorted(KNOWN_PARTS))}. Name such a model by a program of your own, "
                "python:FILE.py"
            )
        if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
            raise ValueError(f"{where} has a part outside the folder, {place!r:.80}")
        _require_known_methods(folder / place)
        names = [it.name for it in (folder / place).glob("*")]
        if any(it.endswith(PICKLES) for it in names) and "model.safetensors" not in names:
            raise ValueError(
                f"'sentence-transformers:{folder / place}' has weights as a pickle, which is not "
                "read; load it and save it with safe_serialization=True"
            )
        folders.append(folder / place)
        if (folder / place / HUGGING_FACE_FILE).is_file():
            require_no_code(folder / place)
    return folders


def _require_known_methods(folder: Path) -> None:
    """Raise ValueError if a configuration names a method that gives no features."""
    file = folder / "sentence_bert_config.json"
    found = _json(file) if file.is_file() else {}
    methods = found.get("modality_config", {}) if isinstance(found, dict) else {}
    for how in methods.values() if isinstance(methods, dict) else ():
        method = how.get("method") if isinstance(how, dict) else how
        if method not in ("forward", "get_text_features", "get_image_features"):
            raise ValueError(f"{file} names the method {method!r:.80}, which gives no features")


def _json(file: Path) -> Any:
    try:
        return parse_json(read_regular(file, most=MAX_JSON))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
