"""A batch in micro-batches is the batch: gradients, state, and the random draws of both passes."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from drrho.risk import KL, ChiSquareBall, CVaR
from drrho.steering import (
    BatchEstimator,
    DRRhoLoss,
    LearnedDual,
    Losses,
    LossTable,
    MovingAverage,
    accumulate_gradients,
)

MAKE_LOSS = {
    "batch": lambda: DRRhoLoss(CVaR(fraction=0.3), BatchEstimator()),
    "average": lambda: DRRhoLoss(KL(temperature=0.5), MovingAverage(rate=0.2)),
    "learned": lambda: DRRhoLoss(ChiSquareBall(radius=0.3), LearnedDual(rate=0.2)),
    "table": lambda: DRRhoLoss(CVaR(fraction=0.3), LossTable(30)),
}


@pytest.fixture(params=MAKE_LOSS)
def make_loss(request):
    return MAKE_LOSS[request.param]


def make_data():
    inputs, targets = torch.randn(30, 3, dtype=torch.float64), torch.rand(30, dtype=torch.float64)
    return inputs, targets, torch.rand(30, dtype=torch.float64), torch.arange(30)


def losses_with(model):
    def losses_of(rows):
        inputs, targets, reference, index = rows
        return Losses((model(inputs).squeeze(-1) - targets).square(), reference, index=index)

    return losses_of


def train(model, loss, steps, *, sizes):
    """Gradient descent on batches, each in micro-batches of these sizes; None is the batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values = []
    for rows in steps:
        optimizer.zero_grad()
        if sizes is None:
            measured = losses_with(model)(rows)
            result = loss(measured.losses, measured.reference_losses, index=measured.index)
            result.loss.backward()
            values.append(result.loss.detach())
        else:
            micro_batches = zip(*(column.split(sizes) for column in rows), strict=True)
            results = accumulate_gradients(loss, micro_batches, losses_with(model))
            values.append(sum(result.loss for result in results))
        optimizer.step()
    return torch.stack(values)


@pytest.mark.parametrize("sizes", [[10], [5, 5], [1, 6, 0, 3]], ids=str)
def test_micro_batches_are_the_batch(make_loss, sizes):
    model = nn.Linear(3, 1).double()
    data = make_data()
    orders = [torch.randperm(30)[:10] for _ in range(4)]
    steps = [tuple(column[order] for column in data) for order in orders]
    models, losses = [model, copy.deepcopy(model)], [make_loss(), make_loss()]
    whole = train(models[0], losses[0], steps, sizes=None)
    parts = train(models[1], losses[1], steps, sizes=sizes)
    assert_close(parts, whole)
    for name, value in models[0].state_dict().items():
        assert_close(models[1].state_dict()[name], value)
    for name, value in losses[0].state_dict().items():
        assert_close(losses[1].state_dict()[name], value)


def test_both_passes_draw_the_same_and_the_generator_goes_on_as_after_one():
    dropout = nn.Dropout(0.5)
    seen = []

    def losses_of(rows):
        losses = dropout(rows).sum(dim=1)
        seen.append(losses.detach().clone())
        return Losses(losses)

    rows = torch.rand(6, 20, requires_grad=True)
    torch.manual_seed(5)
    accumulate_gradients(DRRhoLoss(CVaR(fraction=0.5)), rows.split(2), losses_of)
    after = torch.rand(3)
    first, second = seen[:3], seen[3:]
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(5)
    for part in rows.split(2):
        dropout(part)
    assert torch.equal(after, torch.rand(3))


def test_gradients_are_synchronised_once_and_scaled_as_asked():
    entered, scaled = [], []

    @contextlib.contextmanager
    def no_sync():
        entered.append(len(scaled))
        yield

    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    data = torch.rand(6, 3, dtype=torch.float64)

    def backward(loss):
        scaled.append(loss)
        (8 * loss).backward()

    loss = DRRhoLoss(CVaR(fraction=0.5))
    accumulate_gradients(
        loss, data.split(2), lambda rows: Losses(rows @ weight), backward=backward, no_sync=no_sync
    )
    (expected,) = torch.autograd.grad(loss(data @ weight).loss, weight)
    assert entered == [0, 1]  # not around the third and last
    assert_close(weight.grad, 8 * expected)


def test_results_carry_no_graph_and_tell_of_the_whole_batch():
    weight = torch.ones(3, requires_grad=True)
    data = torch.rand(6, 3)
    results = accumulate_gradients(
        DRRhoLoss(CVaR(fraction=0.5)), data.split(2), lambda rows: Losses(rows @ weight)
    )
    assert not any(result.loss.requires_grad for result in results)
    assert [result.num_used.item() for result in results] == [6, 6, 6]
    assert_close(sum(result.weights.sum() for result in results), torch.tensor(1.0))
