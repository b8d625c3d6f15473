"""What other programs stored is found by key, wherever it is, and nothing else is taken."""

import gzip
import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.data.tar_files import pair, without_caption, write_shard
from torch.nn.functional import normalize
from torch.testing import assert_close

from drrho.cli import main
from drrho.data.indexing import index_shards
from drrho.reference.formats.build import ImportConfig, import_reference
from drrho.reference.formats.clip_retrieval import ClipRetrieval
from drrho.reference.formats.datacomp import DataComp
from drrho.reference.formats.drrho_clip import DRRhoClip
from drrho.reference.formats.members import Members
from drrho.reference.store import ReferenceStore

COUNT, DIM = 7, 6
NAN, ZERO, MISSING, UNUSABLE = 2, 3, 4, 5
UIDS = [f"{n:032x}" for n in range(COUNT)]


def embeddings(kind):
    """Of any length, by sample; one row is NaN and one zero."""
    generator = torch.Generator().manual_seed({"image": 1, "text": 2}[kind])
    rows = 3 * torch.randn(COUNT, DIM, generator=generator)
    rows[NAN], rows[ZERO] = float("nan"), 0
    return rows.numpy().astype(np.float16)


IMAGE, TEXT = embeddings("image"), embeddings("text")


def row_of(number):
    if number == UNUSABLE:
        return without_caption(number)
    return pair(number) | {"json": json.dumps({"uid": UIDS[number]}).encode()}


@pytest.fixture
def data(tmp_path):
    """Two shards; keys are 0 to 6."""
    for name, numbers in (("a", range(3)), ("b", range(3, COUNT))):
        rows = [row_of(n) for n in numbers]
        write_shard(tmp_path / "data" / f"{name}.tar", rows, first_key=numbers.start)
    return tmp_path / "data"


def stored(numbers):
    """What is stored of some samples, in another order than they have."""
    return [n for n in reversed(numbers) if n != MISSING]


def write_datacomp(folder, numbers):
    chosen = stored(numbers)
    for part, some in enumerate((chosen[:2], chosen[2:])):
        table = pa.table({"uid": [UIDS[n] for n in some], "text": ["?"] * len(some)})
        pq.write_table(table, folder / f"part{part}.parquet")
        arrays = {"b32_img": IMAGE[some], "b32_txt": TEXT[some]}
        arrays |= {"l14_img": -IMAGE[some], "l14_txt": -TEXT[some]}
        (np.savez, np.savez_compressed)[part](folder / f"part{part}.npz", **arrays)


def write_clip_retrieval(folder, numbers):
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir()
    chosen = stored(numbers)
    for part, some in enumerate((chosen[:3], chosen[3:])):
        np.save(folder / "img_emb" / f"img_emb_{part}.npy", IMAGE[some])
        np.save(folder / "text_emb" / f"text_emb_{part}.npy", TEXT[some])
        columns = {
            "image_path": [f"{n:06d}" for n in some],
            "caption": [f"picture number {n}" for n in some],
            "uid": [UIDS[n] for n in some],
        }
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{part}.parquet")


def npz(number):
    buffer = io.BytesIO()
    np.savez(
        buffer,
        image_emb=np.stack([-IMAGE[number], IMAGE[number]]),
        text_emb=np.stack([TEXT[number], -TEXT[number]]),
    )
    return buffer.getvalue()


def pickled(number):
    buffer = io.BytesIO()
    both = {
        "image_emb": torch.from_numpy(np.stack([-IMAGE[number], IMAGE[number]])).bfloat16(),
        "text_emb": torch.from_numpy(TEXT[number][None]).bfloat16(),
    }
    torch.save(both, buffer)
    return gzip.compress(buffer.getvalue())


def write_members(folder, numbers):
    """Beside the shards, with their names."""
    for name, some in (("a", range(3)), ("b", range(3, COUNT))):
        rows = [{"npz": npz(n)} if n in stored(numbers) else {"txt": b"?"} for n in some]
        write_shard(folder / f"{name}.tar", rows, first_key=some.start)


