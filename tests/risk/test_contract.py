"""What every risk promises, whatever its family."""

import math
import warnings
from dataclasses import fields, replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.risk.cases import FAMILIES, Definition
from torch.testing import assert_close

from drrho.risk import RiskMeasure

pytestmark = pytest.mark.filterwarnings("ignore:radius .* is at least")


class Case(NamedTuple):
    """A risk and its definition."""

    risk: RiskMeasure
    definition: Definition


def cases_of(family):
    """Each risk of a family under which all promises are tested."""
    return [
        pytest.param(Case(risk, family.define(risk)), id=repr(risk))
        for risk in (*(family.examples or [family.typical]), *family.beyond)
    ]


# Of the module and not of a test, as hypothesis repeats the test and not its fixtures.
@pytest.fixture(scope="module", params=[it for f in FAMILIES.values() for it in cases_of(f)])
def case(request):
    return request.param


@pytest.fixture(scope="module", params=[f.ladder for f in FAMILIES.values() if f.ladder], ids=repr)
def ladder(request):
    return request.param


@pytest.fixture(scope="module")
def risk(case):
    return case.risk


whole_losses = st.lists(st.integers(-6, 6), min_size=1, max_size=7)  # ties are likely
any_losses = whole_losses | st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=7)


def examples(**strategies):
    """Many small inputs; the first call of a torch operator must not look like a slow test."""

    def decorate(test):
        return settings(max_examples=12)(given(**strategies)(test))

    return decorate


def as_tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@examples(values=any_losses)
def test_weights_are_an_allowed_distribution_that_attains_the_value(case, values):
    (risk, defined), losses = case, as_tensor(values)
    value, weights, _ = risk(losses)
    assert (weights >= 0).all()
    assert_close(weights.sum(), as_tensor(1.0))
    base = torch.full_like(losses, 1 / len(values))
    assert defined.allows(weights, base, tolerance=1e-6)
    attained = (weights * losses).sum() - defined.price * defined.cost(weights, base)
    assert_close(attained, value, rtol=1e-9, atol=1e-6)


@examples(values=any_losses, seed=st.integers(0, 1000))
def test_no_allowed_distribution_does_better(case, values, seed):
    (risk, defined), losses = case, as_tensor(values)
    base = torch.full_like(losses, 1 / len(values))
    generator = torch.Generator().manual_seed(seed)
    exponents = 4 * torch.randn(8, len(values), dtype=torch.float64, generator=generator)
    others = torch.cat(
        [
            exponents.softmax(-1),
            (losses / losses.std(correction=0).clamp_min(1e-6)).softmax(-1)[None],
        ]
    )
    for _ in range(30):  # shrink towards the base measure until allowed
        allowed = defined.allows(others, base)
        others = torch.where(allowed[:, None], others, base + 0.7 * (others - base))
    others = others[defined.allows(others, base)]
    reached = (others * losses).sum(-1) - defined.price * defined.cost(others, base)
    assert (reached <= risk(losses).value + 1e-8).all()


@examples(values=any_losses)
def test_value_is_between_the_mean_and_the_maximum(risk, values):
    losses = as_tensor(values)
    value = risk(losses).value
    assert losses.mean() - 1e-8 <= value <= losses.max() + 1e-8


@examples(values=whole_losses, offset=st.integers(-5000, 5000))
def test_translation_moves_the_value_and_nothing_else(risk, values, offset):
    losses = torch.tensor(values, dtype=torch.float32)
    here, there = risk(losses), risk(losses + offset)
    assert torch.equal(here.weights, there.weights)
    largest = 6 + abs(offset)
    assert_close(there.value, here.value + offset, rtol=0, atol=2e-7 * largest)


@examples(values=whole_losses)
def test_equal_losses_share_equally(risk, values):
    losses = as_tensor(values)
    weights = risk(losses).weights
    for loss in losses.unique():
        tied = weights[losses == loss]
        assert torch.equal(tied, tied[:1].expand_as(tied))


@examples(values=any_losses, data=st.data())
def test_order_of_the_samples_does_not_matter(risk, values, data):
    losses = as_tensor(values)
    order = torch.tensor(data.draw(st.permutations(range(len(values)))))
    plain, permuted = risk(losses), risk(losses[order])
    assert_close(permuted.value, plain.value)
    assert_close(permuted.weights, plain.weights[order], rtol=1e-6, atol=1e-9)


@examples(
    samples=st.lists(st.tuples(st.integers(-6, 6), st.integers(0, 3)), min_size=1, max_size=4)
)
def test_a_sample_weight_of_k_is_k_copies_and_zero_is_absence(risk, samples):
    values, counts = (torch.tensor(column) for column in zip(*samples, strict=True))
    copies = values.double().repeat_interleave(counts)
    weighted = risk(values.double(), base_measure=counts)
    repeated = risk(copies)
    assert_close(weighted.value, repeated.value)
    assert_close(weighted.dual, repeated.dual, equal_nan=True, rtol=1e-6, atol=1e-9)
    owner = torch.arange(len(samples)).repeat_interleave(counts)
    merged = torch.zeros(len(samples), dtype=torch.float64).index_add(0, owner, repeated.weights)
    assert_close(weighted.weights, merged, rtol=1e-6, atol=1e-9)


@examples(values=any_losses)
def test_ladder_rises_from_the_mean_to_the_maximum(ladder, values):
    losses = as_tensor(values)
    risks = torch.stack([risk(losses).value for risk in ladder])
    assert_close(risks[0], losses.mean(), rtol=0, atol=0.2)  # the penalty's is at range^2/1e9
    assert_close(risks[-1], losses.max(), rtol=0, atol=1e-7)
    assert (risks.diff() >= -1e-8).all()


