"""What code and pages say about each other is true."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def headings(page):
    """The titles of a page's sections, without their numbers."""
    text = page.read_text(encoding="utf-8")
    return set(re.findall(r"^#+ (?:\d+\. )?(.+)$", text, flags=re.MULTILINE))


@pytest.mark.parametrize("path", CODE, ids=names(CODE))
def test_cited_sections_exist(path):
    # A citation may be broken over lines of a docstring or a comment.
    text = re.sub(r"\s+(?:# )?", " ", path.read_text(encoding="utf-8"))
    for page, section in re.findall(r'(docs/\w+\.md), "([^"]+)"', text):
        assert section in headings(ROOT / page), f'{page} has no section "{section}"'


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_linked_files_exist(page):
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{target} does not exist"
