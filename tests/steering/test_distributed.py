"""K processes are one process on the concatenated batch, whatever their shares of it."""

import math
from functools import partial

import pytest
import torch
import torch.distributed as dist
from tests.processes import run
from tests.risk.cases import TYPICAL
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from drrho.risk import KL, ChiSquareBall, CVaR, KLBall, Mean
from drrho.runtime.distributed import partition
from drrho.steering import (
    AdaptiveRate,
    DRRhoLoss,
    LearnedDual,
    Losses,
    LossTable,
    MovingAverage,
    MultiLevelMonteCarlo,
    accumulate_gradients,
)

NUM_SAMPLES, BATCH, STEPS = 40, 16, 4

CASES = {
    **{name: partial(DRRhoLoss, risk) for name, risk in TYPICAL.items()},
    "moving average": lambda: DRRhoLoss(KL(temperature=0.5), MovingAverage(rate=0.2)),
    "scent": lambda: DRRhoLoss(
        KL(temperature=0.5),
        MovingAverage(rate=AdaptiveRate(log_step=-1.0), normalise=True),
    ),
    "learned dual": lambda: DRRhoLoss(KLBall(radius=0.3), LearnedDual(rate=0.2)),
    "table": lambda: DRRhoLoss(CVaR(fraction=0.3), LossTable(NUM_SAMPLES)),
    "multi-level": lambda: DRRhoLoss(
        ChiSquareBall(radius=0.3), MultiLevelMonteCarlo(smallest=4, levels=2)
    ),
    "weighted": lambda: DRRhoLoss(KL(temperature=0.5)),
    "plain where missing": lambda: DRRhoLoss(
        KL(temperature=0.5), missing="plain", nonfinite="drop"
    ),
}


def train(case, *, rank, world, micro_batches=None):
    """Gradient descent on batches that do not depend on the number of processes.

    Returns:
        (objective of every step, model, state of the loss)
    """
    generator = torch.Generator().manual_seed(1)
    weight, inputs = torch.randn(4, generator=generator), torch.randn(40, 4, generator=generator)
    inputs, weight = inputs.double(), weight.double()
    targets, reference = inputs @ weight, torch.rand(NUM_SAMPLES, generator=generator).double()
    reference[::9] = math.nan if "missing" in case else 0.1
    loss = CASES[case]()
    model = nn.Linear(4, 1).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    parallel = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def losses_of(rows):
        losses = (parallel(inputs[rows]).squeeze(1) - targets[rows]).square()
        weights = 0.5 + rows % 3 if case == "weighted" else None
        return Losses(losses, reference[rows], rows % 7 != 3, rows, weights)

    values = []
    for step in range(STEPS):
        batch = torch.randperm(NUM_SAMPLES, generator=generator)[:BATCH]
        own = batch.split(shares(world, step))[rank]
        optimizer.zero_grad()
        if micro_batches is None:
            measured = losses_of(own)
            result = loss(*measured[:4], sample_weight=measured.sample_weight)
            result.loss.backward()
            values.append(result.loss.detach())
        else:
            no_sync = {"no_sync": parallel.no_sync} if dist.is_initialized() else {}
            parts = own.tensor_split(micro_batches + rank)  # some empty, of another number each
            results = accumulate_gradients(loss, parts, losses_of, **no_sync)
            values.append(sum(result.loss for result in results))
        optimizer.step()
    return torch.stack(values), model.state_dict(), loss.state_dict()


