"""Row i belongs to sample i, whatever was broken in between and however often it was begun."""

import json
import shutil
from collections import namedtuple

import pytest
import torch
from tests.data.tar_files import (
    BROKEN,
    READABLE,
    pair,
    real_data,
    with_broken_image,
    without_caption,
    write_flawed_set,
    write_shard,
)
from tests.reference.small_reference import SmallTowers, embeddings_of, small_encoder, two_tower
from torch.testing import assert_close

from drrho.data.indexing import index_shards
from drrho.data.manifest import Manifest
from drrho.reference.precompute import precompute
from drrho.reference.store import ReferenceStore


class Interrupted(Exception):
    pass


class Failing(SmallTowers):
    """Stops at a chosen batch of images, as a machine may."""

    def __init__(self, *, at_batch):
        super().__init__(0)
        self.left = at_batch

    def encode_image(self, images, normalize=False):
        self.left -= 1
        if self.left < 0:
            raise Interrupted
        return super().encode_image(images)


@pytest.fixture
def manifest(tmp_path):
    return index_shards(write_flawed_set(tmp_path / "data"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_row_i_belongs_to_sample_i_with_flaws_in_between(manifest, tmp_path, batch_size):
    report = precompute(small_encoder(), manifest, tmp_path / "out", batch_size=batch_size)
    store = ReferenceStore.open(tmp_path / "out", manifest)
    ids = torch.tensor([14, 0, 3, 7, 9, 2, 2, 10, 12, 1, 8, 13, 4, 5, 6, 11])
    found = store.gather(ids)
    for place, number in enumerate(ids.tolist()):
        assert found.present[place] == (number in READABLE)
        if number in READABLE:
            image, text = embeddings_of(number)
            assert_close(found.image[place], image, atol=1e-3, rtol=0)
            assert_close(found.text[place], text, atol=1e-3, rtol=0)
        else:
            assert not found.image[place].any()
            assert not found.text[place].any()
    assert report.num_samples == 15
    assert report.num_encoded == len(READABLE)
    assert report.absent == {
        "no caption": 1, "no image": 1, "empty caption": 1, "corrupt image": len(BROKEN)
    }  # fmt: skip


def test_workers_change_nothing(manifest, tmp_path):
    precompute(small_encoder(), manifest, tmp_path / "0", batch_size=2)
    precompute(small_encoder(), manifest, tmp_path / "2", batch_size=2, workers=2)
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


@pytest.mark.parametrize("at_batch", range(6))
def test_interrupted_and_restarted_gives_the_bytes_of_one_run(manifest, tmp_path, at_batch):
    precompute(small_encoder(), manifest, tmp_path / "whole", batch_size=2)
    with pytest.raises(Interrupted):
        precompute(
            small_encoder(module=Failing(at_batch=at_batch)),
            manifest,
            tmp_path / "parts",
            batch_size=2,
        )
    before = contents(tmp_path / "parts")
    assert not any("partial" in name for name in before)
    report = precompute(small_encoder(), manifest, tmp_path / "parts", batch_size=2)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert report.shards_found == len(before) - 1  # one is reference.json
    assert report.num_encoded == len(READABLE)


def test_a_finished_folder_is_left_as_it_is(manifest, tmp_path):
    first = precompute(small_encoder(), manifest, tmp_path / "out", batch_size=2)
    before = contents(tmp_path / "out")
    again = precompute(
        small_encoder(module=Failing(at_batch=0)), manifest, tmp_path / "out", batch_size=2
    )
    assert contents(tmp_path / "out") == before
    assert again.shards_found == len(manifest.shards)
    assert again.absent == first.absent


def test_an_unfinished_folder_says_how_to_finish_it(manifest, tmp_path):
    encoder = small_encoder(module=Failing(at_batch=3))
    with pytest.raises(Interrupted):
        precompute(encoder, manifest, tmp_path / "out", batch_size=2)
    with pytest.raises(
        FileNotFoundError, match=r"train-1\.tar are missing.*drrho reference precompute"
    ):
        ReferenceStore.open(tmp_path / "out", manifest)


def test_shards_of_one_name_in_two_folders_do_not_collide(tmp_path):
    for first, folder in ((0, "a"), (5, "b")):
        write_shard(tmp_path / folder / "0.tar", [pair(n) for n in range(first, first + 3)])
    manifest = index_shards(f"{tmp_path}/{{a,b}}/0.tar")
    precompute(small_encoder(), manifest, tmp_path / "out", batch_size=2)
    found = ReferenceStore.open(tmp_path / "out", manifest).gather(torch.tensor([1, 4]))
    for place, number in enumerate((1, 6)):
        assert_close(found.text[place], embeddings_of(number)[1], atol=1e-3, rtol=0)


def test_two_models_or_data_sets_do_not_mix_in_a_folder(manifest, tmp_path):
    out = tmp_path / "out"
    precompute(small_encoder(0), manifest, out, batch_size=2)
    before = contents(out)
    with pytest.raises(ValueError, match=r"another model: weights_sha256 '0', not '1'.*folder"):
        precompute(small_encoder(1), manifest, out, batch_size=2)
    fewer = Manifest(shards=manifest.shards[:2])
    with pytest.raises(
        ValueError, match=r"another data set: 15 samples in 4 .*not 11 samples in 2"
    ):
        precompute(small_encoder(0), fewer, out, batch_size=2)
    rows = [pair(n) for n in range(5)]
    changed = index_shards(write_shard(tmp_path / "changed" / "train-9.tar", rows))
    other = Manifest(shards=(*changed.shards, *manifest.shards[1:]))
    with pytest.raises(ValueError, match=r"another data set.*train-0\.tar, not train-9\.tar"):
        precompute(small_encoder(0), other, out, batch_size=2)
    assert contents(out) == before


def test_a_file_of_another_model_is_not_taken_for_finished(manifest, tmp_path):
    precompute(small_encoder(0), manifest, tmp_path / "a", batch_size=2)
    precompute(small_encoder(1), manifest, tmp_path / "b", batch_size=2)
    stray = "train-1.safetensors"
    (tmp_path / "a" / stray).write_bytes((tmp_path / "b" / stray).read_bytes())
    with pytest.raises(
        ValueError, match=r"train-1\.safetensors is not of shard train-1\.tar.*model"
    ):
        precompute(small_encoder(0), manifest, tmp_path / "a", batch_size=2)


def test_an_embedding_that_is_not_finite_is_absent_and_counted(tmp_path):
    class Overflowing(SmallTowers):
        def encode_text(self, tokens, normalize=False):
            embeddings = super().encode_text(tokens)
            return torch.where(tokens[:, 1:] == 1, float("nan"), embeddings)

    manifest = index_shards(write_shard(tmp_path / "a.tar", [pair(n) for n in range(3)]))
    encoder = small_encoder(module=Overflowing(0))
    report = precompute(encoder, manifest, tmp_path / "out", batch_size=3)
    assert report.absent == {"embedding is not finite": 1}
    found = ReferenceStore.open(tmp_path / "out", manifest).gather(torch.arange(3))
    assert found.present.tolist() == [True, False, True]
    assert found.image.isfinite().all()
    assert found.text.isfinite().all()


def test_a_shard_of_which_nothing_can_be_read_stops_neither_run(tmp_path):
    write_shard(tmp_path / "a.tar", [pair(0), pair(1)])
    write_shard(tmp_path / "b.tar", [with_broken_image(2), with_broken_image(3)])
    write_shard(tmp_path / "c.tar", [without_caption(4)])
    manifest = index_shards(tmp_path)
    whole = precompute(small_encoder(), manifest, tmp_path / "out", batch_size=1)
    expected = contents(tmp_path / "out")
    for name in ("b.safetensors", "c.safetensors"):
        (tmp_path / "out" / name).unlink()
    again = precompute(small_encoder(), manifest, tmp_path / "out", batch_size=1)
    assert contents(tmp_path / "out") == expected
    assert whole.absent == again.absent == {"corrupt image": 2, "no caption": 1}


def test_a_set_of_which_nothing_can_be_encoded_is_an_error(tmp_path):
    manifest = index_shards(write_shard(tmp_path / "a.tar", [without_caption(0)]))
    with pytest.raises(ValueError, match="not one of 1 samples.*no caption"):
        precompute(small_encoder(), manifest, tmp_path / "out", batch_size=1)


def test_damaged_metadata_do_not_cost_a_pair_its_embedding(tmp_path):
    rows = [pair(0), pair(1) | {"json": b"{"}, pair(2) | {"cls": b"cat"}]
    manifest = index_shards(write_shard(tmp_path / "a.tar", rows))
    report = precompute(small_encoder(), manifest, tmp_path / "out", batch_size=2)
    assert (report.num_encoded, report.absent) == (3, {})


def test_the_card_says_how_the_embeddings_were_made(manifest, tmp_path):
    precompute(small_encoder(), manifest, tmp_path / "out", batch_size=2)
    card = json.loads((tmp_path / "out" / "reference.json").read_text())
    assert card["model"] == two_tower().identity | {"precision": "float32"}
    assert (card["dtype"], card["normalisation"]) == ("float16", "unit L2 norm")
    assert [shard["keys_sha256"] for shard in card["shards"]] == [
        shard.keys_sha256 for shard in manifest.shards
    ]


def test_real_shards_can_be_encoded(tmp_path):
    manifest = index_shards(real_data("emoji-pictograms") / "val-0000.tar")
    encoder = small_encoder()
    report = precompute(encoder, manifest, tmp_path / "out", batch_size=256)
    assert report.num_encoded == 908
    found = ReferenceStore.open(tmp_path / "out", manifest).gather(torch.arange(908))
    assert found.present.all()


def test_a_disk_that_is_too_small_is_said_before(manifest, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10))
    with pytest.raises(OSError, match=r"the embeddings take .* GB and .*out has 0.0 GB free"):
        precompute(small_encoder(), manifest, tmp_path / "out", batch_size=2)
