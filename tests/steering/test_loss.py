"""What `DRRhoLoss` adds to its risk and estimator: kinds of samples, errors, and use in a loop.

Shapes that do not fit are refused by the suite's own checks before ours; see risk/unhooked.py.
"""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from drrho.risk import (
    KL,
    CVaR,
    KLBall,
    Mean,
    effective_sample_size,
    excess_loss,
)
from drrho.risk.duality import standard_deviation
from drrho.steering import (
    BatchEstimator,
    DRRhoLoss,
    LearnedDual,
    Losses,
    LossTable,
    MovingAverage,
    MultiLevelMonteCarlo,
)
from drrho.steering.base import ExcessLosses

KL = KL(temperature=0.5)


@pytest.fixture
def losses():
    return torch.rand(9, dtype=torch.float64).requires_grad_()


@pytest.fixture
def reference():
    return torch.rand(9, dtype=torch.float64)


def test_batch_estimator_is_the_risk_of_the_excess(losses, reference):
    result, expected = DRRhoLoss(KL)(losses, reference), KL(excess_loss(losses, reference))
    assert_close(result.loss, expected.value)
    assert_close(result.weights, expected.weights)
    assert_close(result.effective_sample_size, effective_sample_size(expected.weights))
    assert_close(result.dual, torch.tensor(KL.temperature, dtype=torch.float64))
    assert result.num_used == 9


def test_no_reference_is_a_reference_of_zero(losses):
    without, zero = DRRhoLoss(KL)(losses), DRRhoLoss(KL)(losses, torch.zeros_like(losses))
    assert torch.equal(without.weights, zero.weights)
    assert torch.equal(without.loss, zero.loss)


def test_mean_with_a_reference_trains_as_without_one(losses, reference):
    (with_reference,) = torch.autograd.grad(DRRhoLoss(Mean())(losses, reference).loss, losses)
    (plain,) = torch.autograd.grad(losses.mean(), losses)
    assert_close(with_reference, plain)


def test_what_is_not_finite_is_an_error_that_says_where(losses, reference):
    with torch.no_grad():
        losses[3], losses[5] = math.inf, math.nan
    reference[7] = -math.inf
    with pytest.raises(
        ValueError, match=r'not finite.* at 3 of 9 samples: 3, 5, 7: .*nonfinite="drop"'
    ):
        DRRhoLoss(KL)(losses, reference)


def test_a_missing_reference_is_an_error_that_says_where(losses, reference):
    reference[2] = math.nan
    with pytest.raises(ValueError, match=r'NaN \(missing\) at 1 of 9 samples: 2: .*missing="drop"'):
        DRRhoLoss(KL)(losses, reference)


def test_dropped_samples_are_counted_and_equal_absent_ones(losses, reference):
    good = torch.tensor([True, True, False, False, True, True, False, True, True])
    with torch.no_grad():
        losses[2] = math.inf
    reference[3], reference[6] = math.nan, math.inf
    result = DRRhoLoss(KL, nonfinite="drop", missing="drop")(losses, reference)
    expected = DRRhoLoss(KL)(losses[good], reference[good])
    result.loss.backward()
    assert_close(result.loss, expected.loss)
    assert_close(result.weights[good], expected.weights)
    assert not losses.grad[~good].any()
    counts = result.num_used, result.num_missing_reference, result.num_nonfinite
    assert counts == (6, 1, 2)


def test_plain_samples_keep_their_share_and_the_others_share_the_rest(losses, reference):
    reference[[2, 6, 7]] = math.nan
    missing = reference.isnan()
    result = DRRhoLoss(KL, missing="plain")(losses, reference)
    steered = DRRhoLoss(KL)(losses[~missing], reference[~missing])
    assert_close(result.weights[missing], torch.full((3,), 1 / 9).double())
    assert_close(result.weights[~missing], 6 / 9 * steered.weights)
    assert_close(result.loss, 6 / 9 * steered.loss + losses[missing].sum() / 9)
    assert (result.num_used, result.num_missing_reference) == (6, 3)
    (gradient,) = torch.autograd.grad(result.loss, losses)
    assert_close(gradient, result.weights)


def test_a_sample_without_loss_and_reference_is_not_finite_rather_than_plain(losses, reference):
    with torch.no_grad():
        losses[0] = math.nan
    reference[0] = math.nan
    result = DRRhoLoss(KL, missing="plain", nonfinite="drop")(losses, reference)
    assert (result.num_missing_reference, result.num_nonfinite) == (0, 1)
    assert result.loss.isfinite()


def test_all_references_missing_is_plain_training(losses, reference):
    reference.fill_(math.nan)
    result = DRRhoLoss(CVaR(fraction=0.1), missing="plain")(losses, reference)
    assert_close(result.loss, losses.mean())
    assert_close(result.weights, torch.full((9,), 1 / 9).double())


def test_sample_weights_of_zero_are_a_mask(losses, reference):
    keep = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 0])
    weighted = DRRhoLoss(KL)(losses, reference, sample_weight=keep)
    masked = DRRhoLoss(KL)(losses, reference, keep.bool())
    assert torch.equal(weighted.weights, masked.weights)
    assert weighted.num_used == masked.num_used == 6


