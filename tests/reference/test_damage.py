"""A damaged store, or one that a stranger made, is refused, and never read as something else."""

import json
import os
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from drrho.data.items import manifest_of_items
from drrho.reference import shard_files
from drrho.reference.blocks import BLOCK_BYTES, CheckedTensor, checksums_of
from drrho.reference.losses.store import LossStore
from drrho.reference.losses.writer import LossWriter
from drrho.reference.shard_files import entries_of, sealed
from drrho.reference.store import (
    REFERENCE_CARDS,
    ReferenceCard,
    ReferenceStore,
    ShardEmbeddings,
    save_shard,
)
from drrho.reference.verify import verify

ROWS, DIM, SHARDS = 30, 8, 3
MANIFEST = manifest_of_items(
    (bytes([i]) for i in range(ROWS * SHARDS)), name="numbers", items_per_shard=ROWS
)
IDS = torch.arange(ROWS * SHARDS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store of embeddings and two of losses, of samples and of tokens, by name."""
    folder = tmp_path_factory.mktemp("stores")
    generator = torch.Generator().manual_seed(0)
    card = ReferenceCard(
        model={"architecture": "x"}, embedding_dim=DIM, shards=entries_of(MANIFEST.shards)
    )
    files = REFERENCE_CARDS.files(card, folder / "reference")
    for entry in card.shards:
        stored = ShardEmbeddings.empty(ROWS, DIM, absent={7: "no caption"})
        for side in (stored.image, stored.text):
            drawn = torch.randn(ROWS, DIM, generator=generator)
            side.copy_(torch.nn.functional.normalize(drawn, dim=1))
            side[7] = 0
        stored.present[:] = torch.arange(ROWS) != 7
        save_shard(files, entry, stored)
    REFERENCE_CARDS.save(card, folder / "reference")
    losses, options = torch.randn(len(IDS), 4, generator=generator), {"identity": "v1"}
    with LossWriter.open(folder, MANIFEST, reference="samples", **options) as writer:
        writer.write(IDS, losses[:, 0])
    with LossWriter.open(folder, MANIFEST, reference="tokens", unit="token", **options) as writer:
        writer.write_tokens(IDS, losses, torch.ones(len(IDS), 4, dtype=torch.bool))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    for path in whole.rglob("*.*"):
        copy = tmp_path / path.relative_to(whole)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path


def content(folder, name):
    """All that a store gives."""
    match name:
        case "reference":
            store = ReferenceStore.open(folder / name, MANIFEST)
            similarities = [store.similarities_in(shard) for shard in range(SHARDS)]
            return [*store.gather(IDS), torch.cat(similarities).nan_to_num(9)]
        case "samples":
            return [LossStore.open(folder, MANIFEST, reference=name).gather(IDS)]
    store = LossStore.open(folder, MANIFEST, reference=name)
    return [store.gather_tokens(IDS, torch.ones(len(IDS), 4, dtype=torch.bool))]


@pytest.mark.parametrize("name", ["reference", "samples", "tokens"])
def test_a_flipped_bit_is_refused_or_changes_nothing(folder, name):
    draw = random.Random(0)
    truth = content(folder, name)
    paths = sorted(path for path in (folder / name).iterdir() if path.suffix)
    refused = 0
    for _ in range(60):
        path = draw.choice(paths)
        before = path.read_bytes()
        place = draw.randrange(len(before))
        flipped = before[place] ^ 1 << draw.randrange(8)
        path.write_bytes(before[:place] + bytes([flipped]) + before[place + 1 :])
        try:
            found = content(folder, name)
        except (ValueError, FileNotFoundError):
            refused += 1
        else:
            assert all(map(torch.equal, found, truth)), f"{path.name}, byte {place}"
        path.write_bytes(before)
    assert refused > 40


def test_verify_finds_what_opening_does_not_read(folder):
    path = folder / "reference" / "numbers-00001.safetensors"
    before = bytearray(path.read_bytes())
    length = int.from_bytes(before[:8], "little")
    start, _ = json.loads(before[8 : 8 + length])["image"]["data_offsets"]
    before[8 + length + start] ^= 1
    path.write_bytes(before)
    store = ReferenceStore.open(folder / "reference", MANIFEST)
    store.gather(IDS[:ROWS])
    options = {"encoder": None, "num_encoded": 0, "generator": torch.Generator()}
    found = verify(folder / "reference", MANIFEST, **options)
    assert len(found.faults) == 1
    assert "numbers-00001, is damaged (the bytes from 0 to" in found.faults[0]


def test_a_block_is_checked_when_one_of_its_rows_is_read_first():
    values = torch.arange(5 * BLOCK_BYTES // 8, dtype=torch.int64).reshape(-1, 2)
    checksums = checksums_of({"it": values})["it"]
    stored = CheckedTensor(values.clone(), checksums, damaged=ValueError)
    per_block = BLOCK_BYTES // 16
    stored.values[3 * per_block + 1, 0] += 1
    some = torch.tensor([0, per_block, 2 * per_block - 1, 2 * per_block])
    assert torch.equal(stored.rows(some), values[some])
    assert list(stored.checked) == [1, 1, 1, 0, 0]
    for read in (lambda: stored.rows(torch.tensor([4 * per_block - 1])), stored.whole):
        with pytest.raises(ValueError, match="the bytes from 196,608 to 262,144 of a tensor"):
            read()
    wide = torch.zeros(2, BLOCK_BYTES)  # a row lies in several blocks
    stored = CheckedTensor(wide.clone(), checksums_of({"it": wide})["it"], damaged=ValueError)
    stored.values[1, BLOCK_BYTES // 2] = 1
    stored.rows(torch.tensor([0]))
    with pytest.raises(ValueError, match="were changed"):
        stored.rows(torch.tensor([1]))


def change_card(path, change):
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def change_header(path, change, **tensors):
    """Change what a file says of itself, under a valid seal."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["drrho"])
    own = {name: value for name, value in header.items() if name not in ("checksums", "seal")}
    change(own)
    found = safetensors.torch.load_file(path) | tensors
    path.write_bytes(safetensors.torch.save(found, sealed(own, found)))


@pytest.mark.parametrize("name", ["reference", "samples"])
def test_a_store_of_the_first_version_opens_without_checksums(folder, name):
    truth = content(folder, name)
    for path in (folder / name).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["drrho"])
        del header["checksums"], header["seal"]
        tensors = safetensors.torch.load_file(path)
        path.write_bytes(safetensors.torch.save(tensors, {"drrho": json.dumps(header)}))
    with pytest.raises(ValueError, match="its header was changed"):
        content(folder, name)
    (card,) = (folder / name).glob("*.json")
    change_card(card, lambda card: card.update(version=1))
    assert all(map(torch.equal, content(folder, name), truth))
    if name == "reference":
        options = {"encoder": None, "num_encoded": 0, "generator": torch.Generator()}
        assert not verify(folder / name, MANIFEST, **options).has_checksums


