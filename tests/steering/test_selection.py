"""Selected: which risk's gradient each draw follows, what counts, and what it never does."""

import importlib.util
import itertools
import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import drrho.steering.selection
from drrho.risk import KL, CVaR
from drrho.steering.selection import (
    Selected,
    sample_uniformly,
    sample_with_replacement,
    sample_without_replacement,
    select_top_k,
    selection_scores,
)

SCORES = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, 1.5, -2.0])
NUM_DRAWS = 2500
STANDARD_ERRORS = 4.5  # chance of a false alarm for any other seed: 7e-6 per number compared


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def corrected(scores, k, *, generator, mask=None, temperature=1.0):
    return sample_without_replacement(
        scores, k, temperature=temperature, generator=generator, correction=True, mask=mask
    )


def uncorrected(scores, k, *, generator, mask=None, temperature=1.0):
    return sample_without_replacement(
        scores, k, temperature=temperature, generator=generator, correction=False, mask=mask
    )


def with_replacement(scores, k, *, generator, mask=None, temperature=1.0):
    return sample_with_replacement(
        scores, k, temperature=temperature, generator=generator, mask=mask
    )


def uniformly(scores, k, *, generator, mask=None):
    """Scores that are not finite are no concern of a draw that has no scores."""
    valid = scores.isfinite()
    mask = valid if mask is None else valid & mask
    return sample_uniformly(len(scores), k, generator=generator, mask=mask)


def top_k(scores, k, *, generator, mask=None):
    return select_top_k(scores, k, mask=mask)


SELECTORS = {
    "top k": top_k,
    "corrected": corrected,
    "uncorrected": uncorrected,
    "with replacement": with_replacement,
    "uniform": uniformly,
}


@pytest.fixture(params=SELECTORS.values(), ids=SELECTORS.keys())
def select(request):
    return request.param


def scattered(selection, num_candidates):
    """The weight of every candidate: what a sum over the selected is, as a sum over all."""
    weights = torch.zeros(num_candidates, dtype=torch.float64)
    return weights.index_add(0, selection.index, selection.weights.double())


def draws(select, scores, k, **options):
    """Shape (NUM_DRAWS, n): weights of all candidates in independent draws."""
    generator = seeded()
    rows = [
        scattered(select(scores, k, generator=generator, **options), len(scores))
        for _ in range(NUM_DRAWS)
    ]
    return torch.stack(rows)


def errors_of_the_mean(samples, expected):
    """How many standard errors the mean of the rows is from `expected`, the worst column."""
    standard_error = samples.std(dim=0) / math.sqrt(len(samples))
    return ((samples.mean(dim=0) - expected) / standard_error).abs().amax()


def expected_uncorrected(p, k):
    """Mean weights of k draws one after another, over all sequences of candidates."""
    weights = torch.zeros_like(p)
    for sequence in itertools.permutations(range(len(p)), k):
        chance, left = 1.0, 1.0
        for candidate in sequence:
            chance, left = chance * p[candidate] / left, left - p[candidate]
        weights[list(sequence)] += chance / k
    return weights


# The scores


def test_excess_is_taken_in_float32_and_carries_no_gradient():
    losses = torch.tensor([3.015625, 2.984375]).bfloat16().requires_grad_()
    reference = torch.tensor([3.001, 3.002], requires_grad=True)
    scores = selection_scores("excess", losses, reference)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    assert torch.equal(scores, losses.detach().float() - reference.detach())


def test_one_call_compares_the_kinds():
    losses, reference = torch.tensor([[1.0, 5.0], [4.0, 2.0]]), torch.tensor([[0.5, 6.0], [1.0, 3]])
    scores = {
        kind: selection_scores(kind, losses, reference)
        for kind in ("excess", "loss", "irreducible")
    }
    hardest_first = {kind: s.flatten().argsort(descending=True)[0] for kind, s in scores.items()}
    assert hardest_first == {"excess": 2, "loss": 1, "irreducible": 0}
    assert torch.equal(scores["loss"], losses)
    assert torch.equal(scores["loss"] + scores["irreducible"], scores["excess"])


def test_losses_that_a_kind_does_not_need_may_be_absent():
    losses, reference = torch.randn(3).half(), torch.randn(3).half()
    assert torch.equal(selection_scores("loss", losses), losses.float())
    assert torch.equal(selection_scores("irreducible", None, reference), -reference.float())


