"""The estimator form: equal to the exact objective at gamma = 1, an average below."""

import pytest
import torch
from torch.testing import assert_close

from drrho.contrastive.exact import global_contrastive_risk, log_anchor_losses, log_gap_means
from drrho.contrastive.objectives.global_risk import AnchorAverages, GlobalContrastiveLoss
from drrho.contrastive.pairs import PairEmbeddings
from tests.contrastive.conftest import draw_pairs

IDS = torch.tensor([8, 0, 3, 11, 2, 5, 9])


def leaves(pairs, tau=0.1):
    temperature = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    return [e.clone().requires_grad_() for e in pairs], temperature


@pytest.mark.parametrize("ids", [IDS, IDS.clamp(max=5)], ids=["each once", "some several times"])
@pytest.mark.parametrize("with_reference", [False, True])
def test_with_gamma_one_it_is_the_exact_objective(target, reference, with_reference, ids):
    steering = reference if with_reference else None
    loss = GlobalContrastiveLoss(12, epsilon=1e-2, rho=0.5).double()
    embeddings, temperature = leaves(target)
    estimate = loss(
        PairEmbeddings(*embeddings), steering, temperature=temperature, sample_ids=ids, gamma=1.0
    )
    exact = global_contrastive_risk(
        PairEmbeddings(*embeddings), steering, temperature=temperature, epsilon=1e-2, rho=0.5
    )
    assert_close(estimate, exact)
    inputs = [*embeddings, temperature]
    assert_close(torch.autograd.grad(estimate, inputs), torch.autograd.grad(exact, inputs))


def test_gradient_is_that_of_the_stated_estimator(target, reference):
    """Against autograd of tau (rho + mean (epsilon + g) / U ) with U and its log held fixed."""
    loss = GlobalContrastiveLoss(12, epsilon=1e-2, rho=0.5).double()
    tau = torch.tensor(0.1, dtype=torch.float64)
    before = draw_pairs(7, 5, seed=5)
    loss(before, reference, temperature=tau, sample_ids=IDS, gamma=1.0)
    embeddings, temperature = leaves(target)
    estimate = loss(
        PairEmbeddings(*embeddings), reference, temperature=temperature, sample_ids=IDS, gamma=0.3
    )
    log_u = loss.averages.log_u.read(IDS)
    values = log_anchor_losses(
        log_gap_means(PairEmbeddings(*embeddings), reference, temperature=temperature), 1e-2
    ).exp()
    frozen_tau = temperature.detach()
    written_out = temperature * (0.5 + log_u.mean()) + frozen_tau * (values / log_u.exp()).mean()
    inputs = [*embeddings, temperature]
    assert_close(torch.autograd.grad(estimate, inputs), torch.autograd.grad(written_out, inputs))
    assert_close(estimate.detach(), frozen_tau * (0.5 + log_u.mean()))


@pytest.mark.parametrize("pairs", [2, 5])
def test_temperatures_of_anchors_have_one_gradient_with_the_factor_tau_and_without(pairs):
    embeddings = draw_pairs(pairs, 4, seed=1)
    found = []
    for times_temperature in (True, False):
        temperature = torch.full((2, pairs), 0.2, dtype=torch.float64, requires_grad=True)
        loss = GlobalContrastiveLoss(
            None, epsilon=1e-2, rho=0.7, times_temperature=times_temperature
        )
        value = loss(embeddings, temperature=temperature, sample_ids=None, gamma=1.0)
        found += torch.autograd.grad(value, temperature)
    assert_close(found[1], found[0])
    assert found[0].abs().min() > 1e-4


def test_averages_follow_their_definition_and_first_visits_take_the_batch():
    averages = AnchorAverages(6).double()
    ids, later = torch.tensor([1, 4]), torch.tensor([4, 2])
    first = torch.tensor([[0.1, 2.0], [3.0, 0.5]], dtype=torch.float64)
    second = torch.tensor([[1.0, 0.7], [0.2, 9.0]], dtype=torch.float64)
    assert_close(averages.update(ids, first.log(), 0.25).exp(), first)
    updated = averages.update(later, second.log(), 0.25).exp()
    assert_close(updated[:, 0], 0.75 * first[:, 1] + 0.25 * second[:, 0])
    assert_close(updated[:, 1], second[:, 1])
    visited = averages.log_u.entries > -torch.inf
    assert visited.tolist() == 2 * [[False, True, True, False, True, False]]


def test_a_value_of_zero_is_a_visit_like_any_other():
    """log U = 0 is a legal value, so "never seen" must not be read from it."""
    averages = AnchorAverages(1)
    averages.update(torch.tensor([0]), torch.zeros(2, 1), 0.5)
    assert_close(
        averages.update(torch.tensor([0]), torch.ones(2, 1), 0.5).exp(),
        torch.full((2, 1), (1 + torch.e) / 2),
    )


def test_averages_of_extreme_logarithms_stay_finite():
    averages = AnchorAverages(2)
    ids = torch.tensor([0, 1])
    averages.update(ids, torch.tensor([[-200.0, 500.0], [0.0, -30.0]]), 0.1)
    updated = averages.update(ids, torch.tensor([[500.0, -200.0], [0.0, 80.0]]), 0.1)
    assert updated.isfinite().all()


def test_state_survives_a_state_dict(target, reference):
    tau = torch.tensor(0.1, dtype=torch.float64)
    original, copy = (GlobalContrastiveLoss(12, epsilon=1e-2).double() for _ in range(2))
    original(target, reference, temperature=tau, sample_ids=IDS, gamma=1.0)
    copy.load_state_dict(original.state_dict())
    losses = [
        loss(draw_pairs(7, 5, seed=9), reference, temperature=tau, sample_ids=IDS, gamma=0.5)
        for loss in (original, copy)
    ]
    assert_close(losses[0], losses[1], rtol=0, atol=0)


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.1, float("nan")])
def test_gamma_must_be_a_weight(gamma):
    with pytest.raises(ValueError, match="gamma"):
        AnchorAverages(3).update(torch.tensor([0]), torch.zeros(2, 1), gamma)


def test_an_id_outside_the_data_set_is_an_error():
    with pytest.raises(IndexError):
        AnchorAverages(3).update(torch.tensor([3]), torch.zeros(2, 1), 1.0)


@pytest.mark.parametrize("arguments", [{"epsilon": 0.0}, {"epsilon": 1e-4, "rho": -1.0}])
def test_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match=next(reversed(arguments))):
        GlobalContrastiveLoss(3, **arguments)
