"""Distillation: what its minimum is, several teachers, and the tiles against the exact function."""

from functools import partial

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from drrho.contrastive.exact import clip_loss
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import (
    Teacher,
    converted_weight,
    distillation_anchor_losses,
    tiled_distillation_anchor_losses,
)
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles import strip
from drrho.contrastive.tiles.tiling import JOINT, Tiling
from tests.contrastive.conftest import distillation_loss, draw_pairs

TAU = torch.tensor(0.1, dtype=torch.float64)


def test_distilling_the_target_from_itself_has_no_gradient(target):
    """Cross-entropy is least where the two agree; there the gradient vanishes."""
    leaves = [e.clone().requires_grad_() for e in (*target, TAU)]
    loss = distillation_loss(
        PairEmbeddings(*leaves[:2]), [Teacher(target, 0.1)], temperature=leaves[2]
    )
    for gradient in torch.autograd.grad(loss, leaves):
        assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_distilling_a_certain_teacher_is_clip(target):
    """A teacher that is sure of the pairs gives CLIP's labels."""
    sure = PairEmbeddings(torch.eye(7).double(), torch.eye(7).double())
    distilled = distillation_loss(target, [Teacher(sure, 0.01)], temperature=TAU)
    assert_close(distilled, clip_loss(target, temperature=TAU))


def test_teachers_are_averaged_after_their_softmax(target):
    """Cross-entropy is linear in the teacher's probabilities; it is not in its logits."""
    teachers = [Teacher(draw_pairs(7, d, seed=d), tau) for d, tau in ((4, 0.02), (6, 0.1))]
    together = distillation_anchor_losses(target, teachers, temperature=TAU)
    alone = [distillation_anchor_losses(target, [t], temperature=TAU) for t in teachers]
    assert_close(together, torch.stack(alone).mean(dim=0))


@pytest.mark.parametrize("tile", [5, 64])
@pytest.mark.parametrize("num_teachers", [1, 2, 3])
@pytest.mark.parametrize("shape", [(), (2, 1), (2, 23)], ids=str)
@pytest.mark.parametrize("impl", ["tiles", JOINT], ids=["separate", "joint"])
def test_tiles_are_the_exact_function(tile, num_teachers, shape, impl, monkeypatch):
    monkeypatch.setattr(strip, "CPU_TILE", tile)
    target = draw_pairs(23, 6, seed=0)
    teachers = [
        Teacher(draw_pairs(23, 3 + seed, seed=seed), 0.01 * seed)
        for seed in range(1, 1 + num_teachers)
    ]
    generator = torch.Generator().manual_seed(0)
    tau = 0.05 + torch.rand(shape, dtype=torch.float64, generator=generator)
    grad_output = torch.randn(2, 23, dtype=torch.float64, generator=generator)

    def value_and_gradients(function):
        leaves = [e.clone().requires_grad_() for e in (*target, tau)]
        value = function(PairEmbeddings(*leaves[:2]), teachers, temperature=leaves[2])
        return value, *torch.autograd.grad((value * grad_output).sum(), leaves)

    exact = value_and_gradients(distillation_anchor_losses)
    tiled = value_and_gradients(partial(tiled_distillation_anchor_losses, impl=impl))
    for ours, theirs in zip(tiled, exact, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_half_precision_is_within_the_plain_codes_error(monkeypatch):
    monkeypatch.setattr(strip, "CPU_TILE", 16)
    target, teacher = (draw_pairs(40, 16, seed=s, dtype=torch.bfloat16) for s in (0, 1))
    tau = torch.tensor(0.02)

    def errors(function):
        wide = [PairEmbeddings(*(e.double() for e in pairs)) for pairs in (target, teacher)]
        found = []
        for pairs, seen in ((target, teacher), wide):
            leaves = [e.clone().requires_grad_() for e in pairs]
            value = function(PairEmbeddings(*leaves), [Teacher(seen, 0.02)], temperature=tau)
            found.append((value, *torch.autograd.grad(value.mean(), leaves)))
        return [
            (ours.double() - exact).abs().max() / exact.abs().max()
            for ours, exact in zip(*found, strict=True)
        ]

    tiled, plain = (
        errors(f) for f in (tiled_distillation_anchor_losses, distillation_anchor_losses)
    )
    for ours, theirs in zip(tiled, plain, strict=True):
        assert ours <= 1.5 * theirs + 2e-6


@pytest.mark.parametrize("function", [distillation_loss, tiled_distillation_anchor_losses])
def test_arguments_are_checked(function, target):
    with pytest.raises(ValueError, match="at least one teacher"):
        function(target, [], temperature=TAU)
    with pytest.raises(ValueError, match="temperature must be positive"):
        function(target, [Teacher(target, 0.0)], temperature=TAU)
    fewer = PairEmbeddings(target.image[:3], target.text[:3])
    with pytest.raises(ValueError, match="one row for each pair"):
        function(target, [Teacher(fewer, 0.1)], temperature=TAU)


def certain(seed):
    """Pairs of which a temperature of 0.01 leaves little doubt."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(300, 64, generator=generator)
    text = image + 0.9 * torch.randn(300, 64, generator=generator)
    return PairEmbeddings(normalize(image, dim=1), normalize(text, dim=1))


def gradients(function, target, teacher, dtype):
    leaves = [e.to(dtype).requires_grad_() for e in target]
    teacher = PairEmbeddings(*(e.to(dtype) for e in teacher))
    tau = torch.tensor(0.01, dtype=dtype, requires_grad=True)
    losses = function(PairEmbeddings(*leaves), [Teacher(teacher, 0.01)], temperature=tau)
    return [g.double() for g in torch.autograd.grad(losses.mean(), [*leaves, tau])]


@pytest.mark.parametrize("kept", [0, 1, None])
def test_where_student_and_teacher_are_certain_joint_passes_are_as_exact_as_the_plain_code(kept):
    target, teacher = certain(0), certain(1)
    joint = partial(
        tiled_distillation_anchor_losses, impl=Tiling(passes="joint", kept_megabytes=kept)
    )
    judge = gradients(distillation_anchor_losses, target, teacher, torch.float64)
    plain = gradients(distillation_anchor_losses, target, teacher, torch.float32)
    for ours, theirs, exact in zip(
        gradients(joint, target, teacher, torch.float32), plain, judge, strict=True
    ):
        assert (ours - exact).abs().max() <= (theirs - exact).abs().max()


def test_joint_passes_need_teachers():
    with pytest.raises(ValueError, match="imitates no teachers"):
        ContrastiveObjective(CLIP(), num_samples=None, impl=Tiling(passes="joint"))


def test_the_published_weight_is_half_of_it_but_for_the_diagonal():
    """By hand, from "The official code": w (B - 1) / (2 B)."""
    assert converted_weight(1.0, batch_size=2) == 0.25
    assert converted_weight(3.0, batch_size=5) == pytest.approx(1.2)