@pytest.mark.parametrize(
    ("kind", "given", "absent"),
    [
        ("excess", {"losses": torch.ones(2)}, "reference_losses"),
        ("excess", {"losses": None, "reference_losses": torch.ones(2)}, "losses"),
        ("loss", {"losses": None, "reference_losses": torch.ones(2)}, "losses"),
        ("irreducible", {"losses": torch.ones(2)}, "reference_losses"),
    ],
)
def test_losses_that_a_kind_needs_must_be_there(kind, given, absent):
    with pytest.raises(ValueError, match=f'^{absent} is None, but .* kind "{kind}"'):
        selection_scores(kind, **given)


# Top-k


@pytest.mark.parametrize("k", [1, 3, 6, 7])
def test_rho_loss_is_cvar_of_the_excess_loss(k):
    losses, reference = torch.randn(7), torch.randn(7)
    selection = select_top_k(selection_scores("excess", losses, reference), k)
    risk = CVaR(fraction=k / 7)(losses - reference)
    assert_close(scattered(selection, 7).float(), risk.weights)
    assert_close((selection.weights * (losses - reference)[selection.index]).sum(), risk.value)


def test_a_reference_without_losses_is_no_reference():
    """Hard mining is the CVaR of ordinary distributionally robust optimisation."""
    losses, no_losses = torch.randn(9), torch.zeros(9)
    excess, hardest = (selection_scores(kind, losses, no_losses) for kind in ("excess", "loss"))
    assert torch.equal(select_top_k(excess, 4).index, select_top_k(hardest, 4).index)
    weights = CVaR(fraction=4 / 9)(losses).weights
    assert_close(scattered(select_top_k(hardest, 4), 9).float(), weights)


def test_rho_1_is_cvar_over_the_tokens_that_count():
    losses, reference = torch.randn(3, 8), torch.randn(3, 8)
    mask = torch.arange(8) < torch.tensor([[8], [5], [2]])  # 15 tokens, the others padding
    losses[~mask] = math.nan
    scores = selection_scores("excess", losses, reference).flatten()
    selection = select_top_k(scores, 9, mask=mask.flatten())
    cvar = CVaR(fraction=9 / 15)
    risk = cvar((losses - reference).flatten(), base_measure=mask.flatten())
    assert_close(scattered(selection, 24).float(), risk.weights)
    assert (selection.weights * losses.flatten()[selection.index]).sum().isfinite()


def test_ties_have_the_total_weight_that_cvar_shares_among_them():
    scores = torch.tensor([2.0, 7.0, 2.0, 0.0, 2.0])
    weights = scattered(select_top_k(scores, 3), 5)
    shared = CVaR(fraction=3 / 5)(scores).weights.double()
    assert weights[1] == pytest.approx(1 / 3)
    assert weights[3] == 0
    assert_close(weights[scores == 2].sum(), shared[scores == 2].sum(), rtol=1e-6, atol=0)


def test_top_k_follows_a_permutation_of_the_candidates():
    order = torch.randperm(7, generator=seeded())
    plain, permuted = select_top_k(SCORES, 4), select_top_k(SCORES[order], 4)
    assert torch.equal(order[permuted.index], plain.index)


# Sampling: what a draw is on average


@pytest.mark.parametrize(
    ("select", "k", "temperature"),
    [
        (corrected, 2, 2.0),
        (corrected, 3, 1.0),
        (corrected, 6, 3.0),
        (with_replacement, 1, 2.0),
        (with_replacement, 10, 1.0),
    ],
)
def test_mean_gradient_is_that_of_the_kl_penalty(select, k, temperature):
    losses = SCORES.clone().requires_grad_()
    KL(temperature=temperature)(losses).value.backward()
    samples = draws(select, SCORES, k, temperature=temperature)
    assert errors_of_the_mean(samples, losses.grad.double()) < STANDARD_ERRORS


