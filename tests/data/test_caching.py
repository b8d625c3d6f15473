"""Batches with caches are those without them, whatever the caches hold."""

import gc
import mmap
import multiprocessing
import os
import shutil
from dataclasses import replace
from itertools import islice

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from tests.data.tar_files import encoded, pair, to_tensor, to_tokens, write_flawed_set, write_shard

from drrho.data.caching import caches as caching
from drrho.data.caching.mapped import HEAD, MappedRows
from drrho.data.caching.resizing import TorchResized, by_torch
from drrho.data.caching.tokenizers import describe_tokenizer
from drrho.data.caching.transforms import split_transform
from drrho.data.indexing import index_shards
from drrho.data.loading import Loading, Position, caches_of, training_batches
from drrho.data.views import Views
from drrho.models.open_clip import import_open_clip

open_clip = import_open_clip()
from torchvision import transforms as tv  # noqa: E402  # after open_clip, beside a CPU-only torch

FIXED = open_clip.image_transform(24, is_train=False)
RANDOM = open_clip.image_transform(24, is_train=True)
FLIPPED = tv.Compose(
    [
        tv.Resize((20, 20)),
        tv.RandomHorizontalFlip(),
        tv.ToTensor(),
        tv.Normalize([0.5] * 3, [0.2] * 3),
    ]
)
ERASED = tv.Compose([tv.Resize((20, 20)), tv.ToTensor(), tv.RandomErasing(p=0.5)])
TOKENIZER = open_clip.SimpleTokenizer(context_length=16)


@pytest.fixture
def manifest(tmp_path):
    return index_shards(write_flawed_set(tmp_path / "data"))


def batches(manifest, transform, *, count=9, beside=None, tokenizer=TOKENIZER, **options):
    config = Loading(**{"batch_size": 4, "shuffle_window": 2} | options)
    caches = None
    if config.cache != "off":
        caches = caches_of(manifest, transform, tokenizer=tokenizer, config=config, beside=beside)
    stream = training_batches(
        manifest,
        transform,
        tokenizer=tokenizer,
        config=config,
        position=Position(seed=3),
        caches=caches,
    )
    return list(islice(stream, count))


def assert_same(found, expected):
    for raw, other_raw in zip(found, expected, strict=True):
        one, other = raw.to("cpu"), other_raw.to("cpu")
        assert torch.equal(one.sample_ids, other.sample_ids)
        assert torch.equal(one.images, other.images)
        assert one.images.dtype == other.images.dtype == torch.float32
        assert torch.equal(one.tokens, other.tokens)
        assert one.tokens.dtype == other.tokens.dtype
        assert one.skipped == other.skipped


def opaque(transform):
    """The same transform, of which nothing is known."""
    return lambda image: (transform(image),)[0]


@pytest.mark.parametrize("transform", [FIXED, RANDOM, FLIPPED, ERASED], ids=str)
@pytest.mark.parametrize("options", [{"cache": "auto"}, {"cache": "off"}, {"workers": 2}])
def test_a_split_and_cached_transform_gives_the_bits_of_the_whole(
    manifest, tmp_path, transform, options
):
    expected = batches(manifest, opaque(transform), cache="off")
    for _visit in range(2):  # fills the cache, and reads it
        found = batches(manifest, transform, beside=str(tmp_path / "m.json"), **options)
        assert_same(found, expected)
    if transform is not RANDOM and options != {"cache": "off"}:
        assert list((tmp_path / ".drrho-cache").glob("*.pixels"))


@pytest.mark.parametrize("options", [{"captions": "random"}, {"views": Views(count=2)}])
def test_drawn_captions_and_views_are_not_cached(manifest, tmp_path, options):
    expected = batches(manifest, opaque(FIXED), cache="off", **options)
    for _visit in range(2):
        assert_same(batches(manifest, FIXED, beside=str(tmp_path / "m"), **options), expected)
    assert not list(tmp_path.glob(".drrho-cache/*.tokens"))


