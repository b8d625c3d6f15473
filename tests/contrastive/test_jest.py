"""Joint selection against matrices of all pairs, and what no draw may ever do."""

import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.selection import jest
from drrho.contrastive.selection.jest import JestConfig, ModelPairs, select_jointly
from drrho.steering.selection import sample_uniformly, sample_without_replacement
from tests.contrastive.conftest import draw_pairs

LOSSES = ("softmax", "sigmoid")
KINDS = ("excess", "loss", "irreducible")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def view(pairs, loss, temperature=0.3, bias=-2.0):
    return ModelPairs(pairs, temperature, bias if loss == "sigmoid" else None)


def models(loss, num_pairs=24, *, kind="excess", dtype=torch.float64):
    """Learner and reference, each with its own dimension, temperature and bias."""
    learner = view(draw_pairs(num_pairs, 6, 0, dtype), loss)
    reference = view(draw_pairs(num_pairs, 4, 1, dtype), loss, temperature=0.2, bias=-1.0)
    return (None if kind == "irreducible" else learner, None if kind == "loss" else reference)


def select(learner, reference, *, seed=0, **options):
    config = JestConfig(**options)
    return select_jointly(learner, reference, config=config, generator=seeded(seed))


def plain_loss(model, candidate, drawn):
    """The candidate's part of the loss of the batch {candidate} + drawn, which is formed."""
    rows = [candidate, *drawn]
    s = model.pairs.image[rows] @ model.pairs.text[rows].T / model.temperature
    if model.bias is None:
        return -(s.log_softmax(dim=1)[0, 0] + s.log_softmax(dim=0)[0, 0]) / 2
    signs = 2 * torch.eye(len(rows), dtype=s.dtype) - 1
    binary = -torch.nn.functional.logsigmoid(signs * (s + model.bias))
    return binary[0].sum() + binary[1:, 0].sum()


def plain_scores(learner, reference, drawn):
    num_pairs = len((learner or reference).pairs.image)
    scores = torch.zeros(num_pairs, dtype=torch.float64)
    for c in set(range(num_pairs)) - set(drawn):
        for model, sign in ((learner, 1), (reference, -1)):
            if model is not None:
                scores[c] += sign * plain_loss(model, c, drawn)
    return scores


@pytest.mark.parametrize("tile", [5, 1024])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_largest_scores_are_those_of_matrices(loss, kind, tile, monkeypatch):
    monkeypatch.setattr(jest, "tile_size", lambda device, dtype: tile)
    learner, reference = models(loss, kind=kind)
    found = select(
        learner,
        reference,
        batch_size=20,
        num_chunks=3,
        selection="top_k",
        kind=kind,
        loss=loss,
    )
    drawn = []
    for chunk, scores in zip(
        found.index.split([6, 7, 7]), found.scores.split([6, 7, 7]), strict=True
    ):
        expected = plain_scores(learner, reference, drawn)
        assert_close(scores, expected[chunk], rtol=1e-11, atol=1e-11)
        if drawn or loss == "sigmoid":  # the first draw of the softmax loss is uniform
            expected[drawn] = -math.inf
            assert chunk.tolist() == expected.topk(len(chunk)).indices.tolist()
        drawn += chunk.tolist()


@pytest.mark.parametrize("loss", LOSSES)
def test_samples_have_the_scores_of_matrices(loss):
    learner, reference = models(loss)
    found = select(learner, reference, batch_size=18, num_chunks=4, loss=loss)
    drawn = []
    for chunk, scores in zip(
        found.index.split([4, 5, 4, 5]), found.scores.split([4, 5, 4, 5]), strict=True
    ):
        expected = plain_scores(learner, reference, drawn)[chunk]
        assert_close(scores, expected, rtol=1e-11, atol=1e-11)
        drawn += chunk.tolist()


