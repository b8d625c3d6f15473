"""Every row of the threat table has a test, which exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guides" / "trust.md"


def named_tests():
    rows = re.findall(r"^\| (?!threat|---)(.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    return [row.split(" | ")[-1].strip("`") for row in rows]


def test_every_threat_names_a_test_that_exists():
    named = named_tests()
    assert len(named) >= 28
    missing = []
    for name in named:
        file, _, function = name.partition("::")
        path = ROOT / file
        tree = ast.parse(path.read_text("utf-8")) if path.is_file() else ast.parse("")
        if function not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
            missing.append(name)
    assert not missing, "\n".join(missing)


def test_the_page_is_found():
    assert "guides/trust.md" in (ROOT / "zensical.toml").read_text("utf-8")
    for name in ("README.md", "CONTRIBUTING.md"):
        assert "docs/guides/trust.md" in (ROOT / name).read_text("utf-8")
