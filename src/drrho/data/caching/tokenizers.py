"""Tokenizers whose result for a text depends on the text alone, and has one length."""

import hashlib
import json
from functools import cache
from typing import Any


def describe_tokenizer(tokenizer: Any) -> tuple[int, str] | None:
    """Return the length of a text's token ids and all that these depend on, or None.

    None for a tokenizer that may give a text other ids in another batch. Tokenizers of open_clip,
    and of transformers with padding to one length, are known to give the same.
    """
    length = getattr(tokenizer, "context_length", None)
    if not isinstance(length, int) or length < 1:
        return None
    kind = type(tokenizer)
    match kind.__module__.partition(".")[0], kind.__name__:
        case "open_clip", "SimpleTokenizer":
            if getattr(tokenizer, "reduction_fn", None) is not None:
                return None  # it may drop tokens at random
            vocabulary = _hash_of_pairs(tokenizer.encoder, tokenizer.bpe_ranks)
            clean = getattr(tokenizer.clean_fn, "__name__", "")
        case ("open_clip", "HFTokenizer") | ("drrho", "_PaddingTokenizer"):
            fast = getattr(tokenizer.tokenizer, "backend_tokenizer", None)
            if fast is None:
                return None
            special = tokenizer.tokenizer.special_tokens_map
            vocabulary = _hashed([fast.to_str(), {n: str(v) for n, v in special.items()}])
            names = ("tokenizer_mode", "strip_sep_token")
            clean = str([getattr(tokenizer, name, None) for name in names])
            clean += getattr(getattr(tokenizer, "clean_fn", None), "__name__", "")
        case _:
            return None
    return length, f"tokens {kind.__name__} {length} {clean} {_versions()} {vocabulary}"


# A process asks for the same vocabulary again and again, and sorting it takes half a second.
_vocabularies: dict[tuple[int, int, int], str] = {}


def _hash_of_pairs(encoder: dict[str, int], ranks: dict[tuple[str, str], int]) -> str:
    """Hash the ids of tokens and the pairs that are merged into them."""
    key = hash(tuple(encoder)), hash(tuple(encoder.values())), hash(tuple(ranks))
    if key not in _vocabularies:
        _vocabularies[key] = _hashed([encoder, sorted(map(list, ranks))])
    return _vocabularies[key]


def _hashed(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode(errors="surrogatepass")).hexdigest()


@cache
def _versions() -> str:
    """Return the versions of what cleans and splits texts."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    found = []
    for package in ("open_clip_torch", "ftfy", "regex", "tokenizers", "transformers"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return str(found)
