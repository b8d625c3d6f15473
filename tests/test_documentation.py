"""What code and pages say about each other is true."""

import importlib
import re
from pathlib import Path

import pytest
from tools import write_tables

from tests.integrations import test_sentence_transformers as text_pairs

ROOT = Path(__file__).parents[1]
CODE = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])


def headings(page):
    """The titles of a page's sections, without their numbers."""
    text = page.read_text(encoding="utf-8")
    return set(re.findall(r"^#+ (?:\d+\. )?(.+)$", text, flags=re.MULTILINE))


def test_cited_sections_exist():
    cited, missing = 0, []
    for path in CODE:
        # A citation may be broken over lines of a docstring or a comment.
        text = re.sub(r"\s+(?:# )?", " ", path.read_text(encoding="utf-8"))
        for page, section in re.findall(r'(docs/\w+\.md), "([^"]+)"', text):
            cited += 1
            if section not in headings(ROOT / page):
                missing.append(f'{path.relative_to(ROOT)}: {page} has no section "{section}"')
    assert cited > 0
    assert not missing, "\n".join(missing)


def test_linked_files_exist():
    missing = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text("utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not missing, "\n".join(missing)


def resolves(name):
    """Whether a dotted name is a module of the package, or what a module holds."""
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:depth]))
        except ModuleNotFoundError:
            continue
        for part in parts[depth:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_modules_and_files_that_pages_name_exist():
    """Dotted names of the package, and places of files in it as `risk/kl.py`."""
    rooms = "|".join(it.name for it in (ROOT / "src" / "drrho").iterdir() if it.is_dir())
    missing, checked = [], 0
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue  # it tells of what was
        text = page.read_text("utf-8")
        names = re.findall(r"\bdrrho(?:\.[A-Za-z_]\w*)+", text)
        files = re.findall(rf"`((?:{rooms})/[\w/]+\.py)`", text)
        programs = re.findall(
            r"(?<![\w/])(?:recipes|experiments|examples|benchmarks)/[\w/]+\.py", text
        )
        checked += len(names) + len(files) + len(programs)
        missing += [f"{page.relative_to(ROOT)}: {it}" for it in names if not resolves(it)]
        missing += [
            f"{page.relative_to(ROOT)}: {it}"
            for it in (*(f"src/drrho/{file}" for file in files), *programs)
            if not (ROOT / it).exists()
        ]
    assert checked > 100
    assert not missing, "\n".join(missing)


GUIDES = [
    page
    for page in sorted((ROOT / "docs" / "guides").glob("*.md"))
    if page.name not in {"migrating.md", "troubleshooting.md", "trust.md"}  # no code
]


def names_of_text_pairs(folder):
    """What the page on text pairs takes from its reader: small models and some pairs."""
    return {
        "dataset": text_pairs.pairs(),
        "model": text_pairs.sentence_transformer(folder / "model"),
        "guide": text_pairs.sentence_transformer(folder / "guide", seed=1),
        "args": text_pairs.arguments(folder),
    }


TAKEN = {"text_pairs.md": names_of_text_pairs}


# What Lightning says about machines with more than this code needs.
@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*available but not used"
)
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_code_of_the_guides_runs(guide, tmp_path, monkeypatch):
    """Block after block, as a reader would copy them into one session."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", guide.read_text("utf-8"), flags=re.DOTALL)
    assert blocks
    names = TAKEN[guide.name](tmp_path) if guide.name in TAKEN else {}
    for block in blocks:
        exec(compile(block, guide.name, "exec"), names)


def test_tables_of_the_pages_are_those_of_their_files():
    """As `python tools/write_tables.py` writes them: a page is whole wherever it is read."""
    assert len(write_tables.pages()) >= 5
    stale = [
        str(page.relative_to(ROOT))
        for page in write_tables.pages()
        if write_tables.with_tables(page) != page.read_text("utf-8")
    ]
    assert not stale, f"run python tools/write_tables.py: {', '.join(stale)}"


def test_a_table_that_is_not_closed_or_has_no_file_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- table: benchmarks/sizing.md -->\n| old |\n", "utf-8")
    with pytest.raises(ValueError, match="not closed"):
        write_tables.with_tables(page)
    page.write_text("<!-- table: no/such.md -->\n<!-- end of the table -->\n", "utf-8")
    with pytest.raises(FileNotFoundError):
        write_tables.with_tables(page)
