"""`import drrho`: what is there by name, what it costs, and that our own pages use it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import drrho

ROOT = Path(__file__).parents[1]
HEAVY = ("torchvision", "open_clip", "matplotlib", "tyro", "PIL", "webdataset", "transformers")


def typed_names():
    """{name: module} that an editor sees, from the block under `if TYPE_CHECKING`."""
    tree = ast.parse((ROOT / "src" / "drrho" / "__init__.py").read_text("utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname: node.module for node in imports for alias in node.names}


def test_an_editor_sees_the_names_that_there_are():
    assert typed_names() == drrho._HOMES
    assert set(drrho.__all__) == set(typed_names())


@pytest.mark.parametrize("name", drrho.__all__)
def test_every_name_can_be_imported_and_says_what_it_is(name):
    found = getattr(drrho, name)
    assert found.__doc__, name
    assert name in dir(drrho)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'drrho' has no attribute 'DRRHoLoss'"):
        _ = drrho.DRRHoLoss
    assert drrho.__version__


def fresh(code):
    """What a new interpreter prints as JSON after running some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys, time\n{code}"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"JAXTYPING_DISABLE": "1"},
    )
    return json.loads(done.stdout)


def test_importing_the_package_imports_nothing_heavy():
    loaded = fresh("import drrho; print(json.dumps(list(sys.modules)))")
    assert not {"torch", "numpy", "importlib.metadata", *HEAVY} & set(loaded)


@pytest.mark.parametrize("name", ["DRRhoLoss", "CVaR"])
def test_a_loss_imports_no_vision_library_and_no_plots(name):
    loaded = fresh(f"import drrho; drrho.{name}; print(json.dumps(list(sys.modules)))")
    assert "torch" in loaded
    assert not set(HEAVY) & set(loaded)


def test_a_loss_costs_little_beside_torch():
    """About 0.05 s of processor time; torch takes about 1 s."""
    torch, beyond = fresh(
        "start = time.process_time(); import torch; torch_done = time.process_time()\n"
        "import drrho; drrho.DRRhoLoss; done = time.process_time()\n"
        "print(json.dumps([torch_done - start, done - torch_done]))"
    )
    assert beyond < 0.3 * torch
