"""Words that a reader has to decode do not return: on the pages, in public docstrings.

`tests/cli/test_help.py` looks at the help texts.
"""

import inspect
import re
from pathlib import Path

import pytest

import drrho
from tests.plain_words import unclear

ROOT = Path(__file__).parents[1]
GENERATED = re.compile(r"<!-- table: .*?<!-- end of the table -->", flags=re.DOTALL)
PAGES = sorted(
    [
        *(page for page in (ROOT / "docs").rglob("*.md") if "results" not in page.parts),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    ]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_in_plain_words(page):
    text = GENERATED.sub("", page.read_text("utf-8"))
    assert not unclear(text)
    assert "--8<--" not in text, "an include mark is shown as it is where the page is read"


def public_docstrings(name):
    it = getattr(drrho, name)
    yield inspect.getdoc(it) or ""
    if inspect.isclass(it):
        for key, member in vars(it).items():
            if not key.startswith("_") and inspect.isfunction(member):
                yield inspect.getdoc(member) or ""


def test_public_docstrings_are_in_plain_words():
    found = [
        f"{name}: {line}"
        for name in drrho.__all__
        for text in public_docstrings(name)
        for line in unclear(text)
    ]
    assert not found, "\n".join(found)


def test_such_words_would_be_found():
    assert unclear("The mean is that of the batch.")
    assert unclear("Training goes on where it was.")
    assert not unclear("A stand-in continues, and says what is outstanding.")
