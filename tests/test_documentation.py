"""What code and pages say about each other is true."""

import re
from pathlib import Path

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