def with_prices_times(factor, risk):
    """The risk whose price, if it has one, is in other units of loss."""
    prices = {"temperature", "strength"} & {field.name for field in fields(risk)}
    return replace(risk, **{name: factor * getattr(risk, name) for name in prices})


def test_scaling_the_losses_scales_the_value(risk, losses):
    scaled = with_prices_times(3, risk)
    assert_close(scaled(3 * losses).value, 3 * risk(losses).value)
    assert_close(scaled(3 * losses).weights, risk(losses).weights)


def test_gradient_is_the_weights(risk, losses):
    losses.requires_grad_()
    value, weights, _ = risk(losses)
    (gradient,) = torch.autograd.grad(value.sum(), losses)
    assert torch.equal(gradient, weights)
    assert not weights.requires_grad


def test_gradient_is_the_values_slope(risk, losses):
    assert torch.autograd.gradcheck(lambda x: risk(x).value, losses[:1].requires_grad_())


def test_gradient_is_the_values_slope_under_sample_weights(risk, losses):
    base = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 3.0, 0.7])
    assert torch.autograd.gradcheck(
        lambda x: risk(x, base_measure=base).value, losses[:1].requires_grad_()
    )


def test_masked_samples_may_hold_anything(risk, losses):
    kept = torch.tensor([True, False, True, True, False, True, True])
    spoilt = losses.clone()
    spoilt[:, 1], spoilt[:, 4] = math.nan, math.inf
    spoilt.requires_grad_()
    masked, removed = risk(spoilt, base_measure=kept), risk(losses[:, kept])
    masked.value.sum().backward()
    assert_close(masked.value, removed.value)
    assert_close(masked.weights[:, kept], removed.weights)
    assert not masked.weights[:, ~kept].any()
    assert torch.equal(spoilt.grad, masked.weights)


def test_only_ratios_of_the_base_measure_matter(risk, losses):
    base = torch.rand(3, 7, dtype=torch.float64)
    plain = risk(losses, base_measure=base)
    for scale in (8, 1e-60, 1e60):
        scaled = risk(losses.float(), base_measure=scale * base)
        assert_close(plain.value.float(), scaled.value, rtol=1e-5, atol=1e-6)
        assert_close(plain.weights.float(), scaled.weights, rtol=1e-4, atol=1e-6)


def test_a_row_does_not_depend_on_the_others(risk, losses):
    losses[1] *= 1e3
    together = risk(losses)
    for row, value, weights in zip(losses, together.value, together.weights, strict=True):
        alone = risk(row)
        assert_close(alone.value, value)
        assert_close(alone.weights, weights)


@pytest.mark.parametrize("offset", [0.0, -100.0, 1000.0])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
def test_float32_is_accurate_to_rounding(risk, offset, spread):
    losses = offset + spread * torch.randn(4, 257)
    risk = with_prices_times(spread, risk)
    single, double = risk(losses), risk(losses.double())
    assert single.value.dtype == single.weights.dtype == torch.float32
    largest = losses.abs().max().item()
    assert_close(single.value.double(), double.value, rtol=0, atol=3e-7 * largest)
    assert_close(single.weights.double(), double.weights, rtol=3e-5, atol=1e-8)


def test_an_outlier_does_not_blur_the_other_losses_in_float32(risk):
    losses = torch.randn(65)
    losses[3] = 1e9
    weights = risk(losses).weights.double()
    assert_close(weights, risk(losses.double()).weights, rtol=3e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_of_the_same_numbers(risk, losses, dtype):
    half = losses.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, weights, _ = risk(half)
    full = risk(half.detach().float())
    value.sum().backward()
    assert torch.equal(value, full.value)
    assert torch.equal(weights, full.weights)
    assert value.dtype == torch.float32
    assert half.grad.dtype == dtype


def test_one_sample_and_equal_samples(risk):
    one, equal = risk(torch.tensor([-3.0])), risk(torch.full((2, 5), -3.0))
    assert one.value == -3.0
    assert one.weights == 1.0
    assert_close(equal.value, torch.tensor([-3.0, -3.0]), rtol=0, atol=0)
    assert_close(equal.weights, torch.full((2, 5), 0.2))


def test_a_row_without_samples_is_zero_and_attached(risk, losses):
    kept = torch.ones(3, 7)
    kept[1] = 0
    losses[1] = math.nan
    losses.requires_grad_()
    value, weights, dual = risk(losses, base_measure=kept)
    assert value[1] == 0
    assert not weights[1].any()
    assert dual is None or dual.isnan().tolist() == [False, True, False]
    (gradient,) = torch.autograd.grad(value[1], losses)
    assert torch.equal(gradient, torch.zeros_like(losses))


def test_no_samples_at_all_is_zero_and_attached(risk):
    losses = torch.empty(2, 0, requires_grad=True)
    value, weights, _ = risk(losses)
    value.sum().backward()
    assert value.tolist() == [0, 0]
    assert weights.shape == (2, 0)
    assert losses.grad.shape == (2, 0)


def test_a_loss_that_is_not_finite_is_seen_in_the_value(risk, losses):
    losses[0, 2], losses[1, 2] = math.nan, math.inf
    assert risk(losses).value.isfinite().tolist() == [False, False, True]


def test_base_measure_of_another_batch_is_refused(risk, losses):
    with pytest.raises(ValueError, match=r"base_measure has shape \(2, 7\).*\(3, 7\)"):
        risk(losses, base_measure=torch.ones(2, 7))


def test_risk_warns_of_nothing_within_reach(ladder, losses):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for risk in ladder[:-1]:
            risk(losses)