@pytest.mark.parametrize("selection", ["sample", "top_k"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("batch_size", "num_chunks"), [(24, 5), (23, 23), (7, 3), (2, 2)])
def test_a_batch_has_its_size_and_no_pair_twice(loss, selection, batch_size, num_chunks):
    config = JestConfig(
        batch_size=batch_size, num_chunks=num_chunks, selection=selection, loss=loss
    )
    assert sum(config.chunk_sizes) == batch_size
    assert max(config.chunk_sizes) - min(config.chunk_sizes) <= 1
    found = select_jointly(*models(loss), config=config, generator=seeded())
    assert len(found.index) == len(found.scores) == batch_size
    assert found.own.tolist() == sorted(set(found.index.tolist()))
    assert len(found.own) == batch_size
    assert found.own[0] >= 0 and found.own[-1] < 24


@pytest.mark.parametrize("loss", LOSSES)
def test_a_learner_that_is_its_reference_learns_from_any_pair(loss):
    learner, _ = models(loss)
    found = select(learner, learner, batch_size=10, num_chunks=4, loss=loss)
    assert found.scores.count_nonzero() == 0

    generator, free = seeded(), torch.ones(24, dtype=torch.bool)
    for chunk in found.index.split([2, 3, 2, 3]):
        uniform = sample_uniformly(24, len(chunk), generator=generator, mask=free).index
        assert chunk.tolist() == uniform.tolist()
        free[chunk] = False


def test_the_first_chunk_of_top_k_is_uniform_with_the_softmax_loss():
    options = {"batch_size": 8, "num_chunks": 2, "selection": "top_k"}
    first = [set(select(*models("softmax"), seed=s, **options).index[:4].tolist()) for s in (0, 1)]
    assert first[0] != first[1]
    uniform = sample_uniformly(24, 4, generator=seeded()).index
    assert first[0] == set(uniform.tolist())


@pytest.mark.parametrize("loss", LOSSES)
def test_images_and_texts_are_alike(loss):
    swapped = [m._replace(pairs=PairEmbeddings(*reversed(m.pairs))) for m in models(loss)]
    options = {"batch_size": 12, "num_chunks": 4, "loss": loss}
    ours, theirs = select(*models(loss), **options), select(*swapped, **options)
    assert ours.index.tolist() == theirs.index.tolist()
    assert_close(ours.scores, theirs.scores)


def test_the_order_of_the_candidates_does_not_matter():
    order = torch.randperm(24, generator=seeded())
    shuffled = [
        m._replace(pairs=PairEmbeddings(*(e[order] for e in m.pairs))) for m in models("sigmoid")
    ]
    options = {"batch_size": 12, "num_chunks": 4, "selection": "top_k", "loss": "sigmoid"}
    found = select(*shuffled, **options)
    assert order[found.index].tolist() == select(*models("sigmoid"), **options).index.tolist()


def test_a_reference_that_sees_no_difference_changes_no_choice():
    """At a high temperature its loss is log(1 + pairs drawn), of every candidate."""
    learner, reference = models("softmax")
    options = {"batch_size": 12, "num_chunks": 3, "selection": "top_k"}
    blind = select(learner, reference._replace(temperature=1e12), **options)
    alone = select(learner, None, kind="loss", **options)
    assert blind.index.tolist() == alone.index.tolist()
    constants = torch.tensor([1.0, 5.0, 9.0]).double().log().repeat_interleave(4)
    assert_close(alone.scores - blind.scores, constants)
    # At its own it does change them.
    assert select(learner, reference, **options).index.tolist() != alone.index.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_used_as_float32_numbers(loss, dtype):
    narrow = models(loss, dtype=dtype)
    wide = [m._replace(pairs=PairEmbeddings(*(e.float() for e in m.pairs))) for m in narrow]
    options = {"batch_size": 12, "num_chunks": 4, "loss": loss}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = select(*narrow, **options)
    theirs = select(*wide, **options)
    assert ours.scores.dtype == torch.float32
    assert ours.index.tolist() == theirs.index.tolist()
    assert torch.equal(ours.scores, theirs.scores)


def test_nothing_has_a_gradient():
    learner, reference = models("softmax")
    leaves = PairEmbeddings(*(e.clone().requires_grad_() for e in learner.pairs))
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    found = select(ModelPairs(leaves, tau), reference, batch_size=12, num_chunks=4)
    assert not found.scores.requires_grad
    assert_close(found, select(learner, reference, batch_size=12, num_chunks=4))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("selection", ["sample", "top_k"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_candidate_that_is_not_finite_is_never_drawn(loss, selection, value):
    learner, reference = models(loss)
    # Similarities of plus or minus infinity, at which a loss can be a finite number.
    for model, row in ((learner, 3), (learner, 4), (reference, 17)):
        model.pairs.image[row, 0] = value * model.pairs.text[row, 0].sign()
    options = {"num_chunks": 4, "selection": selection, "loss": loss}
    found = select(learner, reference, batch_size=21, **options)
    assert found.own.tolist() == sorted(set(range(24)) - {3, 4, 17})
    assert found.scores.isfinite().all()
    with pytest.raises(ValueError, match="batch_size is 22, but only 21 of the 24 candidates"):
        select(learner, reference, batch_size=22, **options)


def test_a_batch_is_no_larger_than_its_super_batch():
    with pytest.raises(ValueError, match="batch_size is 25, but only 24 of the 24"):
        select(*models("sigmoid"), batch_size=25, num_chunks=1, loss="sigmoid")


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("loss", LOSSES)
def test_no_matrix_of_all_pairs_is_formed(loss):
    num_pairs, dim = 2**16, 8  # 17 GB
    learner, reference = (
        view(draw_pairs(num_pairs, dim, seed, torch.float32), loss) for seed in (0, 1)
    )
    with LargestTensor() as largest:
        found = select(learner, reference, batch_size=64, loss=loss)
    assert len(found.own) == 64
    assert largest.numel <= num_pairs * dim


def test_a_tile_bounds_what_a_large_chunk_takes(monkeypatch):
    monkeypatch.setattr(jest, "tile_size", lambda device, dtype: 64)
    with LargestTensor() as largest:
        select(*models("softmax", num_pairs=1000), batch_size=1000, num_chunks=2)
    assert largest.numel <= 1000 * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 4}, "num_chunks must be between 1 and batch_size, 4, .* got 16"),
        ({"batch_size": 4, "num_chunks": 0}, "num_chunks must be between 1 and .* got 0"),
        ({"batch_size": 4, "num_chunks": 1}, "num_chunks = 1 draws uniformly"),
    ],
)
def test_config_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        JestConfig(**options)


