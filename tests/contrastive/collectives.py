"""What test_collectives.py runs in processes of its own: the collectives of one training step."""

from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from drrho.contrastive.memory.temperature import Learned, PerSample
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import Distillation, DistillationTerm
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.objectives.siglip import SigLIP
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles.tiling import JOINT
from drrho.runtime import distributed

WORLD, NUM_PAIRS, DIM, REFERENCE_DIM = 2, 12, 5, 3
LEARNED = Learned()
TEACHER = DistillationTerm(teacher_temperatures=(0.05,))
# By the names in the guide's table.
CONFIGS = {
    "CLIP": CLIP(),
    "CLIP, learned temperature": CLIP(temperature=LEARNED),
    "SigLIP, learned temperature": SigLIP(temperature=LEARNED),
    "FastCLIP": FastCLIP(),
    "FastCLIP, learned temperature": FastCLIP(temperature=LEARNED, rho=0.5),
    "FastCLIP, temperature per sample": FastCLIP(temperature=PerSample(), rho=0.5),
    "DRRho-CLIP": DRRhoCLIP(),
    "DRRho-CLIP, learned temperature": DRRhoCLIP(temperature=LEARNED, rho=0.5),
    "DRRho-CLIP, temperature per sample": DRRhoCLIP(temperature=PerSample(), rho=0.5),
    "distillation from one teacher": Distillation(
        teacher_temperatures=TEACHER.teacher_temperatures
    ),
    "distillation from one teacher, joint passes": Distillation(
        teacher_temperatures=TEACHER.teacher_temperatures
    ),
}
IMPLEMENTATIONS = {"distillation from one teacher, joint passes": JOINT}


@contextmanager
def counted(found: list[int]):
    """Note the bytes of every collective: of the tensor that the processes' parts make up."""

    def noting(function, whole):
        def call(*arguments, **options):
            found.append(whole(*arguments).nbytes)
            return function(*arguments, **options)

        return call

    def first(*tensors):
        return tensors[0]

    with (
        patch.object(distributed, "_all_gather", noting(distributed._all_gather, first)),
        patch.object(
            distributed,
            "_reduce_scatter",
            noting(distributed._reduce_scatter, lambda own, shares: shares),
        ),
        patch.object(dist, "all_reduce", noting(dist.all_reduce, first)),
    ):
        yield


def unit(dim: int, seed: int) -> PairEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    return PairEmbeddings(
        *normalize(torch.randn(2, NUM_PAIRS // WORLD, dim, generator=generator), dim=-1)
    )


def step(name: str, rank: int) -> list[int]:
    config, impl = CONFIGS[name], IMPLEMENTATIONS.get(name, "auto")
    objective = ContrastiveObjective(config, num_samples=2 * NUM_PAIRS, impl=impl)
    target = PairEmbeddings(*(e.requires_grad_() for e in unit(DIM, seed=rank)))
    other = unit(REFERENCE_DIM, seed=10 + rank)
    found: list[int] = []
    with counted(found):
        objective(
            target,
            other if config.method == "drrho_clip" else None,
            sample_ids=torch.arange(NUM_PAIRS).chunk(WORLD)[rank],
            gamma=0.6,
            teachers=[other] if config.method == "distillation" else [],
        ).loss.backward()
    return found


def steps(rank: int) -> dict[str, list[int]]:
    """The bytes of each collective of a step, of every objective."""
    return {name: step(name, rank) for name in CONFIGS}
