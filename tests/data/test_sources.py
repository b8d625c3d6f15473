"""Tables, folders of images and datasets on disk are read as tar files are."""

import csv
import json
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.data.tar_files import numbers_shown, pair, picture, to_tensor, to_tokens, write_shard

from drrho.data.examples import evaluation_batches
from drrho.data.index import IndexConfig, MixConfig, mix_manifests, write_manifest
from drrho.data.indexing import Columns, index_shards
from drrho.data.loading import Loading, Position, training_batches
from drrho.data.manifest import Manifest
from drrho.data.order import epoch_order, steps_per_epoch
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.shards import UnusableSample, decode_captions
from drrho.data.reading.sources import dataset_columns

COUNT = 6


def caption(number):
    return f"picture number {number}"


def write_images(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    return [f"{number}.jpg" for number in range(COUNT)]


def write_csv(folder, *, suffix="csv", columns=("image", "caption")):
    paths = write_images(folder / "images")
    with (folder / f"a.{suffix}").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if suffix == "tsv" else ",")
        writer.writerow(["more", *columns])
        for number, path in enumerate(paths):
            writer.writerow(["x", f"images/{path}", caption(number)])
    return folder / f"a.{suffix}"


def write_tsv(folder):
    return write_csv(folder, suffix="tsv")


def write_parquet(folder):
    paths = write_images(folder / "images")
    table = pa.table(
        {
            "image": [f"images/{path}" for path in paths],
            "caption": [caption(number) for number in range(COUNT)],
        }
    )
    pq.write_table(table, folder / "a.parquet")
    return folder / "a.parquet"


def write_parquet_of_bytes(folder):
    """As Hugging Face's hub has them."""
    folder.mkdir(exist_ok=True)
    table = pa.table(
        {
            "image": [{"bytes": picture(number), "path": None} for number in range(COUNT)],
            "caption": [[caption(number), f"another {number}"] for number in range(COUNT)],
        }
    )
    pq.write_table(table, folder / "b.parquet")
    return folder


def write_dataset(folder):
    datasets = pytest.importorskip("datasets")
    paths = write_images(folder / "images")
    dataset = datasets.Dataset.from_dict(
        {
            "image": [str(folder / "images" / path) for path in paths],
            "caption": [caption(number) for number in range(COUNT)],
        }
    ).cast_column("image", datasets.Image())
    dataset.save_to_disk(folder / "dataset")
    return folder / "dataset"


def write_folder(folder):
    """As img2dataset's output format "files": a folder for each shard."""
    for number in range(COUNT):
        place = folder / "files" / f"{number // 3:05d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:09d}.jpg").write_bytes(picture(number))
        (place / f"{number:09d}.txt").write_text(caption(number))
    return folder / "files"


WRITERS = [
    write_csv,
    write_tsv,
    write_parquet,
    write_parquet_of_bytes,
    write_dataset,
    write_folder,
]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("workers", [0, 1])
def test_every_row_is_a_sample(tmp_path, write, workers):
    manifest = index_shards(write(tmp_path))
    manifest.save(tmp_path / "manifest.json")
    manifest = Manifest.load(tmp_path / "manifest.json")
    assert manifest.num_samples == COUNT
    assert len(manifest.shards) == (2 if write is write_folder else 1)
    (*_, batch) = evaluation_batches(manifest, to_tensor, batch_size=COUNT, workers=workers)
    shown = torch.cat(
        [
            batch.images
            for batch in evaluation_batches(manifest, to_tensor, batch_size=COUNT, workers=workers)
        ]
    )
    assert numbers_shown(shown) == list(range(COUNT))
    assert batch.first_captions[-1] == caption(COUNT - 1)


def test_each_image_of_a_list_is_a_sample(tmp_path):
    datasets = pytest.importorskip("datasets")
    lists = [[0, 1], [], None, [2, 3, 4]]
    images = [shown and [{"bytes": picture(n), "path": None} for n in shown] for shown in lists]
    features = {
        "pictures": datasets.Sequence(datasets.Image()),
        "words": datasets.Value("string"),
    }
    datasets.Dataset.from_dict(
        {"pictures": images, "words": ["a", "b", "c", "d"]},
        features=datasets.Features(features),
    ).save_to_disk(tmp_path / "dataset")
    columns = Columns(image="pictures", caption="words")
    manifest = index_shards(tmp_path / "dataset", columns=columns)
    (batch,) = evaluation_batches(manifest, to_tensor, batch_size=9)
    assert batch.sample_ids.tolist() == [0, 1, 2, 3, 4]
    assert numbers_shown(batch.images) == [0, 1, 2, 3, 4]
    assert batch.first_captions == ["a", "a", "d", "d", "d"]
    url = str(tmp_path / "dataset")
    assert dataset_columns(url, ["words"]) == [["a", "b", "c", "d"]]
    with pytest.raises(ValueError, match=r"has no column 'sounds', it has \['pictures'"):
        dataset_columns(url, ["words", "sounds"])


@pytest.mark.parametrize("write", [write_csv, write_parquet, write_folder])
def test_what_changed_since_is_an_error(tmp_path, write):
    manifest = index_shards(write(tmp_path))
    sorted(tmp_path.rglob("*[0-9].jpg"))[2].write_bytes(picture(9))
    with pytest.raises(ValueError, match="another image, caption or key in row 2.*drrho index"):
        OpenShards(manifest).read([2])


