"""K processes with their own pairs select what one process with all of them selects."""

import math
from itertools import accumulate

import pytest
import torch
from torch.testing import assert_close

from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.selection.jest import JestConfig, ModelPairs, select_jointly
from drrho.contrastive.selection.rho import RhoConfig, select_by_excess
from tests.contrastive.conftest import draw_pairs
from tests.processes import run

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
PUBLISHED = JestConfig(batch_size=12, num_chunks=3, score="published")
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


def answers_of(rank, world):
    answers = []
    for sizes in SHARES[world]:
        rows = torch.arange(NUM_PAIRS).split(sizes)[rank]
        # Only the first process's generator counts: the seeds of the others differ.
        answers.append([tuple(select(rows, config, seed=rank)) for config in CONFIGS])
        answers[-1].append(message(rows))
        answers[-1].append(tuple(select(rows, PUBLISHED, seed=rank)))
    return answers


@pytest.mark.parametrize("world", [2, 4])
def test_processes_are_one_process(world):
    everyone = torch.arange(NUM_PAIRS)
    alone = [select(everyone, config) for config in CONFIGS]
    answers = run(answers_of, world, world=world)
    for number, sizes in enumerate(SHARES[world]):
        starts = [0, *accumulate(sizes)][:world]
        for case, expected in enumerate(alone):
            found = [answer[number][case] for answer in answers]
            for index, scores, _ in found:
                assert index.tolist() == expected.index.tolist()
                assert_close(scores, expected.scores, rtol=1e-12, atol=1e-12)
            for (_, _, own), size in zip(found, sizes, strict=True):
                assert ((own >= 0) & (own < size)).all()
            places = [start + own for start, (_, _, own) in zip(starts, found, strict=True)]
            assert torch.cat(places).tolist() == expected.own.tolist()
        for answer in answers:
            assert answer[number][-2] == message(everyone)
            assert answer[number][-2] is not None
        assert_published_shares([answer[number][-1] for answer in answers], sizes)


def assert_published_shares(found, sizes):
    """Each process selects its share of each chunk from its own pairs; all know the whole."""
    index = found[0][0]
    starts = [0, *accumulate(sizes)]
    assert len(set(index.tolist())) == PUBLISHED.batch_size
    assert CORRUPT not in index
    for other, _, _ in found[1:]:
        assert other.tolist() == index.tolist()
    for (_, _, own), start, size in zip(found, starts, sizes, strict=False):
        inside = (index >= start) & (index < start + size)
        assert sorted((index[inside] - start).tolist()) == own.tolist()
        share = PUBLISHED.batch_size * size / NUM_PAIRS
        assert abs(len(own) - share) <= 2
