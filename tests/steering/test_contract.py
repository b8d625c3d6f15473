"""What every estimator promises under every risk it can estimate, through `DRRhoLoss`."""

import copy
import math

import pytest
import torch
from tests.risk.cases import TYPICAL
from torch import nn
from torch.testing import assert_close

from drrho.risk import KL, excess_loss
from drrho.steering import (
    AdaptiveRate,
    BatchEstimator,
    DRRhoLoss,
    LearnedDual,
    LossTable,
    MovingAverage,
    MultiLevelMonteCarlo,
)

NUM_SAMPLES, BATCH = 40, 8

ESTIMATORS = {
    "batch": BatchEstimator,
    "moving average": lambda: MovingAverage(rate=0.3),
    "normalised average": lambda: MovingAverage(rate=0.3, normalise=True),
    "scent": lambda: MovingAverage(rate=AdaptiveRate(log_step=-2.0)),
    "learned dual": lambda: LearnedDual(rate=0.2),
    "table": lambda: LossTable(NUM_SAMPLES),
    "multi-level": lambda: MultiLevelMonteCarlo(smallest=2, levels=2),
}
OF_KL = ("moving average", "normalised average", "scent")
IMPOSSIBLE = {
    *((e, name) for e in OF_KL for name, risk in TYPICAL.items() if not isinstance(risk, KL)),
    ("learned dual", "mean"),
}
POSSIBLE = [(e, r) for e in ESTIMATORS for r in TYPICAL if (e, r) not in IMPOSSIBLE]


@pytest.fixture(params=POSSIBLE, ids="-".join)
def make_loss(request):
    estimator, risk = request.param
    return lambda **options: DRRhoLoss(TYPICAL[risk], ESTIMATORS[estimator](), **options)


def without(*estimators, also=()):
    """For all but some, for the reason that is written beside it."""
    pairs = [pair for pair in POSSIBLE if pair[0] not in estimators and pair not in also]
    return pytest.mark.parametrize("make_loss", pairs, indirect=True, ids="-".join)


# A sample at the threshold has part of the weight, or in the dual form none.
AT_THRESHOLD = [("learned dual", "cvar")]


