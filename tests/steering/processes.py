"""What test_distributed.py runs in processes of its own: training on any number of them."""

import math
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from drrho.risk import (
    KL,
    ChiSquare,
    ChiSquareBall,
    CVaR,
    KLBall,
    KLCVaR,
    Mean,
)
from drrho.runtime.distributed import partition
from drrho.steering import (
    AdaptiveRate,
    BatchEstimator,
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
    "mean": lambda: DRRhoLoss(Mean()),
    "cvar": lambda: DRRhoLoss(CVaR(fraction=0.3), BatchEstimator()),
    "kl": lambda: DRRhoLoss(KL(temperature=0.5)),
    "kl ball": lambda: DRRhoLoss(KLBall(radius=0.3)),
    "kl in cvar": lambda: DRRhoLoss(KLCVaR(temperature=0.5, fraction=0.2)),
    "chi2 ball": lambda: DRRhoLoss(ChiSquareBall(radius=0.3)),
    "chi2 penalty": lambda: DRRhoLoss(ChiSquare(strength=0.5)),
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
        return Losses(losses, reference[rows], rows % 7 != 3, rows)

    values = []
    for step in range(STEPS):
        batch = torch.randperm(NUM_SAMPLES, generator=generator)[:BATCH]
        own = batch.split(shares(world, step))[rank]
        optimizer.zero_grad()
        if micro_batches is None:
            measured = losses_of(own)
            result = loss(*measured[:4])
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


def process(rank, world, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # as in the tests' own process
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous-{world}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=120),
    )
    rows = torch.arange(2 * rank).view(rank, 2) + 10 * rank
    shares = partition(len(rows), group=None)
    everyone = shares.gather(rows)
    half = dist.new_group([0, 1])
    answers = {
        "training": everything(rank, world),
        "error": what_is_wrong_on_one(rank),
        "given on one": weights_and_ids_on_one(rank),
        "partition": shares,
        "rows": rows,
        "gathered": everyone,
        "own": shares.own(everyone),
        "own of sum": shares.own_of_sum((rank + 1) * everyone),
        "reduced": (shares.sum(torch.tensor(rank)), shares.maximum(torch.tensor(rank))),
        "group": DRRhoLoss(Mean(), process_group=half)(torch.tensor([float(rank)])).loss
        if rank < 2
        else None,
    }
    torch.save(answers, Path(folder) / f"{world}-{rank}.pt")
    dist.destroy_process_group()


def run(world, folder):
    """Answers of each process."""
    mp.spawn(process, args=(world, str(folder)), nprocs=world)
    files = [Path(folder) / f"{world}-{rank}.pt" for rank in range(world)]
    return [torch.load(file, weights_only=False) for file in files]
