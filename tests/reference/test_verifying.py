"""What is not the model's embedding of the sample is found, and what is, passes."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch
from tests.data.tar_files import pair, write_flawed_set, write_shard
from tests.reference.small_reference import small_encoder, two_tower
from tests.reference.test_store import rewrite as replace_tensors

from drrho.data.indexing import index_shards
from drrho.encoding.encoder import EmbeddingModel
from drrho.reference.precompute import precompute
from drrho.reference.verify import verify


@pytest.fixture
def manifest(tmp_path):
    return index_shards(write_flawed_set(tmp_path / "data"))


@pytest.fixture
def folder(manifest, tmp_path):
    precompute(small_encoder(), manifest, tmp_path / "out", batch_size=4)
    return tmp_path / "out"


def check(folder, manifest, *, encoder=None, samples=64):
    return verify(
        folder,
        manifest,
        encoder=small_encoder() if encoder is None else encoder,
        num_encoded=samples,
        generator=torch.Generator().manual_seed(0),
    )


def rewrite(path, change):
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    replace_tensors(path, **tensors)


def test_a_store_in_order_passes(folder, manifest):
    found = check(folder, manifest)
    assert found.faults == []
    assert (found.num_samples, found.num_stored, found.num_encoded) == (15, 10, 10)
    assert found.absent == {
        "no caption": 1,
        "no image": 1,
        "empty caption": 1,
        "corrupt image": 2,
    }
    assert min(found.lowest) > 1 - 1e-5


def test_a_few_samples_are_drawn_by_the_generator(folder, manifest):
    assert check(folder, manifest, samples=3).num_encoded == 3


def shift(tensors):
    for name in ("image", "text"):
        tensors[name] = tensors[name].roll(1, dims=0)


def swap(tensors):
    order = torch.tensor([1, 0])
    for name in ("image", "text"):
        tensors[name] = tensors[name][order]


def test_rows_in_another_order_are_found_and_the_right_row_named(tmp_path):
    manifest = index_shards(write_shard(tmp_path / "a.tar", [pair(n) for n in (1, 40)]))
    precompute(small_encoder(), manifest, tmp_path / "out", batch_size=4)
    rewrite(tmp_path / "out" / "a.safetensors", swap)
    (fault,) = check(tmp_path / "out", manifest).faults
    assert "2 of 2 samples are not what the model makes of them" in fault
    assert "sample 0" in fault
    assert "row 1 of its shard is closest" in fault


def test_shifted_rows_are_found(folder, manifest):
    rewrite(folder / "train-0.safetensors", shift)
    faults = check(folder, manifest).faults
    assert any("are not what the model makes of them" in fault for fault in faults)


@pytest.mark.parametrize("value", [float("nan"), 0.5])
def test_every_row_is_looked_at(folder, manifest, value):
    def spoil(tensors):
        tensors["text"][4] = value

    rewrite(folder / "train-1.safetensors", spoil)
    faults = check(folder, manifest, samples=1).faults
    assert any("train-1.tar: 1 text embeddings are not finite or" in fault for fault in faults)
    assert any("rows [4]" in fault for fault in faults)


def test_files_and_data_that_do_not_fit_are_named(folder, manifest, tmp_path):
    path = folder / "train-3.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    (folder / "train-1.safetensors").unlink()
    faults = check(folder, manifest).faults
    assert len(faults) == 2
    assert "train-1.tar are missing" in faults[0]
    assert "damaged" in faults[1]
    other = index_shards(write_shard(tmp_path / "other.tar", [pair(30)]))
    (fault,) = check(folder, other).faults
    assert "other.tar" in fault


def test_an_import_is_held_to_its_cosines_alone(folder, manifest):
    """Its card knows no weights."""
    nameless = {k: v for k, v in two_tower().identity.items() if k != "weights_sha256"}
    model = replace(two_tower(), identity=nameless)
    encoder = EmbeddingModel.frozen(model, precision="float32", device="cpu")
    imported = folder.parent / "imported"
    precompute(encoder, manifest, imported, batch_size=4)
    assert check(imported, manifest).faults == []
    (fault,) = check(imported, manifest, encoder=small_encoder(1)).faults
    assert "are not what the model makes of them" in fault


def test_another_model_is_named(folder, manifest):
    (fault,) = check(folder, manifest, encoder=small_encoder(1)).faults
    assert "the model is not the one that was stored" in fault
    assert "weights_sha256" in fault
