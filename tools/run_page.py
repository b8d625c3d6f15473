"""Run the commands and programs of a page from top to bottom, as a reader would.

    python tools/run_page.py docs/tutorials/steer.md

Blocks marked `sh` run in bash, blocks marked `python` in one session, all in an empty folder, or
in `--folder`. What they print is shown, and at the end how long the page took.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The runnable blocks of a page in their order, as (language, text)."""
    return [(found[1], found[2]) for found in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def run_page(page: Path, folder: Path) -> None:
    """Runs the blocks of a page in `folder`.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    os.chdir(folder)
    names: dict[str, object] = {"__name__": "__main__"}
    for language, text in blocks(page):
        print(f"\n--- {language}\n{text}---", flush=True)
        if language == "sh":
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)
        else:
            exec(compile(text, page.name, "exec"), names)


def main(arguments: list[str]) -> int:
    """Runs one page, and says how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--folder", type=Path, help="an existing folder to run in")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as empty:
        run_page(options.page.resolve(), options.folder or Path(empty))
    print(f"\n{options.page.name}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