def test_cached_samples_are_not_read_again(manifest, monkeypatch, tmp_path):
    place = str(tmp_path / "m.json")
    good = manifest.without({3: "broken", 12: "broken"})
    expected = batches(good, FIXED, beside=place)
    monkeypatch.setattr(os, "pread", None)
    monkeypatch.setattr(TOKENIZER, "encode", None)
    monkeypatch.setattr(caching, "open_caches", None)
    with monkeypatch.context() as patch:
        patch.setattr("drrho.data.caching.mapped._map_if_fits", mapped_without_reading)
        assert_same(batches(good, FIXED, beside=place), expected)


def mapped_without_reading(path, head, size):
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), size)


def test_memory_is_shared_with_forked_workers(manifest):
    expected = batches(manifest, opaque(FIXED), cache="off")
    assert_same(batches(manifest, FIXED, cache="memory", workers=2), expected)


def cache_files(tmp_path, kind="pixels"):
    return sorted((tmp_path / ".drrho-cache").glob(f"*.{kind}"))


@pytest.mark.parametrize("kind", ["pixels", "tokens"])
@pytest.mark.parametrize(
    "damage", ["rows", "tags", "head", "truncated", "longer", "empty", "a folder's pipe"]
)
def test_a_damaged_cache_is_made_again(manifest, tmp_path, kind, damage):
    place = str(tmp_path / "m.json")
    expected = batches(manifest, opaque(FIXED), cache="off")
    batches(manifest, FIXED, beside=place)
    (path,) = cache_files(tmp_path, kind)
    content = bytearray(path.read_bytes())
    draws = np.random.default_rng(0)
    start = HEAD + 8 * manifest.num_samples
    match damage:
        case "rows":
            content[start:] = draws.bytes(len(content) - start)
        case "tags":
            content[HEAD:start] = draws.bytes(start - HEAD)
        case "head":
            content[30] ^= 1
        case "truncated":
            del content[-100:]
        case "longer":
            content += b"more"
        case "empty":
            content.clear()
    path.unlink()
    if damage == "a folder's pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    assert_same(batches(manifest, FIXED, beside=place), expected)


def test_half_written_rows_are_absent():
    rows = MappedRows(None, identity="", num_rows=3, row_bytes=4)
    content = np.arange(4, dtype=np.uint8)
    for row in range(3):
        rows.write(row, 7, content)
    rows._tags[0] = 0  # a process was killed before it wrote the tag
    rows._rows[1, 2] += 1  # the power failed before the row was on the disk
    rows._verified[:] = False
    found = np.zeros((3, 4), np.uint8)
    assert rows.read(np.arange(3), np.full(3, 7, np.uint64), found).tolist() == [False, False, True]
    assert rows.read(np.arange(3), np.full(3, 8, np.uint64), found).tolist() == [False] * 3


def test_other_data_and_transforms_have_other_files(manifest, tmp_path):
    place = str(tmp_path / "m.json")
    batches(manifest, FIXED, beside=place)
    other = open_clip.image_transform(24, is_train=False, resize_mode="squash")
    assert_same(
        batches(manifest, other, beside=place), batches(manifest, opaque(other), cache="off")
    )
    assert len(cache_files(tmp_path)) == 2
    shard = write_shard(tmp_path / "new" / "a.tar", [pair(40 + n) for n in range(9)])
    changed = index_shards(shard)
    assert_same(batches(changed, FIXED, beside=place), batches(changed, opaque(FIXED), cache="off"))
    assert len(cache_files(tmp_path)) == 1, "those of data that are gone are removed"


def test_manifests_of_one_folder_keep_their_own_files(manifest, tmp_path):
    shard = write_shard(tmp_path / "new" / "a.tar", [pair(40 + n) for n in range(9)])
    for name, data in (("train.small", manifest), ("train", index_shards(shard))):
        batches(data, FIXED, beside=str(tmp_path / f"{name}.json"), count=1)
    assert len(cache_files(tmp_path)) == 2


