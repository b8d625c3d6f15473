"""The exact objective: its gradients, its invariances and what it is without a reference."""

import math

import pytest
import torch
from torch.testing import assert_close

from drrho.contrastive.exact import (
    clip_loss,
    global_contrastive_risk,
    log_anchor_losses,
    log_gap_means,
    pair_similarities,
)
from drrho.contrastive.pairs import PairEmbeddings
from drrho.models.open_clip import import_open_clip
from tests.contrastive.conftest import draw_pairs


def unit(embeddings):
    return embeddings / embeddings.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 1e-14, 0.3])
def test_gradients_agree_with_finite_differences(target, reference, with_reference, epsilon):
    def risk(image, text, temperature):
        return global_contrastive_risk(
            PairEmbeddings(unit(image), unit(text)),
            reference if with_reference else None,
            temperature=temperature,
            epsilon=epsilon,
            rho=0.4,
        )

    temperature = torch.tensor(0.2, dtype=torch.float64)
    inputs = tuple(t.clone().requires_grad_() for t in (*target, temperature))
    assert torch.autograd.gradcheck(risk, inputs)


def test_risk_is_the_worst_reweighting_of_excess_gaps(target, reference):
    """Donsker-Varadhan, by brute force: no other weights give more, these attain it."""
    temperature = torch.tensor(0.15, dtype=torch.float64)
    gaps = pair_similarities(target, reference)
    num_pairs = len(gaps)
    attained, generator = 0.0, torch.Generator().manual_seed(0)
    for side in (gaps, gaps.T):
        for i in range(num_pairs):
            excess = (side[i] - side[i, i])[torch.arange(num_pairs) != i]

            def penalised(weights, excess=excess):
                divergence = (weights * (weights * len(weights)).log()).sum()
                return (weights * excess).sum() - temperature * divergence

            best = penalised(torch.softmax(excess / temperature, dim=0))
            for _ in range(5):
                other = torch.rand(num_pairs - 1, generator=generator, dtype=torch.float64)
                assert penalised(other / other.sum()) < best
            attained += best / (2 * num_pairs)
    risk = global_contrastive_risk(target, reference, temperature=temperature, epsilon=0.0)
    assert_close(risk, attained)


def test_a_reference_equal_to_the_target_leaves_no_excess_loss(target):
    tau = torch.tensor(0.1, dtype=torch.float64)
    risk = global_contrastive_risk(target, target, temperature=tau, epsilon=0.0)
    assert_close(risk, torch.zeros_like(risk))


def test_order_of_the_pairs_and_exchange_of_the_sides_change_nothing(target, reference):
    tau = torch.tensor(0.1, dtype=torch.float64)
    order = torch.tensor([4, 2, 0, 6, 1, 3, 5])

    def risk(change):
        pairs = [PairEmbeddings(*change(*p)) for p in (target, reference)]
        return global_contrastive_risk(*pairs, temperature=tau, epsilon=1e-4)

    as_given = risk(lambda image, text: (image, text))
    assert_close(risk(lambda image, text: (image[order], text[order])), as_given)
    assert_close(risk(lambda image, text: (text, image)), as_given)


@pytest.mark.parametrize("num_pairs", [2, 9])
def test_clip_loss_and_its_gradients_are_open_clips(num_pairs):
    losses = import_open_clip().ClipLoss()
    mine = [t.requires_grad_() for t in draw_pairs(num_pairs, 6, seed=3)]
    theirs = [t.detach().clone().requires_grad_() for t in mine]
    log_scale = [torch.tensor(2.0, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    ours = clip_loss(PairEmbeddings(*mine), temperature=(-log_scale[0]).exp())
    expected = losses(*theirs, log_scale[1].exp())
    assert_close(ours, expected)
    gradients = torch.autograd.grad(ours, [*mine, log_scale[0]])
    assert_close(gradients, torch.autograd.grad(expected, [*theirs, log_scale[1]]))


def test_stationary_temperature_spends_exactly_rho(target, reference):
    """Where dF/dtau = 0 the mean KL divergence of the anchors' weights is rho."""
    log_tau, rho = torch.tensor(0.0, dtype=torch.float64, requires_grad=True), 0.3
    optimiser = torch.optim.LBFGS([log_tau], max_iter=100, tolerance_grad=1e-12)

    def closure():
        optimiser.zero_grad()
        risk = global_contrastive_risk(
            target, reference, temperature=log_tau.exp(), epsilon=0.0, rho=rho
        )
        risk.backward()
        return risk

    optimiser.step(closure)
    logits = pair_similarities(target, reference) / log_tau.exp().detach()
    divergences = []
    for side in (logits, logits.T):
        log_p = (side - torch.diag(torch.full((7,), math.inf))).log_softmax(dim=1)
        terms = torch.where(log_p.isinf(), 0.0, log_p.exp() * (log_p + math.log(6)))
        divergences.append(terms.sum(dim=1))
    assert_close(torch.stack(divergences).mean().item(), rho, atol=1e-5, rtol=0)


def test_temperatures_of_a_hundredth_and_less_do_not_overflow_in_float32():
    pairs, steering = (draw_pairs(32, 8, seed=s, dtype=torch.float32) for s in (0, 1))
    opposed = PairEmbeddings(pairs.image, -pairs.text)
    for tau in (1e-2, 1e-3, 1e-4):
        single, double = (
            global_contrastive_risk(
                PairEmbeddings(*(e.to(dtype) for e in opposed)),
                PairEmbeddings(*(e.to(dtype) for e in steering)),
                temperature=torch.tensor(tau, dtype=dtype),
                epsilon=1e-14,
            )
            for dtype in (torch.float32, torch.float64)
        )
        assert_close(single.double(), double, rtol=1e-5, atol=1e-6)


def test_half_precision_embeddings_are_compared_in_float32():
    pairs = draw_pairs(16, 8, seed=0, dtype=torch.bfloat16)
    similarities = pair_similarities(pairs)
    assert similarities.dtype == torch.float32
    exact = pair_similarities(PairEmbeddings(*(e.double() for e in pairs)))
    assert_close(similarities.double(), exact, atol=1e-6, rtol=1e-5)


def test_every_anchor_may_have_its_temperature(target, reference):
    """Each entry is that of one temperature for all, and so is its derivative."""
    of_anchors = 0.1 + torch.rand(2, 7, dtype=torch.float64)
    together = log_gap_means(target, reference, temperature=of_anchors)
    for side in range(2):
        for anchor in range(7):
            alone = log_gap_means(target, reference, temperature=of_anchors[side, anchor])
            assert_close(together[side, anchor], alone[side, anchor])
    assert torch.autograd.gradcheck(
        lambda tau: log_gap_means(target, reference, temperature=tau), of_anchors.requires_grad_()
    )


def test_a_pair_without_negatives_is_an_error(target):
    lonely = PairEmbeddings(target.image[:1], target.text[:1])
    with pytest.raises(ValueError, match="at least two pairs"):
        clip_loss(lonely, temperature=torch.tensor(0.1))


def test_rows_that_do_not_match_are_an_error(target, reference):
    fewer = PairEmbeddings(reference.image[:-1], reference.text[:-1])
    with pytest.raises(ValueError, match="one row for each pair"):
        log_gap_means(target, fewer, temperature=torch.tensor(0.1))


@pytest.mark.parametrize("epsilon", [-1e-9, float("nan")])
def test_epsilon_must_not_be_negative(epsilon):
    with pytest.raises(ValueError, match="epsilon"):
        log_anchor_losses(torch.zeros(2, 3), epsilon)
