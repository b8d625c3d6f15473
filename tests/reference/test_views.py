"""Stored views: a training batch and the reference meet the same pixels and words."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.data.tar_files import pair, to_tensor, to_tokens, write_shard
from tests.reference.small_reference import small_encoder
from torch.testing import assert_close

from drrho.data import examples
from drrho.data.indexing import index_shards
from drrho.data.loading import Loading, Position, training_batches
from drrho.data.manifest import Manifest
from drrho.data.reading.shards import decode_image
from drrho.data.views import View, Views
from drrho.reference.precompute import precompute, precompute_views
from drrho.reference.reader import Reference, open_reference, view_folder
from drrho.reference.verify import verify

VIEWS = Views(count=3, seed=5, scale=(0.3, 0.8), captions="random")
COUNT = 6


def samples(first=0):
    captions = [f"first {n}" for n in range(3)]
    return [
        pair(n) | {"captions.json": json.dumps([*captions, f"last {n}"]).encode()}
        for n in range(first, first + COUNT)
    ]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_shard(folder / "a.tar", samples())
    write_shard(folder / "b.tar", samples(COUNT), first_key=COUNT)
    return index_shards(folder)


@pytest.fixture(scope="module")
def stored(manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    encoder = encoder_of_views()
    for number in range(VIEWS.count):
        encoder.view = VIEWS.view(number)
        precompute(encoder, manifest, view_folder(folder, number), batch_size=4)
    return folder


def encoder_of_views():
    """Crops differ in size; it resizes them as the training does."""
    encoder = small_encoder()
    encoder.transform = to_tensor_of_size
    return encoder


def batches(manifest, *, views=VIEWS, steps=6):
    stream = training_batches(
        manifest,
        to_tensor_of_size,
        tokenizer=to_tokens,
        config=Loading(batch_size=4, views=views),
        position=Position(seed=0),
    )
    return [next(stream) for _ in range(steps)]


def to_tensor_of_size(image):
    return to_tensor(image.resize((16, 16)))


def test_what_is_stored_is_what_training_sees(stored, manifest):
    encoder = encoder_of_views()
    reference = open_reference(stored, manifest, views=VIEWS)
    seen = set()
    for batch in batches(manifest):
        found = reference.gather(batch.sample_ids, batch.views)
        assert_close(found.image, encoder.encode_pixels(batch.images), atol=1e-3, rtol=0)
        assert_close(found.text, encoder.encode_tokens(batch.tokens), atol=1e-3, rtol=0)
        assert found.present.all()
        seen |= set(batch.views.tolist())
    assert seen == {0, 1, 2}


def test_an_image_is_decoded_once_for_all_views(manifest, stored, tmp_path, monkeypatch):
    """The files are those of each view alone, also after one of them was lost."""
    decoded = []

    def counted(sample):
        decoded.append(sample.key)
        return decode_image(sample)

    monkeypatch.setattr(examples, "decode_image", counted)
    folders: dict[View | None, Path] = {
        VIEWS.view(n): view_folder(tmp_path, n) for n in range(VIEWS.count)
    }

    def write():
        decoded.clear()
        reports = precompute_views(encoder_of_views(), manifest, folders, batch_size=4)
        assert contents(tmp_path) == contents(stored)
        assert [report.num_encoded for report in reports] == [2 * COUNT] * VIEWS.count
        return len(decoded), [report.shards_found for report in reports]

    assert write() == (2 * COUNT, [0, 0, 0])
    for name in ("view-001", "view-002"):
        next((tmp_path / name).glob("b*.safetensors")).unlink()
    next((tmp_path / "view-002").glob("a*.safetensors")).unlink()
    assert write() == (2 * COUNT, [2, 1, 0])
    assert write() == (0, [2, 2, 2])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.glob("*/*")}


def test_views_are_the_same_in_another_data_set_with_the_shard(manifest, stored):
    turned = Manifest(shards=manifest.shards[::-1])
    first = open_reference(stored, manifest, views=VIEWS)
    second = open_reference(stored, turned, views=VIEWS)
    ids = torch.arange(COUNT)
    views = torch.arange(COUNT) % VIEWS.count
    assert torch.equal(first.gather(ids, views).image, second.gather(ids + COUNT, views).image)
    ours = torch.cat([b.images for b in batches(manifest, steps=200)])
    theirs = {tuple(image.flatten().tolist()) for image in ours}
    for batch in batches(turned, steps=3):
        assert all(tuple(image.flatten().tolist()) in theirs for image in batch.images)


def test_fewer_views_than_are_stored_may_be_used(manifest, stored):
    reference = open_reference(stored, manifest, views=replace(VIEWS, count=1))
    assert reference.gather(torch.arange(4), torch.zeros(4, dtype=torch.int64)).present.all()
    assert reference.num_absent == 0


def test_views_that_are_not_stored_are_named(manifest, stored, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"view-003 .* --views 4"):
        open_reference(stored, manifest, views=replace(VIEWS, count=4))
    with pytest.raises(ValueError, match="another view than loading.views"):
        open_reference(stored, manifest, views=replace(VIEWS, seed=6))
    with pytest.raises(ValueError, match="holds embeddings of views: set loading.views"):
        open_reference(stored, manifest)
    with pytest.raises(FileNotFoundError, match=r"reference\.json"):
        open_reference(tmp_path, manifest)


def test_a_batch_without_views_does_not_fit(manifest, stored):
    reference = open_reference(stored, manifest, views=VIEWS)
    with pytest.raises(ValueError, match="does not fit a reference with views"):
        reference.gather(torch.arange(4))


def test_an_ensemble_of_views_reads_each_of_the_same_view(manifest, stored):
    one = open_reference(stored, manifest, views=VIEWS)
    both = Reference(one.stores * 2, (0.5, 0.5), VIEWS)
    ids, views = torch.tensor([3, 0, 7, 2]), torch.tensor([2, 0, 1, 1])
    expected = one.gather(ids, views)
    found = both.gather(ids, views)
    assert_close(found.image @ found.text.T, expected.image @ expected.text.T)


def test_verification_encodes_the_view_that_is_stored(manifest, stored):
    encoder = encoder_of_views()
    folder = view_folder(stored, 1)
    draws = torch.Generator().manual_seed(0)
    encoder.view = VIEWS.view(1)
    found = verify(folder, manifest, encoder=encoder, num_encoded=8, generator=draws)
    assert found.faults == []
    assert found.num_encoded == 8
    encoder.view = VIEWS.view(2)
    found = verify(folder, manifest, encoder=encoder, num_encoded=8, generator=draws)
    assert "the model is not the one that was stored" in found.faults[0]
    assert View.of_identity(encoder.identity) == VIEWS.view(2)
