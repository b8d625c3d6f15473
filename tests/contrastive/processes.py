"""What test_tiles_distributed.py runs in processes of its own."""

import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles.log_sums import tiled_log_gap_means

NUM_PAIRS = 14
SHARES = {2: [[7, 7], [13, 1], [14, 0]], 4: [[4, 3, 4, 3], [1, 0, 12, 1]]}


def draw():
    """(target's and reference's embeddings, temperatures and upstream gradient) of all pairs."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    unit = torch.nn.functional.normalize
    embeddings = [unit(random(NUM_PAIRS, dim), dim=1) for dim in (6, 6, 4, 4)]
    return embeddings, 0.1 + random(2, NUM_PAIRS).square(), random(2, NUM_PAIRS)


def gap_means(rows, *, with_reference, temperature=None):
    """Value and gradients, of the pairs `rows`, in the group if there is one."""
    embeddings, temperatures, upstream = draw()
    leaves = [e[rows].clone().requires_grad_() for e in embeddings[:2]]
    reference = PairEmbeddings(*(e[rows] for e in embeddings[2:])) if with_reference else None
    tau = temperatures[:, rows] if temperature is None else torch.tensor(temperature).double()
    tau = tau.clone().requires_grad_()
    value = tiled_log_gap_means(PairEmbeddings(*leaves), reference, temperature=tau)
    return value.detach(), *torch.autograd.grad((value * upstream[:, rows]).sum(), [*leaves, tau])


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
    answers = []
    for sizes in SHARES[world]:
        rows = torch.arange(NUM_PAIRS).split(sizes)[rank]
        answers += [
            gap_means(rows, with_reference=False),
            gap_means(rows, with_reference=True),
            gap_means(rows, with_reference=True, temperature=0.07),
        ]
    torch.save(answers, Path(folder) / f"{world}-{rank}.pt")
    dist.destroy_process_group()


def run(world, folder):
    """Answers of each process."""
    mp.spawn(process, args=(world, str(folder)), nprocs=world)
    return [torch.load(Path(folder) / f"{world}-{rank}.pt") for rank in range(world)]