def write_pickled_members(folder, numbers):
    rows = [{"pth.gz": pickled(n)} if n in stored(numbers) else {"txt": b"?"} for n in range(COUNT)]
    write_shard(folder / "other.tar", rows)


def write_drrho_clip(folder, numbers):
    """Three samples to a file; what was not cached is zero."""
    table = torch.zeros(9, 2, DIM)
    for n in stored(numbers):
        table[n] = torch.from_numpy(np.stack([IMAGE[n], TEXT[n]])).float()
    for number, rows in enumerate(table.split(3)):
        torch.save(rows.clone(), folder / f"{number:08d}.pt")


FORMATS = {
    "datacomp": (write_datacomp, partial(DataComp, variant="b32")),
    "clip-retrieval": (write_clip_retrieval, ClipRetrieval),
    "clip-retrieval by uid": (write_clip_retrieval, partial(ClipRetrieval, key_field="uid")),
    "members": (write_members, partial(Members, image_row=1)),
    "pickled members": (write_pickled_members, partial(Members, image_row=1)),
    "drrho-clip": (write_drrho_clip, partial(DRRhoClip, samples_per_file=3)),
}
COMMANDS = {
    DataComp: "datacomp",
    ClipRetrieval: "clip-retrieval",
    Members: "members",
    DRRhoClip: "drrho-clip",
}


def config_of(name, source, data, output):
    form = FORMATS[name][1](source=str(source))
    return ImportConfig(format=form, data=str(data), output=str(output), model="a model")


