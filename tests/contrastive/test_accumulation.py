"""Micro-batches have the big batch's gradient and state, with the same random draws."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.testing import assert_close

from drrho.contrastive.accumulation import encode_in_micro_batches
from drrho.contrastive.memory.temperature import Learned
from drrho.contrastive.objectives.global_risk import DRRhoCLIP
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.pairs import PairEmbeddings
from drrho.runtime.randomness import seed_generators
from tests.contrastive.conftest import draw_pairs

NUM_PAIRS = 12


class Encoder(nn.Module):
    """Towers with dropout, and an augmentation that draws from all three global generators."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = (2, 6, 5)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        self.drop = nn.Dropout(0.3)
        self.calls = 0
        self.largest = 0

    def forward(self, inputs):
        self.calls += 1
        self.largest = max(self.largest, len(inputs[0]))
        shift = random.random() + np.random.rand()
        noise = torch.randn(inputs[0].shape, dtype=torch.float64)
        return PairEmbeddings(
            *(
                normalize(self.drop(x + shift + noise) @ w, dim=1)
                for x, w in zip(inputs, self.weight, strict=True)
            )
        )


def inputs_of():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, NUM_PAIRS, 6, generator=generator, dtype=torch.float64)


def stepped(encoder, embed):
    """Loss, gradients and state after a step from a fixed seed."""
    config = DRRhoCLIP(temperature=Learned(), rho=0.5)
    objective = ContrastiveObjective(config, num_samples=20).double()
    reference = draw_pairs(NUM_PAIRS, 4, seed=1)
    seed_generators(7)
    ids = torch.arange(NUM_PAIRS)
    loss = objective(embed(), reference, sample_ids=ids, gamma=0.5).loss
    loss.backward()
    after = torch.rand(1), random.random(), np.random.rand()
    return loss.detach(), encoder.weight.grad, objective, after


@pytest.mark.parametrize("sizes", [[4, 4, 4], [5, 7], [12]], ids=str)
def test_gradient_and_state_are_those_of_the_big_batch(sizes):
    """The big batch is the micro-batches' embeddings with all their graphs in memory."""
    parts = [torch.stack(p) for p in zip(*(x.split(sizes) for x in inputs_of()), strict=True)]
    whole = Encoder()
    expected = stepped(
        whole,
        lambda: PairEmbeddings(
            *(torch.cat(side) for side in zip(*(whole(part) for part in parts), strict=True))
        ),
    )
    encoder = Encoder()
    found = stepped(encoder, lambda: encode_in_micro_batches(encoder, parts))
    assert_close(found[0], expected[0], rtol=1e-14, atol=0)
    assert_close(found[1], expected[1], rtol=1e-12, atol=1e-15)
    for (name, ours), theirs in zip(
        found[2].state_dict().items(), expected[2].state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    gradients = [
        objective.temperature.log_temperature.grad for objective in (found[2], expected[2])
    ]
    assert_close(*gradients, rtol=1e-12, atol=0)
    # The replay leaves the generators where the first pass left them.
    assert found[3] == expected[3]
    assert encoder.largest == max(sizes)
    assert encoder.calls == (len(sizes) if len(sizes) == 1 else 2 * len(sizes))


def test_activations_of_one_micro_batch_are_held():
    """Bytes that autograd saves between the passes: embeddings, and not the towers' insides."""
    tower = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8)))

    def encode(x):
        return PairEmbeddings(normalize(tower(x), dim=1), normalize(tower(-x), dim=1))

    def saved_bytes(parts):
        saved = 0

        def pack(tensor):
            nonlocal saved
            saved += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            embeddings = encode_in_micro_batches(encode, parts)
        assert embeddings.image.shape == (256, 64)
        return saved

    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    assert saved_bytes(list(x.split(16))) < saved_bytes([x]) / 10


def test_without_a_gradient_nothing_is_encoded_twice():
    encoder = Encoder()
    with torch.no_grad():
        encode_in_micro_batches(encoder, list(inputs_of().split(4, dim=1)))
    assert encoder.calls == 3


def test_there_must_be_a_micro_batch():
    with pytest.raises(ValueError, match="at least one micro-batch"):
        encode_in_micro_batches(Encoder(), [])
