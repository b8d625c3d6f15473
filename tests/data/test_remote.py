"""Shards on a web server: byte ranges, errors that pass and errors that last."""

import os
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.data.tar_files import pair, write_shard

from drrho.cli import main
from drrho.data.indexing import index_shards
from drrho.data.manifest import Manifest
from drrho.data.reading import remote
from drrho.data.reading.cache import OpenShards
from drrho.runtime.errors import without_secrets

pytest.importorskip("aiohttp", reason="fsspec reads from web servers with aiohttp")


@pytest.fixture(autouse=True)
def without_delays(monkeypatch):
    monkeypatch.setattr(remote, "DELAYS", (0.0, 0.0))
    monkeypatch.setattr(remote, "TIMEOUTS", (0.1, 0.1))


@contextmanager
def served(content, *, ranges=True, failures=(), most=None):
    """Serve one file at every address, after some answers with a status, and count requests."""
    failures = list(failures)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(with_content=True)

        def do_HEAD(self):
            self.answer(with_content=False)

        def answer(self, *, with_content):
            if failures:
                status = failures.pop(0)
                if status == "silence":
                    time.sleep(0.5)
                    return
                if status is None:  # hang up
                    self.close_connection = True
                    return
                self.send_error(status)
                return
            part, asked = content, self.headers.get("Range")
            self.send_response(206 if ranges and asked else 200)
            if ranges and asked:
                first, last = asked.removeprefix("bytes=").split("-")
                part = content[int(first) : int(last or len(content)) + 1][:most]
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if with_content:
                self.wfile.write(part)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://user:secret@127.0.0.1:{server.server_port}/a.tar?token=secret", failures
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path / "a.tar", [pair(n) for n in range(4)])


def test_a_shard_behind_http_is_read_by_ranges_and_errors_that_pass_are_waited_out(shard):
    local = index_shards(shard)
    with served(shard.read_bytes()) as (url, failures):
        failures.extend([503, 503])
        index = index_shards(url)
        assert [s.contents for s in index.shards] == [s.contents for s in local.shards]
        failures.extend([503, None])
        samples = OpenShards(index).read([3, 1])
        assert [s.fields for s in samples] == [s.fields for s in OpenShards(local).read([3, 1])]
        assert failures == []


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (503, ConnectionError, r"answered 503 .*, 3 times"),
        (None, ConnectionError, r"127\.0\.0\.1:\d+: .*, 3 times"),
        ("silence", ConnectionError, r"did not answer in time, 3 times"),
        (403, ConnectionError, "answered 403 Forbidden$"),
        (404, FileNotFoundError, "does not exist"),
    ],
)
def test_errors_that_last_say_host_and_status(shard, tmp_path, status, error, message):
    with served(shard.read_bytes()) as (url, failures):
        index = index_shards(url)
        failures.extend([status] * 50)
        with pytest.raises(error, match=rf"127\.0\.0\.1.*{message}") as caught:
            index_shards(url)
        assert "secret" not in str(caught.value)
        failures.extend([status] * 50)
        with pytest.raises(error, match=rf"127\.0\.0\.1.*{message}") as caught:
            OpenShards(index).read([0])
        assert "secret" not in str(caught.value)


def test_a_server_without_ranges_is_named_as_the_cause(shard):
    with served(shard.read_bytes()) as (url, _):
        index = index_shards(url)
    with served(shard.read_bytes(), ranges=False) as (url, _):
        with pytest.raises(ValueError, match=r"127\.0\.0\.1:\d+ does not serve byte ranges"):
            index_shards(url)
        moved = Manifest(shards=tuple(type(s)(**vars(s) | {"url": url}) for s in index.shards))
        with pytest.raises(ValueError, match=r"127\.0\.0\.1:\d+ does not serve byte ranges"):
            OpenShards(moved).read([0, 1])


def test_an_answer_that_is_too_short_is_an_error(shard):
    with served(shard.read_bytes()) as (url, _):
        index = index_shards(url)
    with served(shard.read_bytes(), most=700) as (url, _):
        moved = Manifest(shards=tuple(type(s)(**vars(s) | {"url": url}) for s in index.shards))
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:\d+ sent 700 of .* bytes"):
            OpenShards(moved).read([0, 1])


def test_a_port_where_nobody_listens_is_named(tmp_path):
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9.*, 3 times"):
        index_shards("http://127.0.0.1:9/a.tar")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pa@ss@host/a.tar is", "http://host/a.tar is"),
        ("s3://key:secret@bucket/a.tar", "s3://bucket/a.tar"),
        ("'https://h/a.tar?Signature=x&y=z' is", "'https://h/a.tar?...' is"),
        ("s3://b/a-?.tar or a@b.c", "s3://b/a-?.tar or a@b.c"),
        ("no url? a=b", "no url? a=b"),
    ],
)
def test_messages_show_no_passwords(text, shown):
    assert without_secrets(text) == shown


def test_the_command_line_shows_none_either(tmp_path, capsys):
    assert main(["index", "nonsense://me:secret@host/a.tar", "--output", "m.json"]) == 1
    assert "secret" not in capsys.readouterr().err
    assert not os.path.exists("m.json")
