"""EXIF's orientation is applied to what is indexed now, and not to indexes of earlier versions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.tar_files import encoded, pair, to_tensor, write_shard
from tests.reference.small_reference import small_encoder

from drrho.data.examples import evaluation_batches
from drrho.data.indexing import index_shards
from drrho.data.manifest import Manifest
from drrho.data.reading.images import ORIENTATION, WHOLE_SIZE, decode_image_bytes, is_turned
from drrho.runtime.files import parse_json

ON_ITS_SIDE = 6  # the first column of pixels is the top row


def photograph(kind="JPEG", orientation=ON_ITS_SIDE, side=8):
    """White but for its left half, which is black: the upper half where it is turned."""
    image = Image.new("RGB", (2 * side, side), "white")
    image.paste((0, 0, 0), (0, 0, side, side))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_an_image_is_turned_as_its_orientation_says(kind):
    content = photograph(kind)
    assert is_turned(content)
    assert decode_image_bytes(content).size == (16, 8)
    upright = np.asarray(decode_image_bytes(content, upright=True))
    assert upright.shape == (16, 8, 3)
    assert upright[:6].max() < 60
    assert upright[10:].min() > 200


@pytest.mark.parametrize("content", [photograph(orientation=1), photograph()[:40], b"\xff\xd8Exif"])
def test_what_is_not_turned(content):
    assert not is_turned(content)


def test_an_image_that_is_decoded_smaller_knows_its_whole_size_upright():
    image = decode_image_bytes(photograph(side=64), at_least=16, upright=True)
    assert image.size == (16, 32)
    assert image.info[WHOLE_SIZE] == (64, 128)


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path / "data.tar", [pair(0), pair(1) | {"jpg": photograph()}])


def shapes(manifest):
    stream = evaluation_batches(manifest, to_tensor, batch_size=1)
    return [tuple(batch.images.shape[2:]) for batch in stream]


def test_an_index_of_an_earlier_version_keeps_its_decoding(shard, tmp_path):
    found = index_shards(shard)
    found.save(tmp_path / "new.json")
    assert shapes(Manifest.load(tmp_path / "new.json"))[1] == (16, 8)
    earlier = Manifest(shards=(replace(found.shards[0], decoding=1, content_sha256="0" * 64),))
    earlier.save(tmp_path / "old.json")
    assert "decoding" not in parse_json((tmp_path / "old.json").read_bytes())["shards"][0]
    assert shapes(Manifest.load(tmp_path / "old.json"))[1] == (8, 16)
    # `drrho index` reads what has changed, and this file has not.
    assert index_shards(shard, known=earlier).shards[0].decoding == 1


def test_data_without_such_images_are_what_they_were(tmp_path):
    plain = index_shards(write_shard(tmp_path / "plain.tar", [pair(0), pair(1)]))
    assert plain.shards[0].decoding == 1
    turned = [pair(0), pair(1) | {"jpg": photograph()}]
    found = index_shards(write_shard(tmp_path / "turned.tar", turned)).shards[0]
    straight = [pair(0), pair(1) | {"jpg": photograph(orientation=1)}]
    other = index_shards(write_shard(tmp_path / "straight.tar", straight)).shards[0]
    assert (found.decoding, other.decoding) == (2, 1)


def test_a_decoding_of_a_later_version_is_refused(shard, tmp_path):
    index_shards(shard).save(tmp_path / "m.json")
    document = json.loads((tmp_path / "m.json").read_text())
    document["shards"][0]["decoding"] = 3
    del document["sha256"]
    (tmp_path / "m.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="version 3, which this program does not know"):
        Manifest.load(tmp_path / "m.json")


def test_a_loaded_model_sees_photographs_upright(tmp_path):
    (tmp_path / "photograph.jpg").write_bytes(photograph())
    upright = decode_image_bytes(photograph(), upright=True)
    encoder = small_encoder()
    seen = encoder.encode_image(str(tmp_path / "photograph.jpg"))
    assert torch.equal(seen, encoder.encode_image(upright))
