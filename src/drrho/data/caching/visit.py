"""The samples of a batch: from the caches where these have them, else read and kept."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from drrho.data.caching.caches import Caches, Tokenizer
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.images import transformed
from drrho.data.reading.shards import RawSample, decode_captions, decode_image


class Visit:
    """The samples of one batch, by their place in it.

    A sample whose image and tokens are cached is not read if its shard's size and time of change
    say that the file is the one they were made from; otherwise it is read and compared with the
    manifest, as without caches.

    Args:
        wanted: sample ids.
        at_least: side in pixels to which JPEGs may be decoded smaller.

    Raises:
        FileNotFoundError, ValueError: as `OpenShards.read`.
    """

    def __init__(
        self,
        shards: OpenShards,
        caches: Caches,
        wanted: list[int],
        *,
        at_least: int | None,
    ) -> None:
        self._caches, self._at_least = caches, at_least
        self._rows = np.array(wanted, np.int64)
        nothing = np.zeros(len(wanted), np.bool_)
        self._has_pixels, self._has_tokens = nothing, nothing
        self.samples: dict[int, RawSample] = {}
        places: Sequence[int] = range(len(wanted))
        if caches.pixels is not None or caches.tokens is not None:
            unchanged, self._sources = shards.sources(wanted)
            if caches.pixels is not None:
                found, self._has_pixels = caches.read_pixels(self._rows, self._sources)
                self._pixels = torch.from_numpy(found)
            if caches.tokens is not None:
                self._tokens, self._has_tokens = caches.read_tokens(self._rows, self._sources)
            places = (~(self._has_pixels & self._has_tokens & unchanged)).nonzero()[0].tolist()
        if places:
            read = shards.read([wanted[place] for place in places])
            self.samples = dict(zip(places, read, strict=True))

    @property
    def is_cached(self) -> bool:
        """Whether the images and the tokens of all samples are there, read or not."""
        return len(self._rows) > 0 and bool((self._has_pixels & self._has_tokens).all())

    @property
    def cached_pixels(self) -> UInt8[Tensor, "batch channels height width"]:
        """The pixels behind the transform's fixed part, where all are there."""
        return self._pixels

    def image(self, place: int) -> Image.Image | str | Tensor:
        """Return the decoded image or anchor, or the pixels behind the transform's fixed part.

        Raises:
            UnusableSample: as `decode_image`.
        """
        if self._has_pixels[place]:
            return self._pixels[place]
        return decode_image(self.samples[place], at_least=self._at_least)

    def captions(self, place: int) -> list[str] | None:
        """Return the captions; None where the tokens of the first are there.

        Raises:
            UnusableSample: as `decode_captions`.
        """
        return None if self._has_tokens[place] else decode_captions(self.samples[place])

    def fixed(self, place: int, image: Image.Image) -> Image.Image:
        """Apply the fixed part of the transform, and keep what it gives.

        Raises:
            UnusableSample: the transform failed.
        """
        fixed = transformed(self._caches.split.fix, image)
        if self._caches.pixels is not None:
            self._caches.keep_pixels(int(self._rows[place]), int(self._sources[place]), fixed)
        return fixed

    def tokens(
        self, places: Sequence[int], captions: Sequence[str | None], tokenizer: Tokenizer
    ) -> Int64[Tensor, "pairs length"]:
        """Return the tokens of captions; None is one whose tokens are there, others are kept."""
        if not captions:
            return torch.empty(0, 0, dtype=torch.int64)
        missing = [number for number, caption in enumerate(captions) if caption is not None]
        if self._caches.tokens is None:
            return tokenizer([caption for caption in captions if caption is not None])
        found = torch.from_numpy(self._tokens[list(places)]).long()
        if missing:
            new = tokenizer([captions[number] or "" for number in missing])
            found[missing] = new
            for number, tokens in zip(missing, new, strict=True):
                place = places[number]
                row, source = int(self._rows[place]), int(self._sources[place])
                self._caches.keep_tokens(row, source, tokens)
        return found
