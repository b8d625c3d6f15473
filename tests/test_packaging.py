"""What is built and installed: the wheel's contents, and how little the losses alone need."""

import email
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# What drrho without extras promises to a training loop of one's own, and no more.
CORE = (
    "drrho.risk",
    "drrho.steering",
    "drrho.contrastive.objectives.global_risk",
    "drrho.contrastive.objectives.objective",
)
ALLOWED = {"jaxtyping", "numpy", "safetensors", "torch"}

ONLY_CORE = f"""
import sys
import numpy, safetensors, jaxtyping, torch
import torch.distributed.checkpoint
known = {{name.partition(".")[0] for name in sys.modules}} | sys.stdlib_module_names

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in known and top != "drrho":
            raise ModuleNotFoundError(f"{{name}} is not installed", name=name)

sys.meta_path.insert(0, Refuse())
for name in {CORE!r}:
    __import__(name)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as a release is, with a backend from the package registry."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    if "No matching distribution" in done.stdout + done.stderr:
        pytest.skip("the package registry that building needs cannot be reached")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("drrho-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_package_its_types_and_its_licence(wheel):
    names = wheel.namelist()
    assert "drrho/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"drrho"}
    in_source = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "drrho").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert in_source <= set(names)
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert b"drrho = drrho.cli:main" in wheel.read(entry_points)


def test_the_wheel_says_what_it_needs_and_which_version_it_is(wheel):
    (path,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    metadata = email.message_from_bytes(wheel.read(path))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Version"] not in ("", "0+unknown")
    needed = [it for it in metadata.get_all("Requires-Dist") if "extra ==" not in it]
    assert {it.partition(">")[0] for it in needed} == ALLOWED
    assert requires("drrho")


def test_the_losses_import_with_nothing_but_what_is_required():
    subprocess.run([sys.executable, "-c", ONLY_CORE], check=True)


def test_importing_the_losses_takes_little_beside_importing_torch():
    """Below 2 s by far; measured in one process, after torch."""
    code = (
        "import time, torch, torch.distributed.checkpoint; start = time.process_time();"
        f"import {', '.join(CORE)}; print(time.process_time() - start)"
    )
    environment = os.environ | {"JAXTYPING_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert float(done.stdout) < 2.0


def needed_by_extras() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return {need.name: need for extra in extras for need in map(Requirement, extra)}


def test_versions_that_must_not_be_installed_are_excluded():
    """Lightning 2.6.2 and 2.6.3 were withdrawn for malware."""
    needed = needed_by_extras()
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    for withdrawn in ("2.6.2", "2.6.3"):
        for name in ("lightning", "pytorch-lightning"):
            assert withdrawn not in needed[name].specifier
            assert withdrawn != pinned[name]
    assert "5.0.0" not in needed["open_clip_torch"].specifier
    assert "11.3.0" not in needed["pillow"].specifier
    for name, requirement in needed.items():
        version = pinned.get(name.lower().replace("_", "-"))
        assert version is None or version in requirement.specifier, name
    assert "webdataset" not in needed and "webdataset" not in pinned


def test_the_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["url"].endswith("2505.06699")
    assert paper["title"].startswith("Model Steering")
