"""K processes with their own pairs are one process with all of them."""

import pytest
import torch
from torch.testing import assert_close

from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles.log_sums import tiled_log_gap_means
from tests.processes import run

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


def answers_of(rank, world):
    answers = []
    for sizes in SHARES[world]:
        rows = torch.arange(NUM_PAIRS).split(sizes)[rank]
        answers += [
            gap_means(rows, with_reference=False),
            gap_means(rows, with_reference=True),
            gap_means(rows, with_reference=True, temperature=0.07),
        ]
    return answers


@pytest.mark.parametrize("world", [2, 4])
def test_processes_are_one_process(world):
    everyone = torch.arange(NUM_PAIRS)
    alone = [
        gap_means(everyone, with_reference=False),
        gap_means(everyone, with_reference=True),
        gap_means(everyone, with_reference=True, temperature=0.07),
    ]
    answers = run(answers_of, world, world=world)
    for number, share in enumerate(SHARES[world]):
        for case, (value, image, text, tau) in enumerate(alone):
            found = [answer[3 * number + case] for answer in answers]
            values, images, texts, taus = zip(*found, strict=True)
            assert [len(part) for part in images] == share
            assert_close(torch.cat(values, dim=1), value, rtol=1e-12, atol=1e-12)
            assert_close(torch.cat(images), image, rtol=1e-12, atol=1e-12)
            assert_close(torch.cat(texts), text, rtol=1e-12, atol=1e-12)
            whole = torch.cat(taus, dim=1) if tau.ndim else torch.stack(taus).sum()
            assert_close(whole, tau, rtol=1e-12, atol=1e-12 * tau.abs().max().item())