@pytest.mark.parametrize("select", [corrected, with_replacement])
def test_mean_gradient_with_a_mask_is_that_of_the_masked_risk(select):
    mask = torch.tensor([True, False, True, True, False, True, True])
    weights = KL(temperature=1.0)(SCORES, base_measure=mask).weights.double()
    samples = draws(select, SCORES, 3, mask=mask)
    assert not samples[:, ~mask].any()
    assert errors_of_the_mean(samples[:, mask], weights[mask]) < STANDARD_ERRORS


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_without_correction_the_mean_is_that_of_all_sequences_and_is_biased(temperature):
    scores = torch.tensor([0.0, 1.0, -0.5])
    p = (scores.double() / temperature).softmax(0)
    expected = expected_uncorrected(p, 2)
    samples = draws(uncorrected, scores, 2, temperature=temperature)
    assert errors_of_the_mean(samples, expected) < STANDARD_ERRORS
    assert errors_of_the_mean(samples, p) > 30
    assert ((expected - 1 / 3).abs() < (p - 1 / 3).abs()).all()  # towards the plain mean


def test_uniform_draws_weigh_all_positions_alike():
    samples = draws(uniformly, SCORES, 3)
    assert errors_of_the_mean(samples, torch.full((7,), 1 / 7)) < STANDARD_ERRORS


@pytest.mark.parametrize("select", [corrected, uncorrected, with_replacement])
def test_ties_are_drawn_alike(select):
    samples = draws(select, torch.full((4,), 3.0), 2)
    assert errors_of_the_mean(samples, torch.full((4,), 1 / 4)) < STANDARD_ERRORS


def test_draws_with_replacement_are_independent():
    """The variance of a mean of k independent draws is a k-th of that of one."""
    p = SCORES.double().softmax(0)
    samples = draws(with_replacement, SCORES, 10)
    assert errors_of_the_mean((samples - p).square(), p * (1 - p) / 10) < STANDARD_ERRORS


def test_many_draws_with_replacement_have_the_frequencies_of_the_softmax():
    p = (SCORES.double() / 0.5).softmax(0)
    frequencies = scattered(
        with_replacement(SCORES, 400_000, generator=seeded(), temperature=0.5), 7
    )
    standard_error = (p * (1 - p) / 400_000).sqrt()
    assert ((frequencies - p).abs() < STANDARD_ERRORS * standard_error).all()


def test_corrected_weights_vary_as_stated():
    k, p = 4, SCORES.double().softmax(0)
    samples = draws(corrected, SCORES, k)
    # Uncorrelated: the mean of the product is the product of the means.
    first, second = torch.triu_indices(7, 7, offset=1)
    products = (samples - p)[:, first] * (samples - p)[:, second]
    assert errors_of_the_mean(products, torch.zeros(len(first))) < STANDARD_ERRORS
    # The bound for any x, tried on three: all alike, one candidate alone, alternating.
    for x in torch.tensor([[1] * 7, [0, 0, 1, 0, 0, 0, 0], [1, -1, 1, -1, 1, -1, 1]]).double():
        assert (samples @ x).var() < (p * x.square()).sum() / (k - 1)
    # Something in common is free with replacement only; a dominant candidate, without.
    replaced = draws(with_replacement, SCORES, k)
    assert replaced.sum(dim=1).std() < 1e-6 < samples.sum(dim=1).std()
    dominated = SCORES.double() * 2
    tail = torch.tensor([1.0, 1, 0, 1, 1, 1, 1], dtype=torch.float64)  # all but the likeliest
    variances = [(draws(s, dominated, k) @ tail).var() for s in (corrected, with_replacement)]
    assert variances[0] < variances[1] / 2


# Sampling: exact cases and limits


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [1e-30, 0.1, 1.0, 1e30])
def test_all_candidates_kept_have_the_weights_of_the_kl_penalty(masked, temperature):
    mask = torch.tensor([True, False, True, True, False, True, True]) if masked else None
    selection = corrected(SCORES, 7, generator=seeded(), temperature=temperature, mask=mask)
    weights = KL(temperature=temperature)(SCORES, base_measure=mask).weights
    assert_close(scattered(selection, 7).float(), weights)


def test_small_temperatures_select_the_top_k():
    for k in (1, 4, 7):
        top = select_top_k(SCORES, k)
        sampled = uncorrected(SCORES, k, generator=seeded(), temperature=1e-30)
        assert torch.equal(sampled.index, top.index)
    once = with_replacement(SCORES, 20, generator=seeded(), temperature=1e-30)
    assert once.index.tolist() == [2] * 20


