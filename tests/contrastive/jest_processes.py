"""What test_jest_distributed.py runs in processes of its own."""

import math
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.selection.jest import JestConfig, ModelPairs, select_jointly
from drrho.contrastive.selection.rho import RhoConfig, select_by_excess
from tests.contrastive.conftest import draw_pairs

NUM_PAIRS = 24
CORRUPT = 5  # a row
SHARES = {2: [[12, 12], [23, 1], [24, 0]], 4: [[7, 5, 8, 4], [1, 0, 20, 3]]}
CONFIGS = (
    JestConfig(batch_size=13, num_chunks=4),
    JestConfig(batch_size=13, num_chunks=4, selection="top_k"),
    JestConfig(batch_size=13, num_chunks=4, loss="sigmoid"),
    JestConfig(batch_size=NUM_PAIRS - 1, num_chunks=6, loss="sigmoid", selection="top_k"),
    RhoConfig(batch_size=13),
    RhoConfig(batch_size=NUM_PAIRS - 1, loss="sigmoid"),
)
TOO_LARGE = JestConfig(batch_size=NUM_PAIRS)


def select(rows, config, *, seed=0):
    """From the pairs `rows` of this process, in the group if there is one."""
    models = []
    for number, (dim, temperature, bias) in enumerate(((6, 0.3, -2.0), (4, 0.2, -1.0))):
        pairs = draw_pairs(NUM_PAIRS, dim, seed=number)
        pairs.image[CORRUPT, 0] = math.nan
        own = PairEmbeddings(*(e[rows] for e in pairs))
        models.append(ModelPairs(own, temperature, bias if config.loss == "sigmoid" else None))
    if isinstance(config, RhoConfig):
        return select_by_excess(*models, config=config)
    generator = torch.Generator().manual_seed(seed)
    return select_jointly(*models, config=config, generator=generator)


def message(rows):
    """Of the error that there are too few candidates."""
    try:
        select(rows, TOO_LARGE)
    except ValueError as error:
        return str(error)
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
    answers = []
    for sizes in SHARES[world]:
        rows = torch.arange(NUM_PAIRS).split(sizes)[rank]
        # Only the first process's generator counts: the seeds of the others differ.
        answers.append([tuple(select(rows, config, seed=rank)) for config in CONFIGS])
        answers[-1].append(message(rows))
    torch.save(answers, Path(folder) / f"{world}-{rank}.pt")
    dist.destroy_process_group()


def run(world, folder):
    """Answers of each process."""
    mp.spawn(process, args=(world, str(folder)), nprocs=world)
    return [torch.load(Path(folder) / f"{world}-{rank}.pt") for rank in range(world)]