@pytest.mark.parametrize(
    "file", ["../../x", "/tmp/x", "..", ".", "", "a/b", "a\\b", "a\0b", 3, None]
)
@pytest.mark.parametrize("name", ["reference", "samples"])
def test_files_of_a_store_have_bare_names(folder, name, file):
    (card,) = (folder / name).glob("*.json")
    change_card(card, lambda card: card["shards"][1].update(file=file))
    with pytest.raises(ValueError, match=r"is damaged .*(bare name|file of a shard must be)"):
        content(folder, name)
    options = {"reference": "samples", "identity": "v1"}
    with suppress(ValueError), LossWriter.open(folder, MANIFEST, **options) as writer:
        writer.write(IDS, torch.zeros(len(IDS)))
    assert not (folder.parent / "x").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("embedding_dim", "8"),
        ("embedding_dim", 0),
        ("model", ["x"]),
        ("model", {"architecture": 3}),
        ("version", "2"),
        ("version", []),
        ("shards", {"a": 1}),
        ("shards", [3]),
        ("shards", 7),
    ],
)
def test_a_card_of_other_types_is_damaged(folder, field, value):
    path = folder / "reference" / "reference.json"
    change_card(path, lambda card: card.update({field: value}))
    with pytest.raises(ValueError, match=r"reference\.json (is damaged|says)"):
        content(folder, "reference")