def test_large_temperatures_sample_uniformly():
    for seed in range(5):
        uniform = sample_uniformly(7, 3, generator=seeded(seed))
        sampled = uncorrected(SCORES, 3, generator=seeded(seed), temperature=1e30)
        assert torch.equal(sampled.index, uniform.index)
    p = torch.full((7,), 1 / 7, dtype=torch.float64)
    many = with_replacement(SCORES, 100_000, generator=seeded(), temperature=1e30)
    assert ((scattered(many, 7) - p).abs() < STANDARD_ERRORS * math.sqrt(1 / 7 / 100_000)).all()


def test_correction_changes_the_weights_and_not_the_draw():
    ours, theirs = (s(SCORES, 3, generator=seeded()) for s in (corrected, uncorrected))
    assert torch.equal(ours.index, theirs.index)
    assert not torch.equal(ours.weights, theirs.weights)


def test_no_candidate_comes_twice_without_replacement():
    for seed in range(20):
        for select in (corrected, uncorrected, uniformly):
            assert len(select(SCORES, 6, generator=seeded(seed)).index.unique()) == 6


def test_more_draws_than_candidates_with_replacement():
    selection = with_replacement(SCORES[:2], 5, generator=seeded())
    assert selection.index.shape == (5,)
    assert_close(selection.weights, torch.full((5,), 0.2))


@pytest.mark.parametrize("select", [corrected, uncorrected, with_replacement, uniformly])
def test_the_generator_decides_the_draw_and_moves_on(select):
    scores = torch.randn(1000)
    generator = seeded()
    first, second = (select(scores, 10, generator=generator).index for _ in range(2))
    global_state = torch.get_rng_state()
    again = select(scores, 10, generator=seeded()).index
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), global_state)


# What every selection promises


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_are_detached_and_in_float32_at_least(select, dtype):
    scores = SCORES.to(dtype).requires_grad_()
    selection = select(scores, 3, generator=seeded())
    assert isinstance(selection, Selected)
    assert selection.index.shape == selection.weights.shape == (3,)
    assert not selection.weights.requires_grad
    if select is not uniformly:  # it knows no scores
        assert selection.weights.dtype == torch.promote_types(dtype, torch.float32)


def test_masked_and_nonfinite_candidates_are_not_chosen(select):
    scores = torch.randn(12)
    scores[[1, 4, 6]] = torch.tensor([math.nan, math.inf, -math.inf])
    scores[8] = 100.0
    mask = torch.arange(12) != 8
    usable = {0, 2, 3, 5, 7, 9, 10, 11}
    for seed in range(30):
        for k in (1, 5, 8):
            selection = select(scores, k, generator=seeded(seed), mask=mask)
            assert set(selection.index.tolist()) <= usable
            assert (selection.weights > 0).all()


def test_masking_is_absence(select):
    """The noise differs, so sampling is compared where it has no choice: all that count."""
    mask = torch.tensor([True, False, True, True, False, True, True])
    selection = select(SCORES, 5, generator=seeded(), mask=mask)
    if select is not with_replacement:
        alone = select(SCORES[mask], 5, generator=seeded())
        positions = mask.nonzero().squeeze(1)
        expected = scattered(Selected(positions[alone.index], alone.weights), 7)
        assert_close(scattered(selection, 7), expected)
    assert mask[selection.index].all()


@pytest.mark.parametrize(("uniform", "candidate"), [(0.0, 2), (1 - 2**-53, 5)])
def test_the_ends_of_the_unit_interval_are_candidates_that_count(monkeypatch, uniform, candidate):
    """Both ends of the cumulative sum repeat a value: masked candidates add nothing to it."""
    mask = torch.tensor([False, False, True, False, True, True, False])
    monkeypatch.setattr(
        torch, "rand", lambda k, **_: torch.full((k,), uniform, dtype=torch.float64)
    )
    selection = with_replacement(SCORES, 2, generator=seeded(), mask=mask)
    assert selection.index.tolist() == [candidate] * 2
    assert selection.weights.tolist() == [0.5, 0.5]


