"""Write the tables of the pages in place, from the files that the commands of the pages wrote.

    python tools/write_tables.py            after a study or a benchmark has written its tables
    python tools/write_tables.py --check    fails where a page has another table than its file

A page says where a table comes from in a comment that readers do not see, and the table follows
it, so that the page is whole wherever it is read:

    <!-- table: docs/results/demo/results.md -->

    | the table |

    <!-- end of the table -->

A number behind the file's name is the line to begin with.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = re.compile(
    r"(?P<begin><!-- table: (?P<file>\S+?)(?::(?P<line>\d+))? -->\n)"
    r"(?P<old>.*?)(?P<end><!-- end of the table -->)",
    flags=re.DOTALL,
)
BEGIN = "<!-- table: "


def with_tables(page: Path) -> str:
    """The text of a page with every table as it is in its file.

    Raises:
        ValueError: a comment that begins a table has no comment that ends it.
        FileNotFoundError: there is no such file of a table.
    """

    def written(found: re.Match[str]) -> str:
        lines = (ROOT / found["file"]).read_text(encoding="utf-8").splitlines()
        table = "\n".join(lines[int(found["line"] or 1) - 1 :]).strip()
        return f"{found['begin']}\n{table}\n\n{found['end']}"

    text = page.read_text(encoding="utf-8")
    new, number = TABLE.subn(written, text)
    if number != text.count(BEGIN):
        raise ValueError(f"{page}: a table's comment is not closed, or written otherwise")
    return new


def pages() -> list[Path]:
    """All pages that have tables written in place."""
    found = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    return sorted(page for page in found if BEGIN in page.read_text(encoding="utf-8"))


def main(arguments: list[str]) -> int:
    """Writes the tables, or with --check names the pages whose tables are others."""
    stale = [page for page in pages() if with_tables(page) != page.read_text(encoding="utf-8")]
    for page in stale:
        if "--check" in arguments:
            print(f"{page.relative_to(ROOT)} has other tables; run python tools/write_tables.py")
        else:
            page.write_text(with_tables(page), encoding="utf-8")
            print(f"written: {page.relative_to(ROOT)}")
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