@pytest.mark.parametrize("options", [{"nonfinite": "ignore"}, {"missing": "zero"}])
def test_unknown_options_are_refused(options):
    (name,) = options
    with pytest.raises((ValueError, TypeError), match=name):
        DRRhoLoss(KL, **options)


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused_or_dropped(losses, reference, wrong):
    weight = torch.ones(9)
    weight[4] = wrong
    with pytest.raises(ValueError, match="sample_weight is no weight, at 1 of 9 samples: 4"):
        DRRhoLoss(KL)(losses, reference, sample_weight=weight)
    result = DRRhoLoss(KL, nonfinite="drop")(losses, reference, sample_weight=weight)
    assert result.num_nonfinite == 1
    assert_close(result.weights.sum().item(), 1.0)


def test_a_state_in_half_precision_is_refused(losses):
    loss = DRRhoLoss(KL, MovingAverage()).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"estimator.log_mean of the loss is torch.bfloat16"):
        loss(losses)


def test_a_radius_beyond_reach_is_told(losses, reference):
    mask = torch.ones(9, dtype=torch.bool)
    with pytest.warns(UserWarning, match=r"radius 3 is at least 2.19722.*9 samples"):
        DRRhoLoss(KLBall(radius=3.0))(losses, reference, mask)
    rare = torch.tensor([100.0] + 8 * [1.0])  # where more can be spent than on equal samples
    DRRhoLoss(KLBall(radius=3.0))(losses, reference, sample_weight=rare)


def test_small_blocks_of_multi_level_batches_do_not_warn():
    """A ball beyond the reach of two samples is what larger blocks are for."""
    loss = DRRhoLoss(KLBall(radius=1.0), MultiLevelMonteCarlo(smallest=2, levels=3))
    assert loss(torch.rand(16)).loss.isfinite()


def test_a_table_without_ids_says_what_to_pass(losses):
    with pytest.raises(ValueError, match="pass index="):
        DRRhoLoss(KL, LossTable(9))(losses)


def test_ids_beyond_the_table_are_named(losses):
    with pytest.raises(IndexError, match=r"ids must be in \[0, 8\).*got 8"):
        DRRhoLoss(KL, LossTable(8))(losses, index=torch.arange(9))


def test_a_repeated_id_leaves_its_mean():
    table = LossTable(3)
    DRRhoLoss(KL, table)(torch.tensor([1.0, 3.0, 5.0]), index=torch.tensor([2, 2, 0]))
    assert table.losses.tolist() == [5.0, 0.0, 2.0]
    assert table.measure.tolist() == [1.0, 0.0, 1.0]


def test_micro_batches_need_to_be_of_one_kind(losses):
    loss = DRRhoLoss(KL)
    with pytest.raises(ValueError, match="no micro-batches"):
        loss.weigh([])
    parts = [Losses(losses.detach()), Losses(losses.detach(), index=torch.arange(9))]
    with pytest.raises(ValueError, match="some micro-batches .*have an index"):
        loss.weigh(parts)


def test_other_losses_than_were_weighed_are_refused(losses):
    (weighed,) = DRRhoLoss(KL).weigh([Losses(losses.detach())])
    with pytest.raises(ValueError, match=r"shape \(4,\), but those that were weighed had \(9,\)"):
        weighed.steer(losses[:4])


def test_steering_learns_what_the_reference_knows_in_spite_of_wrong_labels():
    """A plain loop: SGD, any sampler. The reference is the truth, a third of the labels are not."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 5, generator=generator)
    truth = torch.randn(5, generator=generator)
    targets = inputs @ truth
    wrong = torch.rand(512, generator=generator) < 0.3
    targets[wrong] += 20 * torch.rand(int(wrong.sum()), generator=generator)
    reference_losses = (inputs @ truth - targets).square()

    def train(reference):
        model = nn.Linear(5, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        loss = DRRhoLoss(CVaR(fraction=0.5), BatchEstimator())
        for _ in range(300):
            rows = torch.randperm(512, generator=generator)[:64]
            losses = (model(inputs[rows]).squeeze(1) - targets[rows]).square()
            result = loss(losses, None if reference is None else reference[rows])
            optimizer.zero_grad()
            result.loss.backward()
            optimizer.step()
        return (model(inputs).squeeze(1) - inputs @ truth).square().mean().item()

    steered, without = train(reference_losses), train(None)
    assert steered < 0.1 * without


def test_estimators_average_over_about_ten_batches_unless_told_otherwise():
    assert MovingAverage().rate == LearnedDual().rate == 0.1
    assert not MovingAverage().normalise


def test_a_dual_without_a_scale_of_its_own_moves_by_the_spread_of_the_losses():
    """The spread under the base measure: of 0 and 4 with weights 3 and 1 it is sqrt(3)."""
    q = torch.tensor([0.75, 0.25], dtype=torch.float64)
    losses = torch.tensor([0.0, 4.0], dtype=torch.float64)
    assert_close(standard_deviation(losses, q), torch.tensor(3.0).double().sqrt())
    estimator = LearnedDual(rate=0.25)
    batch = ExcessLosses(excess=losses, base_measure=q)
    estimator(CVaR(fraction=0.5), batch)
    scale = estimator.scale.item()
    estimator(CVaR(fraction=0.5), batch)
    assert estimator.scale.item() == pytest.approx(scale + 0.25 * (math.sqrt(3) - scale))


@pytest.mark.parametrize("options", [{"smallest": 0, "levels": 1}, {"smallest": 1, "levels": 0}])
def test_multi_level_batches_have_a_size_and_a_level(options):
    (name,) = (name for name, value in options.items() if value == 0)
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        MultiLevelMonteCarlo(**options)