def test_surplus_has_no_weight_and_a_loss_that_is_safe(select):
    scores = torch.tensor([math.nan, 0.3, math.inf, -0.2, 5.0])
    mask = torch.tensor([True, True, True, True, False])
    selection = select(scores, 4, generator=seeded(), mask=mask)
    losses = torch.where(mask, scores, math.nan).requires_grad_()
    loss = (selection.weights * losses[selection.index]).sum()
    loss.backward()
    assert loss.isfinite()
    assert losses.grad.isfinite().all()
    assert set(selection.index.tolist()) <= {1, 3}
    assert_close(selection.weights.sum(), torch.tensor(1.0))
    if select is not with_replacement:
        assert (selection.weights > 0).sum() == 2


def test_nothing_to_select_has_no_weight(select):
    for scores, mask in [
        (torch.full((4,), math.nan), None),
        (torch.zeros(4), torch.zeros(4, dtype=torch.bool)),
    ]:
        selection = select(scores, 3, generator=seeded(), mask=mask)
        assert selection.weights.tolist() == [0, 0, 0]
        assert selection.index.ge(0).all() and selection.index.lt(4).all()


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1.0, 1e3, 1e30])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e38])
def test_extreme_scores_have_ordinary_weights(scale, temperature):
    scores = scale * torch.randn(50).clamp(-3, 3)
    for seed, k in itertools.product(range(5), (1, 10, 49, 50)):
        for select in (corrected, uncorrected, with_replacement):
            selection = select(scores, k, generator=seeded(seed), temperature=temperature)
            assert (selection.weights >= 0).all()
            assert selection.weights.isfinite().all()
            assert selection.weights.sum() > 0


class NoWaiting(TorchDispatchMode):
    """Raises at every operator whose result the host has to wait for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "masked_select", "equal"}, name
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device(select):
    mask = torch.arange(7) > 1
    with NoWaiting():
        scores = selection_scores("excess", SCORES, torch.zeros(7))
        select(scores, 3, generator=seeded(), mask=mask)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        select(scores, 3, generator=seeded()).weights.sum().item()


# Errors at the border


@pytest.mark.parametrize("k", [0, -1, 8])
@pytest.mark.parametrize("select", [top_k, corrected, uncorrected, uniformly])
def test_k_is_at_most_the_number_of_candidates(select, k):
    with pytest.raises(ValueError, match=rf"k must be between 1 and .* 7, got {k}; .*replacement"):
        select(SCORES, k, generator=seeded())


def test_k_is_at_least_one_with_replacement():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        with_replacement(SCORES, 0, generator=seeded())


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("select", [corrected, uncorrected, with_replacement])
def test_temperature_is_positive_and_finite(select, temperature):
    message = f"temperature .* got {temperature}; .*select_top_k at zero, and sample_uniformly"
    with pytest.raises(ValueError, match=message):
        select(SCORES, 3, generator=seeded(), temperature=temperature)


def test_there_must_be_candidates(select):
    with pytest.raises(ValueError, match=r"not empty, got shape \(0,\)"):
        select(torch.zeros(0), 1, generator=seeded())


@pytest.fixture(scope="module")
def unhooked():
    """The module as users import it, where shapes and types are checked by its own errors."""
    spec = importlib.util.spec_from_file_location(
        "unhooked_selection", drrho.steering.selection.__file__
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scores_that_do_not_fit_are_errors(unhooked):
    with pytest.raises(ValueError, match=r"one dimension .* got shape \(2, 3\); flatten\(\)"):
        unhooked.select_top_k(torch.zeros(2, 3), 1)
    with pytest.raises(TypeError, match="scores must be floating point, got torch.int64"):
        unhooked.select_top_k(torch.arange(3), 1)
    with pytest.raises(
        ValueError, match="kind must be one of excess, loss, irreducible, got 'rho'"
    ):
        unhooked.selection_scores("rho", torch.zeros(2), torch.zeros(2))


def test_masks_that_do_not_fit_are_errors(unhooked):
    with pytest.raises(ValueError, match=r"mask .* shape \(3,\); got torch.bool of shape \(4,\)"):
        unhooked.select_top_k(torch.zeros(3), 1, mask=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be bool, .* got torch.int64 of shape \(3,\)"):
        unhooked.sample_uniformly(3, 1, generator=seeded(), mask=torch.ones(3, dtype=torch.int64))