def test_what_is_missing_is_unusable_and_counted(tmp_path):
    path = write_csv(tmp_path)
    (tmp_path / "images" / "1.jpg").unlink()
    text = path.read_bytes().replace(caption(3).encode(), b"")
    path.write_bytes(text.replace(caption(4).encode(), b"\xff\xfe"))
    (shard,) = index_shards(path).shards
    assert shard.unusable == {
        1: "no image: its file does not exist",
        3: "empty caption",
        4: "corrupt caption",
    }


def test_columns_and_the_folder_of_images_are_named(tmp_path):
    path = write_csv(tmp_path, columns=("first", "second"))
    with pytest.raises(ValueError, match=r"no column 'image', it has \['more', 'first', 'second"):
        index_shards(path)
    (tmp_path / "lists").mkdir()
    path = path.rename(tmp_path / "lists" / "a.csv")
    config = IndexConfig(
        data=str(path),
        output=str(tmp_path / "train.json"),
        image_column="first",
        caption_column="second",
        images=str(tmp_path),
    )
    manifest, _ = write_manifest(config)
    assert manifest.usable_ids().tolist() == list(range(COUNT))
    columns = Columns(image="first", caption="second", images=str(tmp_path / "lists"))
    found = index_shards(path, columns=columns)
    assert set(found.shards[0].unusable.values()) == {"no image: its file does not exist"}


def test_a_folder_is_a_label_where_there_are_no_captions(tmp_path):
    for name, number in (("cat", 0), ("dog", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(picture(number))
    manifest = index_shards(tmp_path)
    assert len(manifest.usable_ids()) == 0
    batches = evaluation_batches(manifest, to_tensor, batch_size=4, parts=("metadata",))
    assert [m["folder"] for batch in batches for m in batch.metadata] == ["cat", "dog"]


def train(manifest, *, captions, seed=0, batch_size=COUNT):
    return training_batches(
        manifest,
        to_tensor,
        tokenizer=to_tokens,
        config=Loading(batch_size=batch_size, captions=captions),
        position=Position(seed=seed),
    )


def lengths(batch):
    order = batch.sample_ids.argsort()
    return batch.tokens[order, 0].tolist()


def test_a_random_caption_is_drawn_at_every_visit(tmp_path):
    rows = [
        pair(n) | {"captions.json": json.dumps([f"{'x' * k} {n}" for k in (1, 2, 3)]).encode()}
        for n in range(40)
    ]
    manifest = index_shards(write_shard(tmp_path / "a.tar", rows))
    first = [lengths(b) for b in islice(train(manifest, captions="first", batch_size=40), 2)]
    assert first[0] == first[1], "the first of captions.json"
    epochs = [lengths(b) for b in islice(train(manifest, captions="random", batch_size=40), 3)]
    again = [lengths(b) for b in islice(train(manifest, captions="random", batch_size=40), 3)]
    assert epochs == again
    assert epochs[0] != epochs[1] != epochs[2]
    for sample in range(40):
        extra = 2 + len(str(sample))
        assert {epoch[sample] - extra for epoch in epochs} <= {0, 1, 2}
    drawn = [epoch[s] - 2 - len(str(s)) for epoch in epochs for s in range(40)]
    assert all(25 <= drawn.count(k) <= 55 for k in range(3)), "of 120, each some 40 times"


@pytest.mark.parametrize("content", [b"{", b'{"a": 1}', b'["a", 1]', b'["\\ud800"]'])
def test_captions_that_are_none_are_corrupt(tmp_path, content):
    sample = next(iter(index_and_read(tmp_path, pair(0) | {"captions.json": content})))
    with pytest.raises(UnusableSample, match="corrupt caption"):
        decode_captions(sample)


def index_and_read(tmp_path, row):
    return OpenShards(index_shards(write_shard(tmp_path / "a.tar", [row]))).read([0])


def test_a_mixture_visits_each_set_as_often_as_its_weight_says(tmp_path):
    for name, first in (("a", 0), ("b", 8)):
        rows = [pair(n) for n in range(first, first + 8)]
        path = write_shard(tmp_path / f"{name}.tar", rows, first_key=first)
        index_shards(path).save(tmp_path / f"{name}.json")
    config = MixConfig(
        manifests=(str(tmp_path / "a.json"), str(tmp_path / "b.json")),
        output=str(tmp_path / "mix.json"),
        weights=(1.0, 2.5),
    )
    mix_manifests(config)
    manifest = Manifest.load(tmp_path / "mix.json")
    assert manifest.num_samples == 16
    assert steps_per_epoch(manifest, batch_size=4) == 7
    counts = []
    for epoch in range(2):
        order = epoch_order(manifest, seed=0, epoch=epoch, shuffle_window=2)
        counts.append(torch.bincount(order, minlength=16))
        assert counts[-1][:8].tolist() == [1] * 8
        assert sorted(counts[-1][8:].tolist()) == [2] * 4 + [3] * 4
    assert not torch.equal(*counts), "another half comes once more"
    (batch, *_) = islice(train(manifest, captions="first", batch_size=4), 1)
    assert numbers_shown(batch.images) == batch.sample_ids.tolist()
    for weight in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="weight of shard"):
            mix_manifests(MixConfig(**vars(config) | {"weights": (1.0, weight)}))
    with pytest.raises(ValueError, match="weights must be as many as manifests, 2"):
        MixConfig(**vars(config) | {"weights": (1.0,)})
    with pytest.raises(ValueError, match=r"a\.tar occurs more than once"):
        mix_manifests(MixConfig(**vars(config) | {"manifests": (str(tmp_path / "a.json"),) * 2}))
