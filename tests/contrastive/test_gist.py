"""GIST's loss against its definition and sentence-transformers' own, whole and in blocks."""

import math

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

import drrho.integrations  # noqa: F401 - before sentence-transformers imports torchvision
from drrho.contrastive.memory.temperature import Learned
from drrho.contrastive.objectives.gist import GIST, gist_anchor_losses
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles import strip
from tests.contrastive.conftest import draw_pairs

CONFIGS = {
    "published": GIST(),
    "margin": GIST(margin=0.2),
    "relative": GIST(margin=0.3, margin_strategy="relative"),
    "one kind": GIST(within=False),
    "both": GIST(directions="both", margin=0.05),
}


def plain_gist(target, guide, *, temperature, config=CONFIGS["published"]):
    """The definition, one anchor and one candidate at a time."""
    losses = []
    for anchor in (0, 1) if config.directions == "both" else (0,):
        ours, theirs = (target, guide) if anchor == 0 else (target[::-1], guide[::-1])
        kinds = [(0, 1), (0, 0), (1, 1)] if config.within else [(0, 1)]
        for i in range(len(ours[0])):
            own = theirs[0][i] @ theirs[1][i]
            factor = own.abs() if config.margin_strategy == "relative" else 1
            positive = ours[0][i] @ ours[1][i] / temperature
            passed = [
                ours[left][i] @ ours[right][j] / temperature
                for left, right in kinds
                for j in range(len(ours[0]))
                if j != i and theirs[left][i] @ theirs[right][j] <= own - config.margin * factor
            ]
            losses.append(torch.stack([positive, *passed]).logsumexp(dim=0) - positive)
    return torch.stack(losses).mean()


def value_and_gradients(function, pairs, *numbers):
    leaves = [e.clone().requires_grad_() for e in (*pairs, *numbers)]
    value = function(PairEmbeddings(*leaves[:2]), *leaves[2:])
    return value, *torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_cross_entropy_among_what_the_guide_lets_pass(name, in_blocks, monkeypatch):
    monkeypatch.setattr(strip, "CPU_TILE", 4)
    config, tau = CONFIGS[name], torch.tensor(0.2).double()
    target, guide = draw_pairs(11, 4, seed=0), draw_pairs(11, 3, seed=1)

    def ours(pairs, temperature):
        return gist_anchor_losses(
            pairs, guide, config, temperature=temperature, in_blocks=in_blocks
        ).mean()

    def plain(pairs, temperature):
        return plain_gist(pairs, guide, temperature=temperature, config=config)

    found, expected = (value_and_gradients(it, target, tau) for it in (ours, plain))
    assert_close(found, expected, rtol=1e-10, atol=1e-12)


class Embeds(torch.nn.Module):
    """A model as GISTEmbedLoss sees it: each feature is a side of the pairs."""

    def __init__(self, pairs):
        super().__init__()
        self.pairs = pairs

    def forward(self, features):
        return {"sentence_embedding": self.pairs[features["side"]]}


@pytest.mark.parametrize("name", ["published", "margin", "relative", "one kind"])
def test_it_is_the_gist_embed_loss_of_sentence_transformers(name):
    from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss  # noqa: PLC0415

    config = CONFIGS[name]
    target, guide = draw_pairs(13, 5, seed=2), draw_pairs(13, 4, seed=3)
    theirs = GISTEmbedLoss.__new__(GISTEmbedLoss)  # without tokenizers, which it asks for
    torch.nn.Module.__init__(theirs)
    theirs.guide, theirs.temperature, theirs.margin = Embeds(guide), 0.05, config.margin
    theirs.margin_strategy = config.margin_strategy
    theirs.contrast_anchors = theirs.contrast_positives = config.within
    theirs.gather_across_devices = theirs.must_retokenize = False
    theirs.similarity_fct = torch.nn.CosineSimilarity(dim=-1)
    theirs.cross_entropy_loss = torch.nn.CrossEntropyLoss()

    def expected(pairs):
        theirs.model = Embeds(pairs)
        return theirs([{"side": 0}, {"side": 1}], None)

    def ours(pairs):
        unit = PairEmbeddings(*(normalize(e, dim=-1) for e in pairs))
        losses = gist_anchor_losses(unit, guide, config, temperature=0.05)
        return losses.mean()

    found = [value_and_gradients(it, target) for it in (ours, expected)]
    assert_close(*found, rtol=1e-10, atol=1e-12)


def test_a_pair_without_a_guide_keeps_its_negatives():
    target, guide = draw_pairs(6, 4, seed=0), draw_pairs(6, 4, seed=1)
    absent = PairEmbeddings(torch.zeros(6, 4).double(), torch.zeros(6, 4).double())
    config = GIST(within=False, temperature=0.2)
    everything = ContrastiveObjective(config, num_samples=None)(target, absent).loss
    z = target.image @ target.text.T / 0.2
    assert_close(everything, (z.logsumexp(dim=1) - z.diagonal()).mean(), rtol=1e-6, atol=0)
    guided = ContrastiveObjective(config, num_samples=None)(target, guide).loss
    assert guided < everything


def test_a_guide_that_finds_all_alike_leaves_no_negative():
    target = draw_pairs(5, 4, seed=0)
    alike = PairEmbeddings(*torch.ones(2, 5, 1).double())
    losses = gist_anchor_losses(target, alike, GIST(margin=0.1), temperature=0.1)
    assert_close(losses, torch.zeros_like(losses))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -0.1}, "objective.margin must not be negative, got -0.1"),
        ({"margin": math.inf}, "objective.margin must"),
        ({"temperature": Learned(per_direction=True)}, "has no effect with objective.directions"),
    ],
)
def test_options_that_it_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        GIST(**options)


def test_there_are_no_kernels_for_it():
    with pytest.raises(ValueError, match=r"no kernels for GIST|needs Triton"):
        try:
            ContrastiveObjective(GIST(), num_samples=None, impl="triton")
        except RuntimeError as error:
            raise ValueError(str(error)) from error
