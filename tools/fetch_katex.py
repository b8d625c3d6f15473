"""Fetch KaTeX into docs/javascripts/katex, so that equations of the site need no network.

    python tools/fetch_katex.py

It is the package of the npm registry, compared with its known hash. KaTeX has the MIT licence.
"""

import hashlib
import io
import sys
import tarfile
import urllib.request
from pathlib import Path

VERSION = "0.19.1"
SHA256 = "24da5a599eb2fcede2e270b99a6ff48bca816beecc95feeb84e8cccbd1bb34fd"
URL = f"https://registry.npmjs.org/katex/-/katex-{VERSION}.tgz"
FOLDER = Path(__file__).parents[1] / "docs" / "javascripts" / "katex"
FILES = ("katex.min.css", "katex.min.js", "contrib/auto-render.min.js")


def main() -> int:
    """Fetches the files that the site uses, unless this version is there."""
    version = FOLDER / "VERSION"
    if version.is_file() and version.read_text(encoding="utf-8") == VERSION:
        return 0
    with urllib.request.urlopen(URL, timeout=60) as answer:
        archive = answer.read()
    found = hashlib.sha256(archive).hexdigest()
    if found != SHA256:
        print(f"{URL} has SHA-256 {found}, expected {SHA256}", file=sys.stderr)
        return 1
    with tarfile.open(fileobj=io.BytesIO(archive)) as package:
        for member in package:
            name = member.name.removeprefix("package/").removeprefix("dist/")
            used = name in (*FILES, "LICENSE") or (
                name.startswith("fonts/") and name.endswith(".woff2")
            )
            contents = package.extractfile(member) if used and member.isfile() else None
            if contents is not None:
                path = FOLDER / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(contents.read())
    version.write_text(VERSION, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
