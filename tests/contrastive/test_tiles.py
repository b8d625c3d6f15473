"""The tiles against the exact function: one value, one gradient, whatever the tiles."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from drrho.contrastive.exact import log_gap_means
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles import strip
from drrho.contrastive.tiles.log_sums import tiled_log_gap_means
from drrho.contrastive.tiles.tiling import Tiling
from tests.contrastive.conftest import draw_pairs

NUM_PAIRS = 23


@pytest.fixture(params=[5, 8, 64], ids="tiles of {}".format)
def small_tiles(request, monkeypatch):
    monkeypatch.setattr(strip, "CPU_TILE", request.param)


@pytest.fixture(params=[0, 1e-3, 1], ids=["formed again", "some kept", "kept"])
def tiling(request):
    return Tiling(kept_megabytes=request.param)


def of_shape(*shape):
    return 0.05 + torch.rand(shape, dtype=torch.float64)


def value_and_gradients(function, target, reference, temperature, grad_output):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in (*target, temperature)]
    value = function(PairEmbeddings(*leaves[:2]), reference, temperature=leaves[2])
    return value, *torch.autograd.grad((value * grad_output).sum(), leaves)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (2, 1), (2, NUM_PAIRS)], ids=str)
def test_tiles_are_the_exact_function(with_reference, shape, tiling):
    target, reference = (draw_pairs(NUM_PAIRS, d, seed=d) for d in (6, 4))
    # Of either sign: losses may be any function of the means.
    grad_output = torch.randn(2, NUM_PAIRS, dtype=torch.float64)
    arguments = (target, reference if with_reference else None, of_shape(*shape), grad_output)
    exact = value_and_gradients(log_gap_means, *arguments)
    tiled = value_and_gradients(partial(tiled_log_gap_means, tiling=tiling), *arguments)
    for ours, theirs in zip(tiled, exact, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-12 * theirs.abs().max().item())


@pytest.mark.usefixtures("small_tiles")
def test_no_bit_depends_on_the_tiles_that_are_kept():
    target, reference = (draw_pairs(NUM_PAIRS, 6, seed=s, dtype=torch.float32) for s in (0, 1))
    arguments = (target, reference, torch.tensor(0.05), torch.ones(2, NUM_PAIRS))
    first, *others = (
        value_and_gradients(
            partial(tiled_log_gap_means, tiling=Tiling(kept_megabytes=kept)), *arguments
        )
        for kept in (0, 1e-3, 1, None)
    )
    for found in others:
        assert all(torch.equal(*both) for both in zip(found, first, strict=True))


@pytest.mark.usefixtures("small_tiles")
def test_two_pairs():
    target, reference = (draw_pairs(2, 3, seed=s) for s in (0, 1))
    arguments = (target, reference, of_shape(), torch.ones(2, 2, dtype=torch.float64))
    exact = value_and_gradients(log_gap_means, *arguments)
    assert_close(value_and_gradients(tiled_log_gap_means, *arguments), exact)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_error_of_low_precision_is_within_that_of_the_plain_code(dtype, tau):
    """float64 of the same numbers is the judge."""
    target, reference = (draw_pairs(64, 32, seed=s, dtype=dtype) for s in (0, 1))
    temperature = torch.tensor(tau)
    grad_output = torch.rand(2, 64)

    def errors(function):
        found = value_and_gradients(function, target, reference, temperature, grad_output)
        wide = [PairEmbeddings(*(e.double() for e in pairs)) for pairs in (target, reference)]
        truth = value_and_gradients(
            log_gap_means, *wide, temperature.double(), grad_output.double()
        )
        return [
            (ours.double() - exact).abs().max() / exact.abs().max()
            for ours, exact in zip(found, truth, strict=True)
        ]

    for ours, plain in zip(errors(tiled_log_gap_means), errors(log_gap_means), strict=True):
        assert ours <= 1.5 * plain + 2e-6


@pytest.mark.usefixtures("small_tiles")
def test_half_precision_embeddings_get_gradients_of_their_type_under_autocast():
    leaves = [e.requires_grad_() for e in draw_pairs(9, 4, seed=0, dtype=torch.bfloat16)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = tiled_log_gap_means(PairEmbeddings(*leaves), temperature=torch.tensor(0.1))
    assert value.dtype == torch.float32
    value.sum().backward()
    assert all(leaf.grad.dtype == torch.bfloat16 for leaf in leaves)


@pytest.mark.usefixtures("small_tiles")
def test_cold_temperatures_neither_overflow_nor_vanish():
    target = draw_pairs(NUM_PAIRS, 6, seed=0, dtype=torch.float32)
    opposed = PairEmbeddings(target.image, -target.text)
    for tau in (1e-2, 1e-3, 1e-4):
        arguments = (opposed, None, torch.tensor(tau), torch.ones(2, NUM_PAIRS))
        exact = value_and_gradients(log_gap_means, *arguments)
        tiled = value_and_gradients(tiled_log_gap_means, *arguments)
        for ours, theirs in zip(tiled, exact, strict=True):
            assert ours.isfinite().all()
            assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


def test_the_reference_gets_no_gradient():
    target, reference = (draw_pairs(5, 3, seed=s) for s in (0, 1))
    frozen = PairEmbeddings(*(e.requires_grad_() for e in reference))
    image = target.image.requires_grad_()
    temperature = torch.tensor(0.1, dtype=torch.float64)
    pairs = PairEmbeddings(image, target.text)
    tiled_log_gap_means(pairs, frozen, temperature=temperature).sum().backward()
    assert image.grad is not None
    assert frozen.image.grad is None


def test_wrong_shapes_are_the_exact_functions_errors():
    target, fewer = draw_pairs(5, 3, seed=0), draw_pairs(4, 3, seed=1)
    temperature = torch.tensor(0.1)
    with pytest.raises(ValueError, match="one row for each pair"):
        tiled_log_gap_means(target, fewer, temperature=temperature)
    lonely = PairEmbeddings(target.image[:1], target.text[:1])
    with pytest.raises(ValueError, match="at least two pairs"):
        tiled_log_gap_means(lonely, temperature=temperature)
