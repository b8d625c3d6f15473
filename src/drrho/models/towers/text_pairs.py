"""A text model twice: the target of pairs of texts, from a folder of sentence-transformers."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from torch.nn.functional import normalize as to_unit_length

from drrho.models.towers.sentence_transformers import (
    MODULES_FILE,
    SentenceTexts,
    SentenceTokenizer,
    build_sentence_tower,
)
from drrho.models.two_tower import TwoTower

# What sentence-transformers calls the prompts of its encode_query and encode_document.
ANCHOR_PROMPTS, POSITIVE_PROMPTS = ("query",), ("document", "passage", "corpus")


class TextPairTower(nn.Module):
    """open_clip's interface for one text model that embeds both texts of a pair.

    Args:
        tower: the text model.
    """

    def __init__(self, tower: SentenceTexts) -> None:
        super().__init__()
        self.tower = tower

    def encode_image(
        self, images: Float[Tensor, "batch 1 1 context"], normalize: bool = False
    ) -> Float[Tensor, "batch dim"]:
        """Embed anchors that went through `AnchorTransform`."""
        return self.encode_text(images.flatten(1).long(), normalize=normalize)

    def encode_text(
        self, tokens: Int[Tensor, "batch context"], normalize: bool = False
    ) -> Float[Tensor, "batch dim"]:
        """Embed token ids of the model's tokenizer."""
        embeddings = self.tower(tokens)
        return to_unit_length(embeddings, dim=-1) if normalize else embeddings


class AnchorTransform:
    """An anchor to its token ids, as numbers that travel where images do.

    A float32 holds ids below 2^24 exactly. All have the context's length; the model cuts off what
    is padding in a whole batch.
    """

    takes_texts: ClassVar = True

    def __init__(self, tokenizer: SentenceTokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, anchor: str) -> Float32[Tensor, "1 1 context"]:
        own = self.tokenizer.tokenizer
        ids = self.tokenizer([anchor])[0]
        padded = ids.new_full((self.tokenizer.context_length,), own.pad_token_id)
        padded[: len(ids)] = ids
        return padded[None, None].to(torch.float32)

    def __repr__(self) -> str:
        return (
            f"token ids of anchors, context {self.tokenizer.context_length}, "
            f"prompt {self.tokenizer.prompt!r}"
        )


def build_text_pairs(folder: Path) -> TwoTower:
    """Load a text model as the model of pairs of texts; errors as `build_sentence_tower`.

    Anchors get the model's prompt for queries and positives that for documents, where it has them,
    and its default prompt otherwise.
    """
    tower = build_sentence_tower(folder)
    assert isinstance(tower.module, SentenceTexts)
    assert isinstance(tower.tokenizer, SentenceTokenizer)
    prompts: dict[str, Any] = tower.module.model.prompts
    anchors, positives = (
        _with_prompt(tower.tokenizer, prompts, names)
        for names in (ANCHOR_PROMPTS, POSITIVE_PROMPTS)
    )
    transform: Any = AnchorTransform(anchors)  # of texts, where others are of images
    # The file that `load_model` knows the folder by; its other files are the tower's to write.
    return TwoTower(
        module=TextPairTower(tower.module),
        train_transform=transform,
        eval_transform=transform,
        tokenizer=positives,
        identity=tower.identity
        | {
            "architecture": f"{tower.identity['architecture']}, for pairs of texts",
            "pretrained": folder.name,
            "eval_transform": repr(transform),
            "tokenizer": f"{tower.identity['tokenizer']}, for positives {positives.prompt!r}",
        },
        architecture={MODULES_FILE: {}},
    )


def save_text_pairs(model: TwoTower, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a folder that `SentenceTransformer` itself loads, and `build_text_pairs`."""
    assert isinstance(model.module, TextPairTower)
    folder.mkdir(parents=True, exist_ok=True)
    own = {name.removeprefix("tower."): value for name, value in weights.items()}
    # A copy, for weights such as a moving average's must not become those of the model.
    copy.deepcopy(model.module.tower).save(folder, own)


def _with_prompt(
    tokenizer: SentenceTokenizer, prompts: Mapping[str, Any], names: tuple[str, ...]
) -> SentenceTokenizer:
    found = next((prompts[name] for name in names if prompts.get(name)), tokenizer.prompt)
    return SentenceTokenizer(tokenizer.tokenizer, tokenizer.context_length, found)
