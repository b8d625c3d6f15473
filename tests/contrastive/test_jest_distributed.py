"""K processes with their own pairs select what one process with all of them selects."""

from itertools import accumulate

import pytest
import torch
from torch.testing import assert_close

from tests.contrastive import jest_processes as processes


@pytest.mark.parametrize("world", [2, 4])
def test_processes_are_one_process(world, tmp_path):
    everyone = torch.arange(processes.NUM_PAIRS)
    alone = [processes.select(everyone, config) for config in processes.CONFIGS]
    answers = processes.run(world, tmp_path)
    for number, sizes in enumerate(processes.SHARES[world]):
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
            assert answer[number][-1] == processes.message(everyone)
            assert answer[number][-1] is not None