@pytest.mark.parametrize(
    ("loss", "kind", "change", "message"),
    [
        ("softmax", "excess", {"learner": None}, "learner is None"),
        ("softmax", "excess", {"reference": None}, "reference is None, .* kind 'excess'"),
        ("softmax", "loss", {}, "reference has no effect on scores of kind 'loss'"),
        ("softmax", "irreducible", {}, "learner has no effect on scores of kind 'irreducible'"),
        ("softmax", "excess", {"bias": -1.0}, "bias of the learner is -1.0, which has no effect"),
        ("sigmoid", "excess", {"bias": None}, "bias of the learner must be a finite number"),
        ("softmax", "excess", {"temperature": 0.0}, "temperature of the learner must be positive"),
        ("softmax", "excess", {"pairs": draw_pairs(23, 6, 0)}, "one row for each pair, got 23"),
    ],
)
def test_models_that_do_not_fit(loss, kind, change, message):
    learner, reference = models(loss)
    given = {"learner": learner, "reference": reference}
    of_learner = {name: value for name, value in change.items() if name not in given}
    given["learner"] = learner._replace(**of_learner)
    given |= {name: value for name, value in change.items() if name in given}
    with pytest.raises(ValueError, match=message):
        select(
            given["learner"], given["reference"], batch_size=8, num_chunks=2, kind=kind, loss=loss
        )


def published_losses(model, drawn):
    """Of all candidates, from matrices: -z_cc plus the mean of both sums over the pairs drawn."""
    z = model.pairs.image @ model.pairs.text.T / model.temperature
    losses = -z.diagonal()
    if drawn:
        losses = losses + (z[:, drawn].logsumexp(dim=1) + z[drawn].logsumexp(dim=0)) / 2
    return losses


def published_weights(learner, reference, drawn):
    """Logarithms of the weights of the next draw; of those drawn, minus infinity."""
    scores = published_losses(learner, drawn) - published_losses(reference, drawn)
    if not drawn:
        return (scores - scores.min()).log()
    scores[drawn] = -math.inf
    return scores


@pytest.mark.parametrize("selection", ["sample", "top_k"])
def test_the_published_form_draws_what_the_formula_draws_with_equal_noise(selection):
    learner, reference = models("softmax")
    found = select(
        learner, reference, batch_size=12, num_chunks=2, selection=selection, score="published"
    )
    generator = seeded()
    drawn = []
    for chunk in range(2):
        weights = published_weights(learner, reference, drawn)
        if chunk and selection == "top_k":
            drawn = drawn + weights.topk(6).indices.tolist()
        else:
            drawn = (
                drawn
                + sample_without_replacement(
                    weights.clamp_min(-1e3),
                    6,
                    temperature=1.0,
                    generator=generator,
                    correction=False,
                    mask=weights > -math.inf if drawn else None,
                ).index.tolist()
            )
    assert found.index.tolist() == drawn


def test_published_scores_do_not_overflow_at_a_scale_of_a_hundred():
    """exp(100) is beyond float32: in the published code such a draw is an error."""
    image, _ = draw_pairs(24, 6, 0, torch.float32)
    learner = ModelPairs(PairEmbeddings(image, -image), 0.01)
    _, reference = models("softmax", dtype=torch.float32)
    found = select(learner, reference, batch_size=12, num_chunks=3, score="published")
    assert found.scores.max() > 89
    assert found.scores.isfinite().all()
    assert len(set(found.index.tolist())) == 12


def test_learned_pairs_score_zero_in_the_contrastive_form_alone():
    """The candidate's own term, far above those of the pairs drawn, hides them."""
    image, _ = draw_pairs(64, 16, 0)
    aligned = PairEmbeddings(image, image)
    largest = {}
    for score in ("contrastive", "published"):
        found = select(
            ModelPairs(aligned, 0.05),
            ModelPairs(aligned, 0.06),
            batch_size=8,
            num_chunks=2,
            selection="top_k",
            score=score,
        )
        largest[score] = float(found.scores[4:].abs().max())
    assert largest["contrastive"] < 0.01
    assert largest["published"] > 1
