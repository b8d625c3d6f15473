"""Rows and cells of tables that are not what they should be: right, counted or refused."""

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.tar_files import picture

from drrho.data.indexing import Columns, index_shards
from drrho.data.reading.delimited import read_delimited
from drrho.data.reading.layout import Layout
from drrho.data.reading.sources import open_rows


def captions_of(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_delimited(str(path), ["image", "caption"])[1]


def test_quotes_are_characters_in_a_tsv_file(tmp_path):
    text = (
        'image\tcaption\n0.jpg\ta dog\n1.jpg\t"hello said the dog\n2.jpg\ta cat\n'
        '3.jpg\ta "quoted" word\n4.jpg\tend\n'
    )
    expected = ["a dog", '"hello said the dog', "a cat", 'a "quoted" word', "end"]
    assert captions_of(tmp_path / "a.tsv", text) == expected
    assert captions_of(tmp_path / "a.tsv", text.replace("\n", "\r\n")) == expected


CAPTIONS = ["a dog", 'a "quoted" word', '"quoted"', "a\ttab, a comma", "two\nlines", "", "é"]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_what_pandas_writes_is_read_back(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    table = pd.DataFrame({"image": [f"{i}.jpg" for i in range(7)], "caption": CAPTIONS})
    table.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    with pytest.warns(UserWarning, match="1 rows are over several lines, the first begins in line"):
        assert read_delimited(str(path), ["image", "caption"])[1] == CAPTIONS
    table[table.caption != "two\nlines"].to_csv(
        path, index=False, sep="\t" if suffix == "tsv" else ","
    )
    assert read_delimited(str(path), ["caption"])[0] == [c for c in CAPTIONS if "\n" not in c]


def test_rows_with_another_number_of_fields_are_counted(tmp_path):
    for name in "0123":
        (tmp_path / f"{name}.jpg").write_bytes(picture(0))
    path = tmp_path / "a.csv"
    path.write_text('image,caption\n0.jpg,a dog, on a log\n1.jpg,a cat\n\n2.jpg\n3.jpg,"a, b"\n')
    unusable = {0: "the row has 3 fields, not 2", 2: "the row has 1 fields, not 2"}
    assert index_shards(path).shards[0].unusable == unusable
    path = tmp_path / "a.tsv"
    path.write_text('image\tcaption\n0.jpg\ta\tdog\n1.jpg\t"a cat\n2.jpg\n3.jpg\tb\n')
    assert index_shards(path).shards[0].unusable == unusable


def test_rows_that_a_missing_quote_joins_are_refused_or_warned_of(tmp_path):
    path = tmp_path / "a.csv"
    for text in ('0.jpg,a dog\n1.jpg,"hello\n2.jpg,a cat\n', '0.jpg,a dog\n1.jpg,"a" dog\n'):
        with pytest.raises(ValueError, match=r"a\.csv, line 3: .*ends with one"):
            captions_of(path, f"image,caption\n{text}")
    with pytest.warns(UserWarning, match=r"a\.csv: 1 rows are over several lines.* line 2;"):
        captions_of(path, 'image,caption\n0.jpg,"hello\n1.jpg,a cat\n2.jpg,the end"\n')


def test_a_column_named_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="several columns called 'caption'"):
        captions_of(tmp_path / "a.csv", "image,caption,caption\n0.jpg,a,b\n")


def parquet(folder, image, caption):
    pq.write_table(pa.table({"image": image, "caption": caption}), folder / "a.parquet")
    return str(folder / "a.parquet"), "table"


def dataset(folder, image, caption):
    table = datasets.Dataset(pa.table({"image": image, "caption": caption}))
    table.save_to_disk(folder / "set")
    return str(folder / "set"), "dataset"


WRONG = [
    ([{"raw": "a dog", "id": 1}], "dict"),
    ([3], "int"),
    ([1.5], "float"),
    ([[{"raw": "a dog"}]], "dict"),
    ([[["a"]]], "list"),
    ([[1, 2]], "int"),
    ([True], "bool"),
    ([b"bytes"], "bytes"),
]


@pytest.mark.parametrize("write", [parquet, dataset])
@pytest.mark.parametrize(("caption", "kind"), WRONG)
def test_a_caption_of_another_type_names_column_row_and_type(tmp_path, write, caption, kind):
    url, of = write(tmp_path, [b"image"], caption)
    with pytest.raises(ValueError, match=rf"row 0, column 'caption' holds a {kind}.*--caption-col"):
        index_shards(url)
    rows = open_rows(url, Layout(kind=of, image="caption", caption=None))
    if kind not in ("dict", "bytes") and not isinstance(caption[0], list):
        with pytest.raises(ValueError, match=rf"column 'caption' holds a {kind}.*--image-column"):
            rows[0]


@pytest.mark.parametrize("write", [parquet, dataset])
@pytest.mark.parametrize("missing", [[None, "a"], [np.nan, np.nan], [[], ["a"]], [[None], ["a"]]])
def test_what_is_missing_is_no_caption(tmp_path, write, missing):
    url, _ = write(tmp_path, [picture(0), picture(1)], missing)
    unusable = index_shards(url).shards[0].unusable
    assert unusable[0] == "no caption"
    assert len(unusable) == (1 if ["a"] in missing or "a" in missing else 2)


def test_an_image_may_be_a_struct_of_bytes_or_path(tmp_path):
    image = [
        {"bytes": picture(0), "path": None},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None},
    ]
    url, _ = parquet(tmp_path, image, ["a", "b", "c"])
    unusable = {1: "no image: its file does not exist", 2: "no image"}
    assert index_shards(url, columns=Columns()).shards[0].unusable == unusable
