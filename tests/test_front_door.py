"""`import drrho`: what is there by name, what it costs, and that our own pages use it."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import drrho

ROOT = Path(__file__).parents[1]
HEAVY = ("torchvision", "open_clip", "matplotlib", "tyro", "PIL", "webdataset", "transformers")


def typed_names():
    """{name: module} that an editor sees, from the stub."""
    tree = ast.parse((ROOT / "src" / "drrho" / "__init__.pyi").read_text("utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
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


PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.py")),
    *sorted((ROOT / "recipes").glob("*.py")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_the_front_door_where_it_has_the_name(page):
    found = re.findall(
        r"^\s*from (drrho[\w.]*) import (\([^)]*\)|[^\n]+)", page.read_text("utf-8"), re.MULTILINE
    )
    deeper = [
        f"from {module} import {name}"
        for module, names in found
        for name in re.findall(r"\w+", names.partition("#")[0])
        if drrho._HOMES.get(name) == module
    ]
    assert not deeper, f"{page.name}: {deeper}; write drrho.NAME"


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.py")), ids=lambda p: p.name)
def test_recipes_import_drrho_alone(recipe):
    tree = ast.parse(recipe.read_text("utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [module for module in modules if module.startswith("drrho")]
