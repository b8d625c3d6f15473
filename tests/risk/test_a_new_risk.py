"""A risk that the package does not have, added in the public way, keeps every promise of risks.

What it takes is here: one class with `__call__` from `weigh` to `as_risk`, and one `Family`. In
the package these are a module of `drrho.risk` with its line in `drrho/risk/__init__.py`, and an
entry of `tests/risk/cases.py`.
"""

from dataclasses import dataclass

import pytest
import torch
from tests.risk import test_contract
from tests.risk.cases import Definition, Family
from torch.testing import assert_close

from drrho.risk import Risk, RiskMeasure, excess_loss
from drrho.risk.samples import as_risk, dot, normalised, weigh
from drrho.steering import BatchEstimator, DRRhoLoss, LearnedDual, LossTable


@dataclass(frozen=True, kw_only=True)
class MeanAndMaximum:
    """`(1 - share) mean + share maximum`: the adversary moves a share of the weight at will."""

    share: float

    def __call__(self, losses, *, base_measure=None) -> Risk:
        samples = weigh(losses, base_measure)
        at_top = normalised(samples.times_mass((samples.below == 0).double()))
        weights = (1 - self.share) * samples.measure + self.share * at_top
        value = samples.top + dot(weights, samples.below)
        return as_risk(samples, value=value, weights=weights, dual=None)


FAMILY = Family(
    # At most `share` is taken from any sample, relative to what it had.
    lambda risk: Definition(lambda p, q: (1 - p / q).amax(-1), budget=risk.share),
    MeanAndMaximum(share=0.3),
    (MeanAndMaximum(share=0.05), MeanAndMaximum(share=0.8)),
    ladder=tuple(MeanAndMaximum(share=share) for share in (0.0, 0.1, 0.5, 0.9, 1.0)),
)


@pytest.fixture(scope="module", params=test_contract.cases_of(FAMILY))
def case(request):
    return request.param


@pytest.fixture(scope="module")
def risk(case):
    return case.risk


@pytest.fixture(scope="module")
def ladder():
    return FAMILY.ladder


# The same tests, with the fixtures of this file.
globals().update({name: it for name, it in vars(test_contract).items() if name.startswith("test_")})


def test_a_new_risk_is_a_risk_measure(risk):
    assert isinstance(risk, RiskMeasure)


def test_a_new_risk_steers(risk):
    losses, reference = torch.rand(2, 8)
    for estimator in (BatchEstimator(), LossTable(8)):
        attached = losses.clone().requires_grad_()
        result = DRRhoLoss(risk, estimator)(attached, reference, index=torch.arange(8))
        result.loss.backward()
        expected = risk(excess_loss(losses, reference))
        assert_close(result.loss, expected.value)
        assert_close(attached.grad, expected.weights)


def test_an_estimator_that_needs_a_dual_form_names_the_risk_without_one(risk):
    with pytest.raises(ValueError, match=r"MeanAndMaximum\(.*\) has no dual variables"):
        DRRhoLoss(risk, LearnedDual())
