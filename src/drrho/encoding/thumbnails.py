"""Small pictures of samples, for pages that need no other file."""

import base64
import io
from collections.abc import Collection

from PIL import Image

from drrho.data.manifest import Manifest
from drrho.data.reading.cache import OpenShards
from drrho.encoding.pairs import decode_pair

LONGER_SIDE = 128  # pixels


def thumbnails(manifest: Manifest, sample_ids: Collection[int]) -> dict[int, str]:
    """Read samples and give each its picture as a data: URL; those that cannot be read have none.

    Raises:
        ValueError: the samples are pairs of texts.
    """
    shards, skipped = OpenShards(manifest), []
    found = {}
    for sample_id, (image, _) in shards.readable(list(sample_ids), skipped, decode=decode_pair):
        if isinstance(image, str):
            raise ValueError("a gallery shows images, and these data are pairs of texts")
        found[sample_id] = data_url(image)
    return found


def data_url(image: Image.Image) -> str:
    """Encode a small copy of an image as a JPEG in a URL."""
    small = image.copy()
    small.thumbnail((LONGER_SIDE, LONGER_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