@pytest.mark.parametrize("field", ["num_samples", "keys_sha256", "content_sha256", "shard"])
@pytest.mark.parametrize("value", [None, -1, 3.5, [], {}])
def test_a_shard_of_other_types_is_damaged(folder, field, value):
    path = folder / "reference" / "reference.json"
    change_card(path, lambda card: card["shards"][0].update({field: value}))
    with pytest.raises(ValueError, match=rf"is damaged .*{field}"):
        content(folder, "reference")


@pytest.mark.parametrize(
    "absent", [None, [], {"x": "reason"}, {"7": 3}, {"7": None}, "7", {"7": {"a": []}}], ids=repr
)
def test_reasons_of_other_types_are_damage(folder, absent):
    path = folder / "reference" / "numbers-00000.safetensors"
    change_header(path, lambda header: header.update(absent=absent))
    options = {"encoder": None, "num_encoded": 0, "generator": torch.Generator()}
    (fault,) = verify(folder / "reference", MANIFEST, **options).faults
    assert "numbers-00000, is damaged" in fault


@pytest.mark.parametrize("name", ["image", "text", "present"])
@pytest.mark.parametrize("change", ["type", "shape", "rank"])
def test_each_tensor_must_have_its_type_and_shape(folder, name, change):
    path = folder / "reference" / "numbers-00002.safetensors"
    tensor = safetensors.torch.load_file(path)[name]
    other = torch.float32 if name == "present" else torch.bfloat16
    wrong = {"type": tensor.to(other), "shape": tensor[1:].clone(), "rank": tensor[None].clone()}
    wrong = wrong[change]
    change_header(path, lambda header: None, **{name: wrong})
    with pytest.raises(ValueError, match=rf"is damaged \(it has the types and shapes .*{name}"):
        ReferenceStore.open(folder / "reference", MANIFEST)


@pytest.mark.parametrize("file", ["reference.json", "numbers-00000.safetensors"])
def test_a_pipe_is_no_file_of_a_store(folder, file):
    (folder / "reference" / file).unlink()
    os.mkfifo(folder / "reference" / file)
    with pytest.raises(ValueError, match="pipe"):
        ReferenceStore.open(folder / "reference", MANIFEST)


def test_nested_json_is_damage(folder):
    (folder / "reference" / "reference.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        ReferenceStore.open(folder / "reference", MANIFEST)


def mapped(folder):
    """Names of the files of a folder that this process has mapped into memory."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    return {Path(line.split(maxsplit=5)[5]).name for line in lines if str(folder) in line}


def test_a_store_keeps_a_bounded_number_of_files_open(folder, monkeypatch):
    monkeypatch.setattr(shard_files, "MAX_OPEN", 2)
    truth = {name: content(folder, name) for name in ("reference", "samples", "tokens")}
    opened = []
    known = shard_files.safe_open
    monkeypatch.setattr(
        shard_files,
        "safe_open",
        lambda path, **options: opened.append(path) or known(path, **options),
    )
    store = ReferenceStore.open(folder / "reference", MANIFEST)
    opened.clear()
    for _ in range(3):
        assert all(map(torch.equal, store.gather(IDS), truth["reference"][:3]))
    assert len(opened) == 3 * SHARDS, "each was closed in between"
    assert mapped(folder) <= {path.name for path in opened[-2:]}
    store.gather(IDS[: 2 * ROWS])
    opened.clear()
    store.gather(IDS[: 2 * ROWS])
    assert not opened
    for name, expected in truth.items():
        assert all(map(torch.equal, content(folder, name), expected))


def test_signatures_of_urls_are_in_no_name_and_no_message(folder):
    url = "https://user:word@host/a.tar?signature=secret"
    shard = replace(MANIFEST.shards[0], url=url)
    (entry,) = entries_of([shard])
    assert (entry.shard, entry.file) == ("a.tar", "a.safetensors")
    other = replace(shard, content_sha256="0", keys_sha256="0")
    card = REFERENCE_CARDS.load(folder / "reference")
    with pytest.raises(ValueError, match=r"no embeddings of shard https://.*host/a\.tar") as info:
        REFERENCE_CARDS.files(card, folder / "reference").find(other)
    assert not any(secret in str(info.value) for secret in ("word", "secret"))
