"""Token ids of texts that a process encodes again and again: an evaluation's captions, prompts."""

import torch
from torch import Tensor

from drrho.data.caching.caches import Tokenizer
from drrho.data.caching.tokenizers import describe_tokenizer

MOST_IDS = 2**25  # kept by a process: 128 MiB

# (all that the ids depend on beside the texts, texts of a batch) -> ids; the last one used is last.
_kept: dict[tuple[str, tuple[str, ...]], Tensor] = {}


def keeping_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that gives the same ids and keeps them for the same texts.

    What is kept is shared by all tokenizers of a process that give a text the same ids. One that
    is not known to give a text the same ids in any company (`describe_tokenizer`) is returned as
    it is.
    """
    described = describe_tokenizer(tokenizer)
    if described is None:
        return tokenizer
    length, description = described

    def tokens_of(texts: list[str]) -> Tensor:
        key = description, tuple(texts)
        ids = _kept.pop(key, None)
        if ids is None:
            found = tokenizer(texts)
            if found.dtype != torch.int64 or found.shape != (len(texts), length):
                return found
            ids = found.to(torch.int32)
        _kept[key] = ids
        _drop_oldest()
        return ids.long()

    return tokens_of


def _drop_oldest() -> None:
    surplus = sum(ids.numel() for ids in _kept.values()) - MOST_IDS
    for key in list(_kept):
        if surplus <= 0:
            break
        surplus -= _kept.pop(key).numel()
