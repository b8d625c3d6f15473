"""K processes with their own pairs are one process with all of them."""

import pytest
import torch
from torch.testing import assert_close

from tests.contrastive import processes


@pytest.mark.parametrize("world", [2, 4])
def test_processes_are_one_process(world, tmp_path):
    everyone = torch.arange(processes.NUM_PAIRS)
    alone = [
        processes.gap_means(everyone, with_reference=False),
        processes.gap_means(everyone, with_reference=True),
        processes.gap_means(everyone, with_reference=True, temperature=0.07),
    ]
    answers = processes.run(world, tmp_path)
    for number, share in enumerate(processes.SHARES[world]):
        for case, (value, image, text, tau) in enumerate(alone):
            found = [answer[3 * number + case] for answer in answers]
            values, images, texts, taus = zip(*found, strict=True)
            assert [len(part) for part in images] == share
            assert_close(torch.cat(values, dim=1), value, rtol=1e-12, atol=1e-12)
            assert_close(torch.cat(images), image, rtol=1e-12, atol=1e-12)
            assert_close(torch.cat(texts), text, rtol=1e-12, atol=1e-12)
            whole = torch.cat(taus, dim=1) if tau.ndim else torch.stack(taus).sum()
            assert_close(whole, tau, rtol=1e-12, atol=1e-12 * tau.abs().max().item())