def batches(number=4, *, seed=0):
    """Dictionaries of arguments; ids do not repeat within a batch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        losses, reference = torch.rand(2, BATCH, generator=generator, dtype=torch.float64)
        index = torch.randperm(NUM_SAMPLES, generator=generator)[:BATCH]
        yield {"losses": 2 * losses, "reference_losses": reference, "index": index}


def numbers(result):
    """Everything in a result as one tensor, to be compared."""
    return torch.cat(
        [torch.zeros(1) if entry is None else entry.detach().double().flatten() for entry in result]
    )


@pytest.mark.parametrize(("estimator", "risk"), sorted(IMPOSSIBLE))
def test_an_estimator_refuses_risks_it_cannot_estimate(estimator, risk):
    with pytest.raises(ValueError, match=TYPICAL[risk].__class__.__name__):
        DRRhoLoss(TYPICAL[risk], ESTIMATORS[estimator]())


def test_gradient_is_the_weights(make_loss):
    loss = make_loss()
    for batch in batches():
        losses = batch["losses"].requires_grad_()
        result = loss(**batch)
        (gradient,) = torch.autograd.grad(result.loss, losses)
        assert_close(gradient, result.weights)
        assert not any(entry.requires_grad for entry in result[1:] if entry is not None)


def test_weights_are_not_negative_and_sum_to_what_is_reported(make_loss):
    loss = make_loss()
    for batch in batches():
        result = loss(**batch)
        assert_close(result.weights.sum(), result.weight_sum)
        assert 0 <= result.weight_sum < 4  # zero: nobody above the threshold of a learned CVaR
        if isinstance(loss.estimator, MultiLevelMonteCarlo):
            assert_close(result.weight_sum.item(), 1.0)
            continue
        assert (result.weights >= 0).all()
        if isinstance(loss.estimator, BatchEstimator):
            assert_close(result.weight_sum.item(), 1.0)
        assert 0 <= result.effective_sample_size <= BATCH + 1e-9


@without("multi-level", also=AT_THRESHOLD)  # made of several risks
def test_first_batch_is_the_batchs_own_risk(make_loss):
    """Before there is anything to remember; multi-level batches are made of several."""
    loss = make_loss()
    batch = next(batches())
    result = loss(**batch)
    expected = loss.risk(excess_loss(batch["losses"], batch["reference_losses"]))
    assert_close(result.loss, expected.value)
    assert_close(result.weights, expected.weights)


@without("multi-level")  # some of whose weights are negative
def test_a_worse_sample_never_weighs_less(make_loss):
    loss = make_loss()
    for batch in batches():
        order = (batch["losses"] - batch["reference_losses"]).argsort()
        assert (loss(**batch).weights[order].diff() >= -1e-12).all()


@without("multi-level")  # which samples share a block does
def test_order_of_the_samples_does_not_matter(make_loss):
    one, other = make_loss(), make_loss()
    for batch in batches():
        order = torch.randperm(BATCH)
        result = one(**batch)
        permuted = other(**{name: values[order] for name, values in batch.items()})
        assert_close(permuted.loss, result.loss)
        assert_close(permuted.weights, result.weights[order])


@without("scent")  # whose rate depends on where zero is
def test_moving_all_losses_moves_the_value_and_nothing_else(make_loss):
    one, other = make_loss(), make_loss()
    for batch in batches():
        result = one(**batch)
        moved = other(**batch | {"losses": batch["losses"] + 5})
        assert_close(moved.weights, result.weights)
        assert_close(moved.loss, result.loss + 5)


@without("multi-level")  # sizes of its batches are given
def test_masked_samples_may_hold_anything_and_equal_absent_ones(make_loss):
    one, other = make_loss(), make_loss()
    for batch in batches():
        mask = torch.rand(BATCH) > 0.4
        mask[0] = True
        present = {name: values[mask] for name, values in batch.items()}
        spoilt = {
            "losses": torch.where(mask, batch["losses"], math.nan).requires_grad_(),
            "reference_losses": torch.where(mask, batch["reference_losses"], math.inf),
            "index": torch.where(mask, batch["index"], -7),
            "mask": mask,
        }
        masked, removed = one(**spoilt), other(**present)
        masked.loss.backward()
        assert_close(masked.loss, removed.loss)
        assert_close(masked.weights[mask], removed.weights)
        assert not masked.weights[~mask].any()
        assert_close(spoilt["losses"].grad, masked.weights)
        assert masked.num_used == mask.sum()


@without("table")  # it remembers weights of other batches, whose scale has to be the same
def test_only_ratios_of_sample_weights_matter(make_loss):
    one, other = make_loss(), make_loss()
    for batch in batches():
        weight = torch.rand(BATCH) + 0.1
        result = one(**batch, sample_weight=weight)
        assert_close(other(**batch, sample_weight=8 * weight).weights, result.weights)


@without("multi-level", "table")  # whose sizes are given; which has one entry for all copies
def test_a_sample_weight_of_k_is_k_copies(make_loss):
    one, other = make_loss(), make_loss()
    for batch in batches():
        copies = torch.randint(1, 4, (BATCH,))
        owner = torch.arange(BATCH).repeat_interleave(copies)
        weighted = one(**batch, sample_weight=copies)
        repeated = other(**{name: values[owner] for name, values in batch.items()})
        assert_close(weighted.loss, repeated.loss)
        of_copies = torch.zeros(BATCH, dtype=torch.float64).index_add(0, owner, repeated.weights)
        assert_close(weighted.weights, of_copies)


def test_a_batch_without_samples_is_zero_attached_and_changes_nothing(make_loss):
    loss, untouched = make_loss(), make_loss()
    for number, batch in enumerate(batches()):
        if number in (0, 2):
            before = copy.deepcopy(loss.state_dict())
            losses = batch["losses"].clone().requires_grad_()
            nothing = torch.zeros(BATCH, dtype=torch.bool)
            result = loss(**batch | {"losses": losses}, mask=nothing)
            result.loss.backward()
            assert result.loss == 0 or isinstance(loss.estimator, MovingAverage | LossTable)
            assert not losses.grad.any()
            assert result.num_used == 0
            assert_close(loss.state_dict(), before, rtol=0, atol=0)
        assert torch.equal(numbers(loss(**batch)), numbers(untouched(**batch)))


def test_equal_losses_weigh_alike(make_loss):
    loss = make_loss()
    for batch in batches():
        equal = {"losses": torch.full((BATCH,), 0.25), "index": batch["index"]}
        weights = loss(**equal).weights
        assert_close(weights, weights[:1].expand(BATCH), rtol=1e-6, atol=1e-6)


@without("multi-level", also=AT_THRESHOLD)
def test_one_sample(make_loss):
    loss = make_loss()
    result = loss(torch.tensor([0.3]), torch.tensor([0.1]), index=torch.tensor([3]))
    assert_close(result.loss, torch.tensor(0.2))
    assert_close(result.weights, torch.tensor([1.0]))


def test_state_saved_and_loaded_continues_bit_for_bit(make_loss, tmp_path):
    loss, resumed = make_loss(), make_loss()
    *before, last, lastest = batches(6)
    for batch in before:
        loss(**batch)
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    resumed.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    for batch in (last, lastest):
        assert torch.equal(numbers(loss(**batch)), numbers(resumed(**batch)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_of_the_same_numbers(make_loss, dtype):
    one, other = make_loss(), make_loss()
    for batch in batches():
        low = batch["losses"].to(dtype).requires_grad_()
        result = one(
            **batch | {"losses": low, "reference_losses": batch["reference_losses"].float()}
        )
        full = other(
            **batch
            | {
                "losses": low.detach().float(),
                "reference_losses": batch["reference_losses"].float(),
            }
        )
        result.loss.backward()
        assert result.loss.dtype == result.weights.dtype == torch.float32
        assert torch.equal(numbers(result), numbers(full))
        assert low.grad.dtype == dtype


def test_a_shape_is_only_a_shape(make_loss):
    """Tokens of sentences are samples of one population."""
    one, other = make_loss(), make_loss()
    for batch in batches():
        flat = one(**batch)
        square = other(**{name: values.view(2, -1) for name, values in batch.items()})
        assert_close(square.loss, flat.loss)
        assert torch.equal(square.weights.flatten(), flat.weights)


def test_a_jump_of_the_losses_is_survived(make_loss):
    """By a hundred temperatures, up and down: nothing overflows."""
    loss = make_loss()
    for offset in (0.0, 100.0, 100.0, -100.0):
        for batch in batches(3):
            result = loss(**batch | {"losses": batch["losses"] + offset})
            assert not numbers(result).isnan().any()
            assert result.weight_sum < 25


# A moving average rests after a jump down until it has come down itself, as its docstring says; a
# learned CVaR until its threshold has, and a table until all samples have been visited again.
@without("moving average", "normalised average", "scent", "table", also=AT_THRESHOLD)
@pytest.mark.parametrize("jump", [30.0, -30.0])
def test_a_jump_of_the_losses_is_overcome(make_loss, jump):
    loss = make_loss()
    for batch in batches(5):
        loss(**batch)
    for batch in batches(20, seed=1):
        result = loss(**batch | {"losses": batch["losses"] + jump})
    assert 0.2 < result.weight_sum < 3


@without("multi-level")  # sizes of its batches are given
def test_masked_samples_are_nothing_to_losses_far_below_zero(make_loss):
    loss = make_loss()
    for batch in batches():
        far_below = batch | {"losses": batch["losses"] - 2000}
        mask = torch.arange(BATCH) < BATCH - 1
        losses = far_below["losses"].requires_grad_()
        result = loss(**far_below, mask=mask)
        result.loss.backward()
        assert not numbers(result).isnan().any()
        assert losses.grad.isfinite().all()
    assert all(buffer.isfinite().all() for buffer in loss.buffers())


def test_loss_is_a_module_that_moves_with_the_model(make_loss):
    model = nn.ModuleDict({"loss": make_loss()})
    assert set(model.state_dict()) == {f"loss.{name}" for name in make_loss().state_dict()}