@pytest.fixture(params=FORMATS)
def prepared(request, data, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    FORMATS[request.param][0](source, list(range(COUNT)))
    return config_of(request.param, source, data, tmp_path / "out")


def test_every_sample_gets_the_row_of_its_key(prepared, data):
    report = import_reference(prepared)
    good = [n for n in range(COUNT) if n not in (NAN, ZERO, MISSING, UNUSABLE)]
    store = ReferenceStore.open(prepared.output, index_shards(data))
    found = store.gather(torch.arange(COUNT))
    assert found.present.nonzero().squeeze(1).tolist() == good
    tolerance = 1e-2 if "other.tar" in str(list(data.parent.glob("source/*"))) else 2e-3
    for ours, theirs in ((found.image, IMAGE), (found.text, TEXT)):
        expected = normalize(torch.from_numpy(theirs[good]).float(), dim=1)
        assert_close(ours[good], expected, atol=tolerance, rtol=0)
    assert report.num_encoded == len(good)
    assert report.absent["imported embedding is not finite"] == 1
    assert report.absent["no caption"] == 1
    zeros = 2 if isinstance(prepared.format, DRRhoClip) else 1
    assert report.absent["imported embedding is zero"] == zeros
    assert store.identity["architecture"] == "a model"
    assert store.identity["format"] == COMMANDS[type(prepared.format)]


def test_it_is_a_command(prepared, capsys):
    options = [
        part
        for name in ("variant", "key_field", "image_row", "samples_per_file")
        if (value := getattr(prepared.format, name, None)) is not None
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    form = prepared.format
    arguments = ["reference", "import", COMMANDS[type(form)], form.source, "--data", prepared.data]
    arguments += ["--output", prepared.output, "--model", "a model", *options]
    assert main(arguments) == 0
    assert "embeddings of 3 of 7 samples" in capsys.readouterr().out
    assert main(arguments) == 1
    assert "holds embeddings already" in capsys.readouterr().err


def test_rows_of_another_data_set_are_refused(prepared, tmp_path):
    other = tmp_path / "other-data"
    rows = [pair(n) | {"json": b'{"uid": "x%d"}' % n} for n in range(20, 23)]
    write_shard(other / "c.tar", rows, first_key=500)
    config = ImportConfig(**vars(prepared) | {"data": str(other)})
    with pytest.raises(ValueError, match="not one of 3 samples.*keys like .*another data set"):
        import_reference(config)
    with pytest.raises(FileNotFoundError):
        ReferenceStore.open(config.output, index_shards(other))


def test_samples_without_the_field_that_joins_are_told(tmp_path):
    data = tmp_path / "data"
    write_shard(data / "a.tar", [pair(n) for n in range(2)])
    tars = tmp_path / "embeddings"
    arrays = io.BytesIO()
    np.savez(arrays, image_emb=np.ones(4), text_emb=np.ones(4))
    write_shard(tars / "a.tar", [{"npz": arrays.getvalue()}])
    config = ImportConfig(
        format=Members(source=str(tars), key_field="uid"),
        data=str(data),
        output=str(tmp_path / "out"),
        model="a model",
    )
    with pytest.raises(ValueError, match=r"\(2 no uid\). They are joined by uid"):
        import_reference(config)


def test_two_imports_can_be_told_apart(prepared, tmp_path, data):
    import_reference(prepared)
    source = tmp_path / "source"
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    name = next(n for n in FORMATS if FORMATS[n][1](source=str(source)) == prepared.format)
    for path in files:
        path.unlink()
    for path in sorted(source.rglob("*"), reverse=True):
        path.rmdir()
    FORMATS[name][0](source, [n for n in range(COUNT) if n != 0])
    again = ImportConfig(**vars(prepared) | {"output": str(tmp_path / "again")})
    if name == "members" and "other.tar" in {path.name for path in files}:
        return  # written as npz this time: another format
    import_reference(again)
    identities = [
        ReferenceStore.open(folder, index_shards(data)).identity["files_sha256"]
        for folder in (prepared.output, again.output)
    ]
    assert identities[0] != identities[1]


def test_a_key_that_is_there_twice_is_an_error(data, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write_datacomp(source, list(range(COUNT)))
    for suffix in ("parquet", "npz"):
        (source / f"copy.{suffix}").write_bytes((source / f"part0.{suffix}").read_bytes())
    with pytest.raises(ValueError, match=r"the uid '0.*' is there twice: row \d of .*parquet and"):
        import_reference(config_of("datacomp", source, data, tmp_path / "out"))


def test_files_that_do_not_fit_are_named(data, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    config = config_of("datacomp", source, data, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="holds no .parquet file"):
        import_reference(config)
    write_datacomp(source, list(range(COUNT)))
    np.savez(source / "part0.npz", b32_img=IMAGE[:1], b32_txt=TEXT[:1])
    with pytest.raises(ValueError, match="1 rows of embeddings for 2 rows of keys"):
        import_reference(config)
    np.savez(source / "part0.npz", other=IMAGE)
    with pytest.raises(ValueError, match=r"part0\.npz has no array 'b32_img'"):
        import_reference(config)
    np.savez(source / "part0.npz", b32_img=np.array([{}, {}]), b32_txt=TEXT[:2])
    with pytest.raises(ValueError, match="Python objects"):
        import_reference(config)
    (source / "part0.npz").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"part0\.npz cannot be read"):
        import_reference(config)
    (source / "part0.npz").unlink()
    with pytest.raises(FileNotFoundError, match="download_npz"):
        import_reference(config)


def test_options_of_other_formats_are_refused(tmp_path, capsys):
    common = ["x", "--data", "d", "--output", str(tmp_path / "out"), "--model", "m"]
    for arguments, message in (
        (["datacomp", *common], "--variant"),
        (["members", *common, "--samples-per-file", "3"], "--samples-per-file"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["reference", "import", *arguments])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def numbered(folder, numbers):
    """Three samples whose names are 0, 1 and 2; their json has these numbers, or none."""
    rows = [
        pair(n) | {"json": json.dumps({} if number is None else {"key": number}).encode()}
        for n, number in enumerate(numbers)
    ]
    write_shard(folder / "data" / "n.tar", rows)
    (folder / "features").mkdir()
    write_drrho_clip(folder / "features", list(range(COUNT)))
    return str(folder / "features"), str(folder / "data"), str(folder / "store")


def imported(source, data, output, **options):
    form = DRRhoClip(source=source, samples_per_file=3, **options)
    report = import_reference(ImportConfig(format=form, data=data, output=output, model="a model"))
    store = ReferenceStore.open(output, index_shards(Path(data)))
    return report, store.gather(torch.arange(3)).image


def rows_like(numbers):
    return normalize(torch.from_numpy(IMAGE[numbers]).float(), dim=1)


def test_published_features_are_joined_by_the_number_in_the_json(tmp_path):
    report, image = imported(*numbered(tmp_path, ["000000006", None, None]), number="json")
    assert_close(image[0], rows_like([6])[0], atol=2e-3, rtol=0)
    assert report.absent == {"no numeric key": 2}
    assert str(report).endswith("joined 1 by the number in their json")


def test_each_way_to_a_number_is_counted(tmp_path):
    report, image = imported(*numbered(tmp_path, [0, "001", None]))
    assert_close(image[:2], rows_like([0, 1]), atol=2e-3, rtol=0)
    assert report.joined == {
        "by the number in their json": 2,
        "by the number in their name": 1,
    }


def test_two_numbers_that_differ_are_refused_and_may_be_chosen_from(tmp_path):
    source, data, output = numbered(tmp_path, [6, 1, 0])
    with pytest.raises(
        ValueError, match="has the number 6 in its json and 0 in its name.*--number"
    ):
        imported(source, data, output)
    _, by_json = imported(source, data, f"{output}-json", number="json")
    _, by_name = imported(source, data, f"{output}-member", number="member")
    assert_close(by_json, rows_like([6, 1, 0]), atol=2e-3, rtol=0)
    assert_close(by_name[:2], rows_like([0, 1]), atol=2e-3, rtol=0)


def two_teachers(number):
    """Two teachers of 4 and 2 dimensions, and captions that were made."""
    buffer = io.BytesIO()
    np.savez(
        buffer, image_emb=IMAGE[number][None], text_emb=TEXT[number], syn_text_emb=-TEXT[number]
    )
    return buffer.getvalue()


def import_teacher(tmp_path, name, **options):
    for part in ("pairs", "members"):
        (tmp_path / part).mkdir(exist_ok=True)
    write_shard(tmp_path / "pairs" / "p.tar", [pair(n) for n in (0, 1)])
    write_shard(tmp_path / "members" / "p.tar", [{"npz": two_teachers(n)} for n in (0, 1)])
    form = Members(source=str(tmp_path / "members"), **options)
    data, output = str(tmp_path / "pairs"), str(tmp_path / name)
    import_reference(ImportConfig(format=form, data=data, output=output, model="a model"))
    return ReferenceStore.open(output, index_shards(Path(data)))


def test_each_of_two_concatenated_teachers_is_a_store_of_its_own(tmp_path):
    split = {"teacher_dims": (4, 2)}
    stores = [import_teacher(tmp_path, f"t{i}", teacher=i, **split) for i in (0, 1)]
    for store, part in zip(stores, (slice(0, 4), slice(4, 6)), strict=True):
        found = store.gather(torch.arange(2))
        for ours, theirs in ((found.image, IMAGE), (found.text, TEXT)):
            expected = normalize(torch.from_numpy(theirs[:2, part]).float(), dim=1)
            assert_close(ours, expected, atol=2e-3, rtol=0)
    assert stores[0].identity != stores[1].identity
    with pytest.raises(ValueError, match="6 and 6 dimensions, and teacher_dims = .4, 4. are 8"):
        import_teacher(tmp_path, "t2", teacher=0, teacher_dims=(4, 4))


def test_made_captions_of_their_own_array(tmp_path):
    store = import_teacher(tmp_path, "s", text_array="syn_text_emb")
    expected = normalize(torch.from_numpy(-TEXT[:2]).float(), dim=1)
    assert_close(store.gather(torch.arange(2)).text, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": 0}, "give both"),
        ({"teacher_dims": (4, 2)}, "give both"),
        ({"teacher_dims": (4, 2), "teacher": 2}, "teacher must be from 0 to 1, got 2"),
        ({"teacher_dims": (4, 0), "teacher": 0}, r"teacher_dims\[1\] must be at least 1"),
    ],
)
def test_teachers_that_cannot_be_taken_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Members(source="x", **options)
