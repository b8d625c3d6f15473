"""Files that anybody may have written become what was meant, or an error that names the place."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest

from drrho.runtime.records import MAX_JSON, read_record, write_record


@dataclass(frozen=True, kw_only=True)
class Part:
    kind: ClassVar = "part"
    sizes: tuple[int, int] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Other:
    kind: ClassVar = "other"
    name: str = "x"


@dataclass(frozen=True, kw_only=True)
class Record:
    version: ClassVar = 2
    count: int
    rate: float = 0.5
    name: str | None = None
    flag: bool = False
    choice: Literal["a", 1] = "a"
    parts: tuple[Part | Other, ...] = ()
    rows: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.count < 0:
            raise ValueError(f"count must not be negative, got {self.count}")


FULL = Record(count=3, name="é", parts=(Part(), Other()), rows={4: 0.25})


def written(folder):
    path = folder / "record.json"
    write_record(path, FULL)
    return path


def test_what_is_written_is_read(tmp_path):
    assert read_record(written(tmp_path), Record) == FULL


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_changes_nothing(tmp_path, encoding):
    path = written(tmp_path)
    path.write_bytes(json.dumps({"count": 3, "name": "é"}, ensure_ascii=False).encode(encoding))
    assert read_record(path, Record) == Record(count=3, name="é")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": "3"}, "count must be a int, got '3'; restore the file from a backup"),
        ({"count": True}, "count must be a int, got True"),
        ({"count": 3.0}, "count must be a int, got 3.0"),
        ({"count": None}, "count must be a int, got None"),
        ({"count": 10**30}, "count must be a int, got a number of many digits"),
        ({"count": -1}, "json: count must not be negative, got -1"),
        ({"rate": "0.5"}, "rate must be a float, got '0.5'"),
        ({"rate": False}, "rate must be a float, got False"),
        ({"rate": 10**400}, "rate must be a float, got a number of many digits"),
        ({"name": 1}, "name must be a str, got 1"),
        ({"flag": 1}, "flag must be a bool, got 1"),
        ({"choice": True}, "choice must be 'a' or 1, got True"),
        ({"choice": "b"}, "choice must be 'a' or 1, got 'b'"),
        ({"parts": {}}, "parts must be a list, got {}"),
        ({"parts": [{"kind": "third"}]}, r"parts\[0\] must be a Part or Other, got"),
        ({"parts": [{"kind": "part", "sizes": [1]}]}, r"parts\[0\].sizes must be a list of 2"),
        ({"parts": [{"kind": "part", "sizes": [1, "2"]}]}, r"sizes\[1\] must be a int, got '2'"),
        ({"rows": {"x": 1.0}}, "rows must have keys of type int, got 'x'"),
        ({"rows": {"1": "x"}}, "rows.1 must be a float, got 'x'"),
        ({"rows": [1]}, "rows must be an object"),
        ({"format": 3}, "has format 3, and this version of drrho reads up to 2"),
        ({"format": "2"}, "has format '2'"),
        ({"format": True}, "has format True"),
        ({"format": -1}, "has format -1"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_place(tmp_path, change, message):
    path = written(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as info:
        read_record(path, Record)
    assert str(info.value).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b'{"count": 1', "is no JSON"),
        (b'{"count": 1} {}', "is no JSON"),
        (b'{"count": 01}', "is no JSON"),
        (b"[1]", "holds no JSON object"),
        (b"null", "holds no JSON object"),
        (b'{"count": 1, "count": 2}', "'count' is there twice"),
        (b'{"count": 1, "name": "\\ud800"}', "surrogates not allowed"),
        (b'{"count": 1, "name": "\xe9"}', "codec can't decode"),
        ('{"count": 1}'.encode("utf-16"), "is no JSON"),
        (b'{"count": 1, "parts": ' + b"[" * 60 + b"]" * 60 + b"}", "deeper than 50"),
        (b'{"count": 1, "parts": ' + b"[" * 10**5, "nested too deeply"),
        (b'{"count": 1' + b"0" * 5000 + b"}", "is no JSON"),
    ],
)
def test_what_is_no_record_is_damage(tmp_path, content, message):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as info:
        read_record(path, Record)
    assert str(info.value).startswith(str(path))
    assert "restore the file from a backup" in str(info.value)


def test_what_is_no_file_of_that_size_is_not_read(tmp_path):
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(MAX_JSON + 1)
    os.mkfifo(tmp_path / "pipe.json")
    for path, message in (
        (large, "at most"),
        (tmp_path / "pipe.json", "is a pipe"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            read_record(path, Record)
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "absent.json", Record)
