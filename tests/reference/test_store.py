"""Embeddings attach to samples by the contents of their shard, or not at all."""

import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from tests.data.tar_files import pair, write_shard
from tests.reference.small_reference import DIM, embeddings_of, small_encoder

from drrho.data.indexing import index_shards
from drrho.data.manifest import Manifest
from drrho.reference.precompute import precompute
from drrho.reference.shard_files import sealed
from drrho.reference.store import ReferenceStore

REMEDY = "drrho reference precompute"


@pytest.fixture
def data(tmp_path):
    """Three shards of 4, 2 and 3 good samples; number = id."""
    for name, first, last in (("a", 0, 4), ("b", 4, 6), ("c", 6, 9)):
        write_shard(tmp_path / "data" / f"{name}.tar", [pair(n) for n in range(first, last)])
    return tmp_path / "data"


@pytest.fixture
def folder(data, tmp_path):
    precompute(small_encoder(), index_shards(data), tmp_path / "reference", batch_size=3)
    return tmp_path / "reference"


def rewrite(path, **changes):
    """Replaces tensors of a shard's file, and keeps what it says of itself but for checksums."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["drrho"])
    tensors = safetensors.torch.load_file(path)
    tensors = {name: changes.get(name, tensor).clone() for name, tensor in tensors.items()}
    own = {name: value for name, value in header.items() if name not in ("checksums", "seal")}
    safetensors.torch.save_file(tensors, path, sealed(own, tensors))


def rewrite_card(folder, **changes):
    path = folder / "reference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_gathered_rows_come_in_the_order_asked_for(data, folder):
    store = ReferenceStore.open(folder, index_shards(data))
    ids = torch.randint(0, 9, (50,))
    found = store.gather(ids)
    assert found.image.dtype == found.text.dtype == torch.float32
    assert found.image.shape == (50, store.embedding_dim) == (50, DIM)
    for place, number in enumerate(ids.tolist()):
        image, text = embeddings_of(number)
        torch.testing.assert_close(found.image[place], image, atol=1e-3, rtol=0)
        torch.testing.assert_close(found.text[place], text, atol=1e-3, rtol=0)


def test_nothing_asked_for_is_an_error(data, folder):
    store = ReferenceStore.open(folder, index_shards(data))
    with pytest.raises(ValueError, match="at least one"):
        store.gather(torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize("ids", [[-1, 3], [3, 9]])
def test_an_id_outside_the_manifest_is_an_error(data, folder, ids):
    store = ReferenceStore.open(folder, index_shards(data))
    with pytest.raises(IndexError, match=r"\[0, 9\)"):
        store.gather(torch.tensor(ids))


def test_a_reference_serves_any_of_its_shards_wherever_they_lie(data, folder, tmp_path):
    moved = data.rename(tmp_path / "moved")
    (moved / "a.tar").rename(moved / "renamed.tar")
    manifest = index_shards(f"{moved}/{{c,renamed}}.tar")
    found = ReferenceStore.open(folder, manifest).gather(torch.arange(7))
    for place, number in enumerate((6, 7, 8, 0, 1, 2, 3)):
        torch.testing.assert_close(found.text[place], embeddings_of(number)[1], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("rows", "first_key", "message"),
    [
        ([4, 5, 6], 0, "of 2 samples, the shard has 3"),
        ([4, 5], 7, "keys"),
        ([5, 4], 0, "the same keys but other contents"),
    ],
)
def test_data_changed_since_are_an_error_that_names_the_shard(
    data, folder, rows, first_key, message
):
    write_shard(data / "b.tar", [pair(n) for n in rows], first_key=first_key)
    with pytest.raises(ValueError, match=rf"do not fit shard .*b\.tar.*{message}.*{REMEDY}"):
        ReferenceStore.open(folder, index_shards(data))


def test_a_shard_that_was_not_encoded_is_an_error_that_names_it(data, folder):
    write_shard(data / "d.tar", [pair(9)])
    with pytest.raises(ValueError, match=rf"no embeddings of shard .*d\.tar.*{REMEDY}"):
        ReferenceStore.open(folder, index_shards(data))


def test_a_missing_file_is_an_error_that_names_shard_and_remedy(data, folder):
    (folder / "c.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=rf"c\.tar are missing.*{REMEDY}"):
        ReferenceStore.open(folder, index_shards(data))


def test_a_folder_without_a_card_is_an_error_with_the_remedy(data, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"reference\.json.*{REMEDY}"):
        ReferenceStore.open(tmp_path, index_shards(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "this program reads"),
        ({"version": 3}, "this program reads"),
        ({"dtype": "bfloat16"}, "this program reads"),
        ({"normalisation": "none"}, "this program reads"),
        ({"shards": [{}]}, "damaged"),
        ({"embedding_dim": DIM + 1}, r"a\.tar.*shapes"),
        ({"model": {"architecture": "other"}}, r"a\.safetensors is not of shard a\.tar.*model"),
    ],
)
def test_a_card_that_does_not_hold_is_an_error(data, folder, change, message):
    rewrite_card(folder, **change)
    with pytest.raises(ValueError, match=rf"{message}.*{REMEDY}"):
        ReferenceStore.open(folder, index_shards(data))


def test_a_damaged_file_is_an_error_that_names_the_shard(data, folder):
    path = folder / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=rf"shard b\.tar, is damaged.*{REMEDY}"):
        ReferenceStore.open(folder, index_shards(data))


def test_swapped_files_are_an_error_that_names_the_shard(data, folder):
    (folder / "a.safetensors").write_bytes((folder / "b.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"a\.safetensors is not of shard a\.tar.*keys_sha256"):
        ReferenceStore.open(folder, index_shards(data))


def test_a_wrong_number_of_rows_is_an_error_that_names_the_shard(data, folder):
    rewrite(folder / "b.safetensors", image=torch.zeros(3, DIM, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"shard b\.tar, is damaged.*\(3, 12\).*not.*\(2, 12\)"):
        ReferenceStore.open(folder, index_shards(data))


@pytest.mark.parametrize("name", ["image", "text", "present"])
@pytest.mark.parametrize("change", ["rows", "dimension", "fewer"])
def test_every_shape_of_a_file_is_checked(data, folder, name, change):
    path = folder / "b.safetensors"
    tensor = safetensors.torch.load_file(path)[name]
    wrong = {
        "rows": torch.cat([tensor, tensor[:1]]),
        "dimension": torch.cat([tensor, tensor], dim=-1),
        "fewer": tensor[:1],
    }[change]
    rewrite(path, **{name: wrong})
    with pytest.raises(ValueError, match=r"shard b\.tar, is damaged"):
        ReferenceStore.open(folder, index_shards(data))


@pytest.mark.parametrize(
    ("norm", "is_unit"), [(0.999, True), (1.001, True), (0.997, False), (1.003, False)]
)
@pytest.mark.parametrize("name", ["image", "text"])
def test_a_norm_is_one_up_to_the_rounding_of_float16(data, folder, name, norm, is_unit):
    stored = torch.zeros(2, DIM, dtype=torch.float16)
    stored[:, 0] = norm
    rewrite(folder / "b.safetensors", **{name: stored})
    if is_unit:
        ReferenceStore.open(folder, index_shards(data))
    else:
        with pytest.raises(ValueError, match=rf"{name} embeddings of shard b\.tar.* norm {norm}"):
            ReferenceStore.open(folder, index_shards(data))


@pytest.mark.parametrize("factor", [0.5, float("nan")])
def test_rows_that_are_not_unit_are_an_error_that_names_the_shard(data, folder, factor):
    text = safetensors.torch.load_file(folder / "b.safetensors")["text"]
    rewrite(folder / "b.safetensors", text=text * factor)
    with pytest.raises(ValueError, match=r"text embeddings of shard b\.tar.*norm (0\.5|nan)"):
        ReferenceStore.open(folder, index_shards(data))


def test_a_row_that_is_not_finite_is_absent(data, folder, monkeypatch):
    """Wherever it lies: not every row is looked at when the store is opened."""
    monkeypatch.setattr("drrho.reference.store.NORM_CHECKS", 1)
    text = safetensors.torch.load_file(folder / "b.safetensors")["text"]
    text[1] = float("nan")
    rewrite(folder / "b.safetensors", text=text)
    manifest = index_shards(data)
    wrong = manifest.offsets[1] + 1
    found = ReferenceStore.open(folder, manifest).gather(torch.arange(manifest.num_samples))
    assert not found.present[wrong]
    assert found.image.isfinite().all()
    assert found.text.isfinite().all()
    assert not found.image[wrong].any()


def test_the_store_says_which_model_it_is_of(data, folder):
    store = ReferenceStore.open(folder, Manifest(shards=index_shards(data).shards[:1]))
    assert store.identity["architecture"] == "small"
    assert store.identity["precision"] == "float32"


def test_a_file_is_no_reference(tmp_path, data):
    (tmp_path / "train.json").touch()
    with pytest.raises(NotADirectoryError, match=r"train\.json is a file, not a folder that holds"):
        ReferenceStore.open(tmp_path / "train.json", index_shards(data))
