"""Arrays and tensors that claim more than their file holds are refused before memory is taken."""

import gzip
import io
import os
import zipfile

import numpy as np
import pytest
import torch
from tests.data.tar_files import pair, write_shard

from drrho.data.items import manifest_of_items
from drrho.reference.arrays import open_npz, plain_tensor, read_npz
from drrho.reference.formats.clip_retrieval import ClipRetrieval
from drrho.reference.formats.datacomp import DataComp
from drrho.reference.formats.drrho_clip import DRRhoClip
from drrho.reference.formats.members import Members
from drrho.reference.losses.table import read_loss_table

TIB = 2**40
MANIFEST = manifest_of_items([b"a"], name="one")


def header(shape, dtype="<f4"):
    """An .npy file without content."""
    file = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def npz(path, content, *, name="x", compressed=False):
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr(f"{name}.npy", content)
    return path


BOMBS = {
    "36 TiB": (header((9 * TIB,)), False, "takes 39,582,418,599,936 bytes, and it has 0"),
    "compressed zeros": (header((2**25,)) + bytes(2**27), True, "compressed bytes claim to be"),
    "one number too few": (header((3,)) + bytes(8), False, "takes 12 bytes, and it has 8"),
    "negative": (header((-1, -8)) + bytes(32), False, "takes 32 bytes|header is damaged"),
    "objects": (header((1,), "|O") + bytes(8), False, "Python objects"),
    "no header": (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'", False, "header is damaged|short"),
    "version": (b"\x93NUMPY\x07\x00" + bytes(80), False, "version"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_array_larger_than_its_file_is_refused(bomb, tmp_path):
    content, compressed, message = BOMBS[bomb]
    path = npz(tmp_path / "losses.npz", content, compressed=compressed)
    with open_npz(path) as archive, pytest.raises(ValueError, match=message):
        read_npz(archive, "x")
    with pytest.raises(ValueError, match=r"losses\.npz cannot be read"):
        read_loss_table(path)


def test_arrays_of_both_orders_are_read(tmp_path):
    wanted = np.arange(12.0).reshape(3, 4)
    arrays = {
        "c": wanted,
        "f": np.asfortranarray(wanted),
        "empty": np.empty((0, 2)),
        "one": wanted[0, 0],
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        with open_npz(tmp_path / "x.npz") as archive:
            assert all(np.array_equal(read_npz(archive, name), arrays[name]) for name in arrays)
    (tmp_path / "x.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"no \.npz file"):
        open_npz(tmp_path / "x.npz")


def test_a_mapped_array_that_claims_more_is_refused(tmp_path):
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    for kind in ("img_emb", "text_emb", "metadata"):
        (tmp_path / kind).mkdir()
    for kind in ("img_emb", "text_emb"):
        (tmp_path / kind / f"{kind}_0.npy").write_bytes(header((9 * TIB, 4), "<f2"))
    table = pa.table({"image_path": ["a"], "caption": ["b"]})
    pq.write_table(table, tmp_path / "metadata" / "metadata_0.parquet")
    with pytest.raises(ValueError, match=r"img_emb_0\.npy .*cannot be read .*and it has 0"):
        ClipRetrieval(source=str(tmp_path)).open(MANIFEST)
    (tmp_path / "pool").mkdir()
    pq.write_table(pa.table({"uid": ["a"]}), tmp_path / "pool" / "pool.parquet")
    with zipfile.ZipFile(tmp_path / "pool" / "pool.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for kind in ("img", "txt"):
            archive.writestr(f"b32_{kind}.npy", header((2**25,)) + bytes(2**27))
    with pytest.raises(ValueError, match=r"pool\.npz cannot be read .*compressed bytes claim"):
        DataComp(source=str(tmp_path / "pool"), variant="b32").open(MANIFEST)


def expanded():
    return torch.zeros(1).expand(10**12, 2, 8)


TENSORS = {
    "repeated": (expanded, "lies in fewer bytes"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "no plain tensor"),
    "complex": (lambda: torch.zeros(1, 2, 8, dtype=torch.complex64), "not of floating point"),
    "whole numbers": (lambda: torch.zeros(1, 2, 8, dtype=torch.int64), "not of floating point"),
    "list": (lambda: [1.0], "holds list|no plain tensor"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_that_is_not_what_it_says_is_refused(kind, tmp_path):
    make, message = TENSORS[kind]
    torch.save(make(), tmp_path / "00000000.pt")
    with pytest.raises(ValueError, match=message):
        DRRhoClip(source=str(tmp_path)).open(MANIFEST)
    with pytest.raises(ValueError, match=message.partition("|")[2] or message):
        plain_tensor(make())


def test_a_pipe_holds_no_features(tmp_path):
    os.mkfifo(tmp_path / "00000000.pt")
    with pytest.raises(ValueError, match="pipe"):
        DRRhoClip(source=str(tmp_path)).open(MANIFEST)


def compressed_tensors(**tensors):
    file = io.BytesIO()
    torch.save(tensors, file)
    return gzip.compress(file.getvalue())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("npz", lambda path: npz(path, header((9 * TIB,)), name="image_emb").read_bytes(), "takes"),
        ("pth.gz", lambda _: gzip.compress(bytes(2**27)), "compressed bytes claim to be"),
        (
            "pth.gz",
            lambda _: compressed_tensors(image_emb=expanded(), text_emb=expanded()),
            "fewer bytes",
        ),
        ("pth.gz", lambda _: compressed_tensors(image_emb="x", text_emb=[]), "no plain tensor"),
    ],
)
def test_a_member_that_claims_more_is_refused(name, content, message, tmp_path):
    write_shard(tmp_path / "a.tar", [pair(0) | {name: content(tmp_path / "x.npz")}])
    with pytest.raises(ValueError, match=rf"of .*a\.tar cannot be read .*{message}"):
        Members(source=str(tmp_path / "a.tar")).open(MANIFEST)


def test_members_of_a_damaged_tar_are_refused(tmp_path):
    embeddings = io.BytesIO()
    np.savez(embeddings, image_emb=np.ones((1, 4)), text_emb=np.ones((1, 4)))
    samples = [pair(i) | {"npz": embeddings.getvalue()} for i in range(2)]
    path = tmp_path / "a.tar"
    write_shard(path, samples)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2048] + whole)
    source = Members(source=str(path))
    with pytest.raises(ValueError, match=r"a\.tar cannot be read"):
        source.open(MANIFEST)
