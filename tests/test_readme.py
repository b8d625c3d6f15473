"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_examples():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_examples_run_and_give_gradients(block):
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    leaves = [names[name] for name in ("image", "text", "losses") if name in names]
    assert leaves
    assert all(leaf.grad.isfinite().all() and leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_it_gives_the_test_command_that_is_run():
    ci = (Path(__file__).parents[1] / ".ci" / "run").read_text()
    assert "\n    make test\n" in README
    assert "\nmake test" in ci
