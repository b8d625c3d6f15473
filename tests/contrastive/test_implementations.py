"""`impl` changes how an objective is computed and never what it is."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from drrho.contrastive.objectives.global_risk import GlobalContrastiveLoss
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.tiles import implementation
from tests.contrastive.collectives import CONFIGS
from tests.contrastive.conftest import draw_pairs
from tests.contrastive.implementation_cases import two_steps

ROOT = Path(__file__).parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.mark.parametrize("impl", ["exact", "tiles"])
@pytest.mark.parametrize("name", CONFIGS)
def test_autocast_rounds_neither_the_loss_nor_its_gradient(name, impl):
    """Also where the backward pass runs inside of it."""
    config = CONFIGS[name]
    expected = two_steps(config, impl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = two_steps(config, impl)
    for ours, plain in zip(found, expected, strict=True):
        assert torch.equal(ours, plain)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """What the kernels find, where Triton was told to interpret before its import."""
    output = tmp_path_factory.mktemp("kernels") / "found.pt"
    finished = subprocess.run(
        [sys.executable, "-m", "tests.contrastive.implementation_cases", str(output)],
        check=False,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return torch.load(output)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("impl", ["auto", "tiles"])
def test_tiles_are_the_exact_code(impl, name):
    config = CONFIGS[name]
    exact = two_steps(config, "exact", dtype=torch.float64)
    for ours, theirs in zip(two_steps(config, impl, dtype=torch.float64), exact, strict=True):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.cuda
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("impl", ["auto", "tiles"])
def test_a_device_finds_what_the_exact_code_does(impl, name):
    """In float32, with the products of the device; "auto" may take the kernels there."""
    exact = two_steps(CONFIGS[name], "exact", dtype=torch.float64)
    found = two_steps(CONFIGS[name], impl, device=DEVICE)
    for ours, theirs in zip(found, exact, strict=True):
        largest = theirs.abs().max().item()
        assert_close(ours.cpu().double(), theirs, rtol=1e-4, atol=5e-5 * largest)


@pytest.mark.cuda
@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; else it is interpreted")
@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("SigLIP")])
def test_compiled_triton_is_the_exact_code(name):
    exact = two_steps(CONFIGS[name], "exact", dtype=torch.float64)
    found = two_steps(CONFIGS[name], "triton", device=DEVICE)
    for ours, theirs in zip(found, exact, strict=True):
        largest = theirs.abs().max().item()
        assert_close(ours.cpu().double(), theirs, rtol=1e-4, atol=5e-5 * largest)


@needs_triton
@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("SigLIP")])
def test_triton_is_the_exact_code(name, interpreted):
    exact = two_steps(CONFIGS[name], "exact", dtype=torch.float64)
    for ours, theirs in zip(interpreted[name], exact, strict=True):
        assert_close(ours.double(), theirs, rtol=1e-4, atol=5e-5 * theirs.abs().max().item())


@needs_triton
def test_autocast_rounds_nothing_in_triton(interpreted):
    for ours, plain in zip(interpreted["under autocast"], interpreted["CLIP"], strict=True):
        assert torch.equal(ours, plain)


def objective(name="CLIP", **options):
    return ContrastiveObjective(CONFIGS[name], num_samples=5, **options)


@pytest.mark.parametrize(
    "make", [objective, lambda **options: GlobalContrastiveLoss(5, epsilon=1e-4, **options)]
)
def test_without_triton_it_says_how_to_get_it(make, monkeypatch):
    monkeypatch.setattr(implementation, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"`pip install triton`, or take impl='tiles'"):
        make(impl="triton")


@needs_triton
def test_triton_says_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"no kernels for SigLIP; take impl='tiles'"):
        objective("SigLIP, learned temperature", impl="triton")
    with pytest.raises(TypeError, match=r"float64; convert them, or take impl='tiles'"):
        call(objective(impl="triton"), torch.float64)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_triton_needs_a_gpu():
    with pytest.raises(ValueError, match=r"on cpu; move them, or take impl='tiles'"):
        call(objective(impl="triton"), torch.float32)


def call(loss, dtype):
    loss(draw_pairs(5, 4, seed=0, dtype=dtype), sample_ids=torch.arange(5), gamma=1.0)
