"""The Triton kernels, interpreted, against the exact function."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drrho.contrastive.exact import log_gap_means
from drrho.contrastive.tiles import kernels
from tests.contrastive import kernel_cases
from tests.contrastive.conftest import draw_pairs
from tests.processes import PATIENCE

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """The errors of all cases, computed where Triton was told to interpret before its import."""
    output = tmp_path_factory.mktemp("kernels") / "errors.pt"
    finished = subprocess.run(
        [sys.executable, "-m", "tests.contrastive.kernel_cases", str(output)],
        check=False,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return torch.load(output)


@needs_triton
@pytest.mark.parametrize("dtype", [str(dtype) for dtype in kernel_cases.DTYPES])
def test_errors_are_within_those_of_the_plain_code(dtype, interpreted):
    """Values and the temperature's gradient: as the plain code with its float32 products. The
    embeddings' gradients, whose coefficients are rounded: as plain code in mixed precision.
    """
    checked = 0
    for name, *case in kernel_cases.cases():
        if name[0] != dtype:
            continue
        value, image, text, tau = kernel_cases.errors(log_gap_means, *case)
        if dtype != "torch.float32":
            _, image, text, _ = kernel_cases.errors(kernel_cases.in_embeddings_precision, *case)
        plain = [value, image, text, tau]
        checked += 1
        for ours, theirs in zip(interpreted[name], plain, strict=True):
            assert ours <= 2 * theirs + 1e-5, (name, interpreted[name], plain)
    assert checked == 2 * len(kernel_cases.temperatures())


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_use():
    with pytest.raises(ValueError, match=r"needs a GPU.*tiled_log_gap_means"):
        kernels.fused_log_gap_means(
            draw_pairs(5, 4, seed=0, dtype=torch.float32), temperature=torch.tensor(0.1)
        )


@needs_triton
def test_double_precision_is_refused():
    with pytest.raises(TypeError, match="float64"):
        kernels.fused_log_gap_means(draw_pairs(5, 4, seed=0), temperature=torch.tensor(0.1))


def test_without_triton_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(kernels.triton, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="pip install triton"):
        kernels.fused_log_gap_means(draw_pairs(5, 4, seed=0), temperature=torch.tensor(0.1))
