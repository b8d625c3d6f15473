"""What is not installed is named, with a command that installs it."""

import json
import shlex

import pytest
from packaging.requirements import Requirement

from drrho.runtime import optional


class Installed:
    """A distribution with a record of the place that it was installed from."""

    def __init__(self, record):
        self.record = record

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.record


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"url": "file:///home/me/my%20clone", "dir_info": {"editable": True}},
            ["-e", "/home/me/my clone[clip]"],
        ),
        ({"url": "file:///home/me/clone", "dir_info": {}}, ["/home/me/clone[clip]"]),
        (
            {
                "url": "https://example.org/drrho.git",
                "vcs_info": {"vcs": "git", "commit_id": COMMIT},
            },
            [f"drrho[clip] @ git+https://example.org/drrho.git@{COMMIT}"],
        ),
        (
            {"url": "file:///tmp/drrho.tar.gz", "archive_info": {}},
            ["drrho[clip] @ file:///tmp/drrho.tar.gz"],
        ),
        (None, ["drrho[clip]"]),
    ],
    ids=["editable", "folder", "repository", "archive", "index"],
)
def test_the_command_installs_from_where_drrho_came(record, expected, monkeypatch):
    text = None if record is None else json.dumps(record)
    monkeypatch.setattr(optional, "distribution", lambda _: Installed(text))
    words = shlex.split(optional.install_command("clip"))
    assert words == ["pip", "install", *expected]
    if words[-1].startswith("drrho"):
        assert Requirement(words[-1]).extras == {"clip"}


def test_a_missing_module_is_named_with_its_user_and_the_command():
    with pytest.raises(ModuleNotFoundError, match="parquet files need: pip install") as raised:
        optional.import_optional("no_such_module", user="parquet files", extra="tables")
    assert raised.value.name == "no_such_module"
    assert optional.install_command("tables") in str(raised.value)