def test_few_files_are_kept(manifest, tmp_path):
    for size in range(8, 24, 2):
        transform = open_clip.image_transform(size, is_train=False)
        batches(manifest, transform, beside=str(tmp_path / "m.json"), count=1)
    assert len(cache_files(tmp_path)) == caching.MOST_FILES


def test_a_shard_that_changed_is_noticed_as_without_cache(tmp_path):
    path = write_shard(tmp_path / "a.tar", [pair(n) for n in range(8)])
    manifest = index_shards(path)
    batches(manifest, FIXED, beside=str(path))
    content = path.read_bytes()
    path.write_bytes(content)  # the same again
    assert_same(
        batches(manifest, FIXED, beside=str(path)), batches(manifest, opaque(FIXED), cache="off")
    )
    place = content.index(b"\xff\xd8") + 100
    path.write_bytes(content[:place] + b"??" + content[place + 2 :])
    with pytest.raises(ValueError, match="another image, caption or key in row 0"):
        batches(manifest, FIXED, beside=str(path))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.tar does not exist"):
        batches(manifest, FIXED, beside=str(tmp_path))


def test_images_of_a_table_are_compared_at_every_visit(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(pair(number)["jpg"])
        (tmp_path / f"{number}.txt").write_text(f"picture number {number}")
    manifest = index_shards(tmp_path)
    expected = batches(manifest, opaque(FIXED), cache="off")
    for _visit in range(2):
        assert_same(batches(manifest, FIXED, beside=str(tmp_path)), expected)
    (tmp_path / "2.jpg").write_bytes(pair(3)["jpg"])
    with pytest.raises(ValueError, match="another image"):
        batches(manifest, FIXED, beside=str(tmp_path))


def fill(path, first):
    rows = MappedRows(path, identity="x", num_rows=200, row_bytes=64)
    for row in range(first, 200, 2):
        rows.write(row, 5, np.full(64, row, np.uint8))


def test_room_is_taken_where_the_system_has_no_call_for_it(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    rows = MappedRows(tmp_path / "rows", identity="x", num_rows=3, row_bytes=2**20)
    assert rows.num_present() == 0


def test_two_processes_fill_one_file(tmp_path):
    path = tmp_path / "rows"
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=fill, args=(path, first)) for first in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    rows = MappedRows(path, identity="x", num_rows=200, row_bytes=64)
    found = np.zeros((200, 64), np.uint8)
    assert rows.read(np.arange(200), np.full(200, 5, np.uint64), found).all()
    assert (found == np.arange(200, dtype=np.uint8)[:, None]).all()
    assert sorted(os.listdir(tmp_path)) == ["rows"]


def test_a_place_that_cannot_be_written_is_replaced(manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / ".drrho-cache").write_text("a file in the way")
    expected = batches(manifest, opaque(FIXED), cache="off")
    assert_same(batches(manifest, FIXED, beside=str(blocked / "m.json")), expected)
    assert list((tmp_path / "home" / "drrho").glob("m-*.pixels"))
    batches(manifest, FIXED, beside="s3://bucket/far.json")
    assert list((tmp_path / "home" / "drrho").glob("far-*.pixels"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked / ".drrho-cache"))
    assert_same(batches(manifest, FIXED, beside=str(blocked / "m.json")), expected)
    with pytest.raises(ValueError, match="no folder can be written"):
        batches(manifest, FIXED, beside=str(blocked / "m.json"), cache="file")


def caches_for(manifest, transform, **options):
    config = Loading(**{"batch_size": 4} | options)
    return caches_of(manifest, transform, tokenizer=TOKENIZER, config=config, beside=None)


def test_the_note_says_what_is_kept_and_why_not(manifest, monkeypatch):
    assert "15 images of 24 x 24" in caches_for(manifest, FIXED).note
    assert "random step" in caches_for(manifest, RANDOM).note
    assert caches_for(manifest, FIXED, cache="off").note == "nothing is cached"
    monkeypatch.setattr(caching, "SHARE_OF_MEMORY", 0.0)
    limited = caches_for(manifest, FIXED)
    assert limited.pixels is None
    assert "0% of the free memory" in limited.note
    assert caches_for(manifest, FIXED, cache="memory").pixels is not None


def test_a_disk_without_room_is_an_error_only_where_the_file_was_asked_for(
    manifest, tmp_path, monkeypatch
):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    place = str(tmp_path / "m.json")
    config = Loading(batch_size=4)
    found = caches_of(manifest, FIXED, tokenizer=TOKENIZER, config=config, beside=place)
    assert found.pixels is None
    assert "No space left" in found.note
    with pytest.raises(OSError, match=r"loading\.cache = 'file' needs .* No space left"):
        batches(manifest, FIXED, beside=place, cache="file")
    assert not [name for name in os.listdir(tmp_path / ".drrho-cache") if "partial" in name]


@pytest.mark.parametrize("mode", ["file", "memory"])
def test_a_cache_without_effect_is_an_error(manifest, mode):
    with pytest.raises(ValueError, match=r"loading\.cache = .* has no effect"):
        caches_for(manifest, RANDOM, cache=mode)
    with pytest.raises(ValueError, match="has no effect beside views"):
        Loading(cache=mode, views=Views(count=2))


def large_images(tmp_path):
    draws = np.random.default_rng(0)
    samples = []
    for number in range(8):
        coarse = Image.fromarray(draws.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        image = coarse.resize((120, 90), Image.Resampling.BICUBIC)
        kind = "PNG" if number == 7 else "JPEG"
        samples.append({"jpg": encoded(image, kind), "txt": f"number {number}".encode()})
    return index_shards(write_shard(tmp_path / "a.tar", samples))


@pytest.mark.parametrize("transform", [FIXED, RANDOM], ids=["fixed", "random"])
def test_draft_decodes_large_images_smaller_to_nearly_the_same(tmp_path, transform):
    manifest = large_images(tmp_path)
    whole, draft = (
        batches(manifest, transform, count=4, draft=draft, beside=str(tmp_path))
        for draft in (False, True)
    )
    differences = [
        (one.images.int() - other.images.int()).abs().max().item()
        for one, other in zip(whole, draft, strict=True)
    ]
    assert 0 < max(differences) < 32, differences
    assert_same(batches(manifest, transform, count=4, draft=True, beside=str(tmp_path)), draft)


def test_draft_without_effect_is_an_error(manifest):
    with pytest.raises(ValueError, match=r"loading\.draft has no effect"):
        batches(manifest, to_tensor, draft=True, tokenizer=to_tokens, cache="off")
    with pytest.raises(ValueError, match=r"loading\.draft has no effect beside views"):
        Loading(draft=True, views=Views(count=2))


@pytest.mark.parametrize("draft", [False, True], ids=["whole", "draft"])
@pytest.mark.parametrize("transform", [FIXED, RANDOM, FLIPPED], ids=["fixed", "random", "flipped"])
def test_resizing_by_torch_gives_nearly_the_same_pixels(tmp_path, transform, draft):
    """The crops and flips are the same, so that only rounding is left; cached or not."""
    manifest = large_images(tmp_path)
    options = {"count": 4, "draft": draft, "beside": str(tmp_path)}
    pillow = batches(manifest, transform, **options)
    found = batches(manifest, transform, **options, resize="torch")
    differences = [
        (one.images.int() - other.images.int()).abs()
        for one, other in zip(pillow, found, strict=True)
    ]
    largest = max(it.max().item() for it in differences)
    # Crops of images that were decoded at half their size are moved to whole pixels.
    assert largest <= (32 if draft and transform is RANDOM else 2)
    assert largest > 0
    assert_same(batches(manifest, transform, **options | {"cache": "off"}, resize="torch"), found)
    assert_same(batches(manifest, transform, **options, resize="torch"), found)  # by now cached


@pytest.mark.parametrize("size", [16, [16], [16, 24], (24, 16)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_torch_resizes_to_torchvisions_size(size, interpolation):
    step = tv.Resize(size, tv.InterpolationMode(interpolation))
    ours = by_torch(step, ("torchvision", "Resize"))
    assert isinstance(ours, TorchResized)
    ramp = np.linspace(0, 255, 90 * 70 * 3).astype(np.uint8).reshape(90, 70, 3)
    for pixels in (ramp, ramp.swapaxes(0, 1).copy(), ramp[:70], ramp[:16, :24], ramp[:24, :16]):
        image = Image.fromarray(pixels)
        theirs, found = step(image), ours(image)
        assert found.size == theirs.size
        assert np.abs(np.asarray(found, int) - np.asarray(theirs, int)).max() <= 2


def test_resizing_by_torch_without_effect_is_an_error(manifest):
    nearest = tv.Compose([tv.Resize(20, tv.InterpolationMode.NEAREST), tv.ToTensor()])
    longest = tv.Compose([tv.Resize(20, max_size=30), tv.ToTensor()])
    for transform in (to_tensor, nearest, longest):
        with pytest.raises(ValueError, match=r'loading\.resize = "torch" has no effect'):
            batches(manifest, transform, resize="torch", tokenizer=to_tokens, cache="off")
    with pytest.raises(ValueError, match=r"loading\.resize = 'torch' has no effect beside views"):
        Loading(resize="torch", views=Views(count=2))


def test_only_tokenizers_that_are_known_are_cached():
    assert describe_tokenizer(to_tokens) is None
    length, described = describe_tokenizer(TOKENIZER)
    assert length == 16
    assert describe_tokenizer(open_clip.SimpleTokenizer(context_length=16))[1] == described
    others = (
        {"context_length": 17},
        {"clean": "whitespace"},
        {"additional_special_tokens": ["<x>"]},
    )
    for other in others:
        tokenizer = open_clip.SimpleTokenizer(**{"context_length": 16} | other)
        assert describe_tokenizer(tokenizer)[1] != described
    dropping = open_clip.SimpleTokenizer(context_length=16, reduction_mask="random")
    assert describe_tokenizer(dropping) is None


def test_the_description_of_a_transform_has_its_parameters():
    found = {
        split_transform(open_clip.image_transform(24, is_train=False, **options)).description
        for options in ({}, {"interpolation": "bilinear"}, {"resize_mode": "squash"})
    }
    other = split_transform(open_clip.image_transform(24, is_train=False), resize="torch")
    assert len(found | {other.description}) == 4


def test_maps_end_with_their_caches(manifest, tmp_path):
    def num_maps():
        gc.collect()
        return sum(str(tmp_path) in m.path for m in psutil.Process().memory_maps())

    batches(manifest, FIXED, beside=str(tmp_path / "m.json"))
    before = num_maps()
    for _repeat in range(3):
        batches(manifest, FIXED, beside=str(tmp_path / "m.json"))
    assert num_maps() <= before


def test_the_files_may_be_removed_at_any_time(manifest, tmp_path):
    place = str(tmp_path / "m.json")
    config = Loading(batch_size=4, shuffle_window=2)
    caches = caches_of(manifest, FIXED, tokenizer=TOKENIZER, config=config, beside=place)
    stream = training_batches(
        manifest,
        FIXED,
        tokenizer=TOKENIZER,
        config=config,
        position=Position(seed=3),
        caches=replace(caches),
    )
    found = [next(stream)]
    shutil.rmtree(tmp_path / ".drrho-cache")
    found += islice(stream, 8)
    assert_same(found, batches(manifest, opaque(FIXED), cache="off"))
