"""RHO top-k of pairs: a pair's loss is its part of the batch's, and the largest are taken."""

import math

import pytest
import torch
from torch.testing import assert_close

from drrho.contrastive.exact import clip_loss
from drrho.contrastive.objectives.siglip import siglip_anchor_losses
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.selection.jest import JestConfig, select_jointly
from drrho.contrastive.selection.rho import RhoConfig, select_by_excess
from drrho.contrastive.selection.super_batch import ModelPairs
from drrho.risk import CVaR
from tests.contrastive.conftest import draw_pairs

LOSSES = ("softmax", "sigmoid")
KINDS = ("excess", "loss", "irreducible")
NUM_PAIRS = 24


def models(loss, kind="excess"):
    of_learner, of_reference = (-2.0, -1.0) if loss == "sigmoid" else (None, None)
    learner = ModelPairs(draw_pairs(NUM_PAIRS, 6, 0, torch.float64), 0.3, of_learner)
    reference = ModelPairs(draw_pairs(NUM_PAIRS, 4, 1, torch.float64), 0.2, of_reference)
    return None if kind == "irreducible" else learner, None if kind == "loss" else reference


def pair_losses(model):
    """By the matrix of all pairs, in both directions."""
    z = model.pairs.image @ model.pairs.text.T / model.temperature
    if model.bias is None:
        return -(z.log_softmax(dim=1).diagonal() + z.log_softmax(dim=0).diagonal()) / 2
    signs = 2 * torch.eye(len(z), dtype=z.dtype) - 1
    binary = -torch.nn.functional.logsigmoid(signs * (z + model.bias))
    return (binary.sum(dim=0) + binary.sum(dim=1)) / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_largest_scores_are_those_of_the_matrix(loss, kind):
    learner, reference = models(loss, kind)
    expected = torch.zeros(NUM_PAIRS, dtype=torch.float64)
    expected += 0 if learner is None else pair_losses(learner)
    expected -= 0 if reference is None else pair_losses(reference)
    config = RhoConfig(batch_size=7, kind=kind, loss=loss)
    found = select_by_excess(learner, reference, config=config)
    assert found.index.tolist() == expected.topk(7).indices.tolist()
    assert found.own.tolist() == sorted(found.index.tolist())
    assert_close(found.scores, expected.topk(7).values, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_pairs_average_to_the_loss_of_the_batch(loss):
    learner, _ = models(loss, "loss")
    config = RhoConfig(batch_size=NUM_PAIRS, kind="loss", loss=loss)
    tau = torch.tensor(0.3, dtype=torch.float64)
    if loss == "softmax":
        of_batch = clip_loss(learner.pairs, temperature=tau)
    else:
        of_batch = siglip_anchor_losses(
            learner.pairs, temperature=tau, bias=torch.tensor(-2.0, dtype=torch.float64)
        ).mean()
    assert_close(select_by_excess(learner, None, config=config).scores.mean(), of_batch)


def test_the_mean_score_is_cvar_of_the_excess():
    learner, reference = models("softmax")
    found = select_by_excess(learner, reference, config=RhoConfig(batch_size=6))
    excess = pair_losses(learner) - pair_losses(reference)
    assert_close(found.scores.mean(), CVaR(fraction=6 / NUM_PAIRS)(excess).value)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_pair_that_is_not_finite_is_neither_selected_nor_a_negative(loss):
    learner, reference = models(loss)
    good = torch.tensor([row for row in range(NUM_PAIRS) if row not in (3, 17)])
    without = [
        model._replace(pairs=PairEmbeddings(*(e[good] for e in model.pairs)))
        for model in (learner, reference)
    ]
    expected = select_by_excess(*without, config=RhoConfig(batch_size=22, loss=loss))
    learner.pairs.image[3, 0] = math.nan
    reference.pairs.text[17, 1] = math.inf
    found = select_by_excess(learner, reference, config=RhoConfig(batch_size=22, loss=loss))
    assert found.index.tolist() == good[expected.index].tolist()
    assert_close(found.scores, expected.scores)
    with pytest.raises(ValueError, match="batch_size is 23, but only 22 of the 24"):
        select_by_excess(learner, reference, config=RhoConfig(batch_size=23, loss=loss))


def test_nothing_has_a_gradient_and_half_precision_is_used_as_float32_numbers():
    learner, reference = (
        m._replace(pairs=PairEmbeddings(*(e.half().requires_grad_() for e in m.pairs)))
        for m in models("softmax")
    )
    wide = [
        m._replace(pairs=PairEmbeddings(*(e.detach().float() for e in m.pairs)))
        for m in (learner, reference)
    ]
    config = RhoConfig(batch_size=5)
    found = select_by_excess(learner, reference, config=config)
    assert found.scores.dtype == torch.float32
    assert not found.scores.requires_grad
    assert_close(found, select_by_excess(*wide, config=config))


def test_jest_given_all_pairs_but_one_scores_the_last_as_rho_does():
    learner, _ = models("softmax", "loss")
    jest = JestConfig(batch_size=NUM_PAIRS, num_chunks=NUM_PAIRS, selection="top_k", kind="loss")
    generator = torch.Generator().manual_seed(0)
    drawn = select_jointly(learner, None, config=jest, generator=generator)
    config = RhoConfig(batch_size=NUM_PAIRS, kind="loss")
    found = select_by_excess(learner, None, config=config)
    last = int(drawn.index[-1])
    assert_close(drawn.scores[-1], found.scores[found.index.tolist().index(last)])


def test_choices_that_do_not_fit_are_refused():
    learner, reference = models("softmax")
    with pytest.raises(ValueError, match="reference has no effect"):
        select_by_excess(learner, reference, config=RhoConfig(batch_size=3, kind="loss"))
    with pytest.raises(ValueError, match="bias of the learner"):
        select_by_excess(learner, reference, config=RhoConfig(batch_size=3, loss="sigmoid"))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        RhoConfig(batch_size=0)