def shares(world, step):
    """Sizes that differ between processes and steps; in one step a process has nothing."""
    if world == 1:
        return [BATCH]
    sizes = [BATCH // world] * world
    moved = sizes[step % world] if step == 1 else step
    sizes[step % world] -= moved
    sizes[(step + 1) % world] += moved
    return sizes


def everything(rank, world):
    results = {case: train(case, rank=rank, world=world) for case in CASES}
    results |= {
        f"{case}, accumulated": train(case, rank=rank, world=world, micro_batches=2)
        for case in CASES
    }
    return results


def what_is_wrong_on_one(rank):
    """The error that every process sees if the losses of the last are bad."""
    losses = torch.ones(2 + rank)
    if rank == dist.get_world_size() - 1:
        losses[1] = math.nan
    try:
        DRRhoLoss(Mean())(losses)
    except ValueError as error:
        return str(error)
    return None


def weights_and_ids_on_one(rank):
    """Sample weights that only the first process gives count there; ids must be given by all."""
    losses = torch.arange(3.0) + rank
    weight = {"sample_weight": torch.tensor([1.0, 5.0, 2.0])} if rank == 0 else {}
    weighted = DRRhoLoss(KL(temperature=1.0), MovingAverage())(losses, **weight)
    try:
        DRRhoLoss(Mean())(losses, index=torch.arange(3) if rank == 0 else None)
    except ValueError as error:
        return weighted.weights, str(error)
    return None


def answers_of(rank, world):
    rows = torch.arange(2 * rank).view(rank, 2) + 10 * rank
    shares = partition(len(rows), group=None)
    everyone = shares.all_gather(rows)
    half = dist.new_group([0, 1])
    return {
        "training": everything(rank, world),
        "error": what_is_wrong_on_one(rank),
        "given on one": weights_and_ids_on_one(rank),
        "partition": shares,
        "rows": rows,
        "gathered": everyone,
        "own": shares.own(everyone),
        "own of sum": shares.reduce_scatter((rank + 1) * everyone),
        "reduced": (
            shares.all_reduce(torch.tensor(rank)),
            shares.all_reduce_max(torch.tensor(rank)),
        ),
        "group": DRRhoLoss(Mean(), process_group=half)(torch.tensor([float(rank)])).loss
        if rank < 2
        else None,
    }


@pytest.fixture(scope="module")
def alone():
    return everything(0, 1)


@pytest.fixture(scope="module", params=[2, 4], ids="{} processes".format)
def answers(request):
    return run(answers_of, request.param, world=request.param)


@pytest.mark.parametrize("case", CASES)
def test_processes_are_one_process(case, alone, answers):
    values, model, state = alone[case]
    for of_process in answers:
        for name in (case, f"{case}, accumulated"):
            their_values, their_model, their_state = of_process["training"][name]
            assert_close(their_values, values, rtol=1e-12, atol=1e-12)
            assert_close(their_model, model, rtol=1e-12, atol=1e-12)
            assert_close(their_state, state, rtol=1e-12, atol=1e-12)


def test_training_moved_the_model(alone):
    for values, model, _ in alone.values():
        assert model["weight"].abs().max() > 0.1
        assert values[-1] != values[0]


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_are_the_batch_in_one_process(case, alone):
    for whole, parts in zip(alone[case], alone[f"{case}, accumulated"], strict=True):
        assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_every_process_raises_what_is_wrong_on_one(answers):
    last = len(answers) - 1
    for of_process in answers:
        assert f"at 1 of {last + 2} samples of process {last}: 1" in of_process["error"]


def test_weights_given_by_one_process_count_and_ids_must_be_given_by_all(answers):
    world = len(answers)
    losses = torch.cat([torch.arange(3.0) + rank for rank in range(world)])
    measure = torch.cat([torch.tensor([1.0, 5.0, 2.0]), torch.ones(3 * (world - 1))])
    expected = KL(temperature=1.0)(losses, base_measure=measure).weights
    assert_close(torch.cat([answer["given on one"][0] for answer in answers]), expected)
    assert all("some have none" in answer["given on one"][1] for answer in answers)


def test_rows_of_any_number_are_gathered_and_summed(answers):
    world = len(answers)
    everyone = torch.cat([answer["rows"] for answer in answers])
    for rank, answer in enumerate(answers):
        shares = answer["partition"]
        assert (shares.sizes, shares.rank) == (list(range(world)), rank)
        assert torch.equal(answer["gathered"], everyone)
        assert torch.equal(answer["own"], answer["rows"])
        assert torch.equal(answer["own of sum"], answer["rows"] * world * (world + 1) // 2)
        assert answer["reduced"] == (world * (world - 1) // 2, world - 1)


def test_a_group_may_be_a_part_of_the_processes(answers):
    assert answers[0]["group"] == answers[1]["group"] == 0.5
