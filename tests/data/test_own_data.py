"""Data as people have them on disk are taken, or one sentence says what to do."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.tar_files import numbers_shown, picture, to_tensor, write_shard

from drrho.cli import main
from drrho.data.examples import evaluation_batches
from drrho.data.index import IndexConfig, run_index, write_manifest
from drrho.data.indexing import Columns, index_shards

WORDS = ["one", "two", "three"]


def captions_of(manifest):
    (batch,) = evaluation_batches(manifest, to_tensor, batch_size=9, parts=("caption",))
    assert numbers_shown(batch.images) == list(range(len(batch.captions)))
    return batch.captions


def write_images(folder, suffix="jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        (folder / f"{number}.{suffix}").write_bytes(picture(number))
    return [f"{number}.{suffix}" for number in range(3)]


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    elif path.suffix == ".parquet":
        columns = list(zip(*rows, strict=True))
        pq.write_table(pa.table(dict(zip(header, map(list, columns), strict=True))), path)
    else:
        named = [dict(zip(header, row, strict=True)) for row in rows]
        path.write_text(
            json.dumps(named) if path.suffix == ".json" else "\n".join(map(json.dumps, named))
        )
    return path


NAMES = [
    ("filepath", "title"),  # open_clip's
    ("image_path", "caption"),
    ("image", "text"),
    ("file_name", "text"),  # Hugging Face's folders of images
    ("Image Path", "Description"),
    ("img", "prompt"),
    ("filename", "sentences"),
]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize(("image", "caption"), NAMES)
def test_names_of_columns_that_people_use_are_known(tmp_path, suffix, image, caption):
    rows = [
        (7, path, word)
        for path, word in zip(write_images(tmp_path / "pictures"), WORDS, strict=True)
    ]
    path = write_table(tmp_path / f"a.{suffix}", ("id", image, caption), rows)
    manifest = index_shards(path)
    assert captions_of(manifest) == [[word] for word in WORDS], "images are in the folder beside it"
    said = run_index(IndexConfig(data=str(path), output=str(tmp_path / "train.json")))
    assert (f"images are in {image!r}" in said) == (image != "image")
    assert (f"captions are in {caption!r}" in said) == (caption != "caption")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            ("first", "text"),
            r"no column 'image', it has \['first', 'text'\]; .*--image-col",
        ),
        (("image", "label"), r"no column 'caption', it has \['image', 'label'\]; .*-column ''"),
        (
            ("path", "filename", "text"),
            r"several .*, \['path', 'filename'\]; say which: --im",
        ),
        (
            ("image", "title", "text"),
            r"several .*, \['title', 'text'\]; .*--caption-column",
        ),
        (("url", "caption"), "addresses, 'url', and nothing is fetched; fetch .* img2dataset"),
        (("image;caption",), "one field, 'image;caption'; fields are separated by commas"),
    ],
)
def test_columns_that_are_not_known_are_asked_for(tmp_path, header, said):
    path = write_table(tmp_path / "a.csv", header, [header])
    with pytest.raises(ValueError, match=said):
        index_shards(path)


def test_image_and_caption_come_before_other_names(tmp_path):
    write_images(tmp_path)
    header = ("path", "text", "image", "caption")
    path = write_table(tmp_path / "a.csv", header, [("x", "no", "0.jpg", "yes")])
    assert captions_of(index_shards(path)) == [["yes"]]


def test_a_table_without_captions_is_indexed_where_it_is_said(tmp_path):
    write_images(tmp_path)
    path = write_table(tmp_path / "a.csv", ("image", "label"), [("0.jpg", "cat")])
    manifest = index_shards(path, columns=Columns(caption=""))
    assert manifest.shards[0].unusable == {0: "no caption"}


def test_cells_with_addresses_and_missing_folders_are_named(tmp_path):
    path = write_table(tmp_path / "a.csv", ("image", "caption"), [("https://a.org/0.jpg", "one")])
    with pytest.raises(
        ValueError, match=r"its path is a URL, and nothing is fetched \(img2dataset"
    ):
        write_manifest(IndexConfig(data=str(path), output=str(tmp_path / "a.json")))
    path = write_table(tmp_path / "b.csv", ("file_name", "text"), [("0.jpg", "one")])
    with pytest.raises(ValueError, match=rf"'file_name' are relative to {tmp_path}; .*--images"):
        write_manifest(IndexConfig(data=str(path), output=str(tmp_path / "a.json")))


@pytest.mark.parametrize("table", ["a.csv", "lists/a.csv"])
@pytest.mark.parametrize("images", ["images", "photos with spaces, é"])
def test_images_in_a_folder_beside_the_table_are_found(tmp_path, table, images):
    names = write_images(tmp_path / images)
    write_images(tmp_path / "others", suffix="png")
    path = write_table(tmp_path / table, ("image", "caption"), zip(names, WORDS, strict=True))
    assert captions_of(index_shards(path)) == [[word] for word in WORDS]
    write_images(tmp_path / "twice")
    unusable = index_shards(path).shards[0].unusable
    assert set(unusable.values()) == {"no image: its file does not exist"}, "two have them"


def test_captions_of_coco(tmp_path):
    names = write_images(tmp_path / "train2017")
    images = [{"id": 10 + n, "file_name": name} for n, name in enumerate(names)]
    annotations = [
        {"id": 1, "image_id": 11, "caption": "two"},
        {"id": 2, "image_id": 10, "caption": "one"},
        {"id": 3, "image_id": 10, "caption": "uno"},
        {"id": 4, "image_id": 12, "caption": "three"},
    ]
    path = tmp_path / "annotations" / "captions_train2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    assert captions_of(index_shards(path)) == [["one", "uno"], ["two"], ["three"]]
    said = run_index(IndexConfig(data=str(tmp_path), output=str(tmp_path / "train.json")))
    assert f"for labels only ({path} may have them: index it" in said
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 10, "bbox": []}]}))
    with pytest.raises(ValueError, match=r"neither a list .* COCO's captions .* has \['images'"):
        index_shards(path)
    path.write_text(json.dumps({"format": "drrho manifest"}))
    with pytest.raises(ValueError, match="neither a list of objects"):
        index_shards(path)


@pytest.mark.parametrize(
    ("sidecars", "expected"),
    [
        ({"0.txt": "one", "1.TXT": "two", "2.txt": "three"}, WORDS),
        ({"0.json": {"caption": "one"}, "1.json": {"caption": "two"}, "2.txt": "three"}, WORDS),
        ({f"{n}.json": {"url": "x", "text": word} for n, word in enumerate(WORDS)}, WORDS),
        ({"0.txt": "one", "0.json": {"caption": "no"}, "1.txt": "two", "2.txt": "three"}, WORDS),
        ({"0.json": {"caption": "one"}, "1.json": [], "2.json": {"other": "x"}}, ["one"]),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "JPG"])
def test_captions_in_files_beside_images(tmp_path, sidecars, expected, suffix):
    folder = tmp_path / "my photos, é"
    write_images(folder, suffix)
    for name, content in sidecars.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    manifest = index_shards(folder)
    assert captions_of(manifest) == [[word] for word in expected]
    assert set(manifest.shards[0].unusable.values()) <= {"no caption"}


def test_the_field_of_files_beside_images_is_asked_for_and_named(tmp_path):
    write_images(tmp_path)
    for n in range(3):
        fields = {"title": "no", "text": WORDS[n]}
        (tmp_path / f"{n}.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"\['title', 'text'\]; say which: --caption-field"):
        index_shards(tmp_path)
    manifest = index_shards(tmp_path, columns=Columns(caption_field="text"))
    assert captions_of(manifest) == [[word] for word in WORDS]
    with pytest.raises(ValueError, match="image_column = 'a' has no effect where there is"):
        index_shards(tmp_path, columns=Columns(image="a"))


def test_an_index_of_images_made_before_reads_the_same(tmp_path):
    """Then only txt files had captions, and json files beside images were not looked at."""
    write_images(tmp_path / "a")
    (tmp_path / "a" / "0.txt").write_text("one")
    manifest = index_shards(tmp_path)
    assert manifest.shards[0].layout == dict.fromkeys(("image", "caption", "root")) | {
        "kind": "folder"
    }
    (tmp_path / "a" / "1.json").write_text(json.dumps({"caption": "two"}))
    (batch,) = evaluation_batches(manifest, to_tensor, batch_size=9, parts=())
    assert numbers_shown(batch.images) == [0, 1, 2]


def test_images_of_other_kinds_in_a_folder_are_counted(tmp_path, capsys):
    write_images(tmp_path / "a")
    for name in ("a.gif", "b.GIF", "c.heic"):
        (tmp_path / "a" / name).write_bytes(b"x")
    (tmp_path / "a" / "0.txt").write_text("one")
    assert main(["index", str(tmp_path / "a")]) == 0
    assert "not taken (2 .gif, 1 .heic)" in capsys.readouterr().out


def test_a_folder_of_hugging_face(tmp_path):
    names = write_images(tmp_path / "cats")
    rows = list(zip([f"cats/{name}" for name in names], WORDS, strict=True))
    write_table(tmp_path / "metadata.csv", ("file_name", "text"), rows)
    assert captions_of(index_shards(tmp_path)) == [[word] for word in WORDS]
    (tmp_path / "train").mkdir()
    (tmp_path / "metadata.csv").rename(tmp_path / "train" / "metadata.csv")
    (tmp_path / "cats").rename(tmp_path / "train" / "cats")
    assert captions_of(index_shards(tmp_path)) == [[word] for word in WORDS]


def test_folders_and_tables_of_img2dataset(tmp_path):
    for shard in ("00000", "00001"):
        write_images(tmp_path / "files" / shard)
        for n, word in enumerate(WORDS):
            (tmp_path / "files" / shard / f"{n}.txt").write_text(word)
            (tmp_path / "files" / shard / f"{n}.json").write_text('{"caption": "x", "url": "u"}')
        rows = [("http://a", "one", "000")]
        write_table(tmp_path / "files" / f"{shard}.parquet", ("url", "caption", "key"), rows)
        (tmp_path / "files" / f"{shard}_stats.json").write_text("{}")
    manifest = index_shards(tmp_path / "files")
    assert [len(shard.unusable) for shard in manifest.shards] == [0, 0]
    rows = [("http://a", picture(n), word) for n, word in enumerate(WORDS)]
    path = write_table(tmp_path / "parquet" / "0.parquet", ("url", "jpg", "caption"), rows)
    assert captions_of(index_shards(path.parent)) == [[word] for word in WORDS]


def test_splits_that_save_to_disk_wrote_are_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    image = {"image": [{"bytes": picture(0), "path": None}], "text": ["one"]}
    one = datasets.Dataset.from_dict(image)
    datasets.DatasetDict({"train": one, "later": one}).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match=r"several splits, later, train; give .* as .*two/train"):
        index_shards(tmp_path / "two")
    assert captions_of(index_shards(tmp_path / "two" / "train")) == [["one"]]
    datasets.DatasetDict({"train": one}).save_to_disk(tmp_path / "one")
    assert captions_of(index_shards(tmp_path / "one")) == [["one"]]


def make_tars(folder, names):
    for name in names:
        write_shard(folder / name, [{"jpg": picture(0), "txt": b"one"}])


def make_folders(folder, names):
    for name in names:
        write_images(folder / name)


def make_tables(folder, names):
    for name in names:
        write_table(folder / name, ("image", "caption"), [("0.jpg", "one")])


SPLITS = [
    (make_tars, ["train-0.tar", "train-1.tar", "val-0.tar", "test-0.tar"], "'{}/train*.tar'"),
    (make_tars, ["x_Train2017-0.tar", "x_val2017-0.tar"], "{}/x_Train2017-0.tar"),
    (make_tables, ["train-00000-of-00002.csv", "validation.csv"], "{}/train-00000-of-00002.csv"),
    (make_tables, ["train/metadata.csv", "test/metadata.csv"], "{}/train/metadata.csv"),
    (make_folders, ["train/cat", "train/dog", "val/cat"], "{}/train"),
    (make_folders, ["train2017", "val2017"], "{}/train2017"),
]


@pytest.mark.parametrize(("make", "names", "remedy"), SPLITS)
def test_splits_of_one_folder_are_not_one_data_set(tmp_path, make, names, remedy):
    make(tmp_path, names)
    remedy = remedy.format(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds several splits, (train, val|train and|val and)"
    ) as e:
        index_shards(tmp_path)
    assert f"name one of them, as {remedy}, or join" in str(e.value)
    found = index_shards(remedy.strip("'"))
    assert all("rain" in shard.url for shard in found.shards)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (make_folders, ["bus", "train", "car"]),
        (make_tars, ["train-0.tar", "extra.tar", "interval.tar", "testament.tar"]),
    ],
)
def test_names_that_are_no_splits_are_taken(tmp_path, make, names):
    make(tmp_path, names)
    assert len(index_shards(tmp_path).shards) == len(names)


def test_a_pattern_that_names_the_splits_joins_them(tmp_path):
    make_tars(tmp_path, ["train-0.tar", "val-0.tar"])
    assert len(index_shards(f"{tmp_path}/{{train,val}}-0.tar").shards) == 2
    with pytest.raises(ValueError, match="several splits, train and val"):
        index_shards(f"{tmp_path}/*.tar")
