"""Run by tests/test_unhooked.py without the suite's type checks, as users run it; also what takes
thousands of small steps, of which the checks would be most of the time."""

import itertools
import math

import pytest
import torch

import drrho
from drrho.contrastive import exact
from drrho.contrastive.memory.temperature import PerSample
from drrho.contrastive.objectives import distillation, siglip
from drrho.contrastive.objectives.global_risk import GlobalContrastiveLoss
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.selection import jest
from drrho.contrastive.tiles import log_sums
from drrho.integrations.pairs import SteeredPairs
from drrho.recipe.named.published import named_recipe
from tests.contrastive.conftest import draw_pairs
from tests.contrastive.test_jest import LOSSES, models, plain_scores, published_weights, seeded


def test_an_unknown_algorithm_is_told_the_known_ones():
    with pytest.raises(ValueError, match="'clip'; there are openclip, .*drrho_clip"):
        named_recipe("clip")


def test_an_unknown_implementation_is_told_the_known_ones():
    with pytest.raises(ValueError, match="impl must be one of auto, exact, tiles, triton, got 'c'"):
        GlobalContrastiveLoss(5, epsilon=1e-4, impl="c")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: PerSample(rule="Adam"), "temperature.rule"),  # pyright: ignore[reportArgumentType]
        (lambda: drrho.FastCLIP(gamma_schedule="no"), "objective.gamma_schedule"),  # pyright: ignore[reportArgumentType]
        (lambda: jest.JestConfig(batch_size=4, num_chunks=2, selection="best"), "selection"),  # pyright: ignore[reportArgumentType]
        (lambda: jest.JestConfig(batch_size=4, num_chunks=2, score="other"), "score"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_an_unknown_rule_or_schedule_is_told_the_known_ones(make, field):
    with pytest.raises(ValueError, match=f"{field} must be one of"):
        make()


def test_a_temperature_that_is_none_is_refused_by_distillation_too():
    made = distillation.Distillation(temperature=0.5, teacher_temperatures=(0.1,))
    assert made.temperature.initial == 0.5
    with pytest.raises((TypeError, ValueError), match="temperature"):
        distillation.Distillation(temperature="warm", teacher_temperatures=(0.1,))  # pyright: ignore[reportArgumentType]


def test_the_models_rate_does_not_wait_for_a_temperature():
    with pytest.raises(TypeError, match="schedule must be CosineDecay.*got ThresholdDecay"):
        drrho.Optimizer(schedule=drrho.ThresholdDecay())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("ids", [[0, 1], torch.tensor([0.0, 1.0]), torch.tensor([True, False])])
def test_sample_ids_are_whole_numbers(ids):
    loss = drrho.FastCLIPLoss(10)
    with pytest.raises(ValueError, match="sample_ids must be a tensor of int64 or int32"):
        loss(torch.eye(2), torch.eye(2), sample_ids=ids, gamma=0.5)


@pytest.mark.parametrize("wrong", ["0.01", torch.tensor(0.01), None])
def test_a_temperature_is_a_number_or_one_of_three_classes(wrong):
    with pytest.raises(TypeError, match="temperature must be a number, Constant, Learned or"):
        drrho.DRRhoCLIPLoss(temperature=wrong)


@pytest.mark.parametrize("wrong", [drrho.DRRhoCLIP, drrho.CLIPLoss(), "clip"])
def test_an_objective_is_one_of_six(wrong):
    with pytest.raises(TypeError, match=r"objective must be one of CLIP\(...\)"):
        drrho.Recipe(output="runs/mine", data="data", model=drrho.Model("small"), objective=wrong)


@pytest.mark.parametrize("wrong", [drrho.CVaR, 0.25])
def test_a_risk_is_made_before_it_is_used(wrong):
    with pytest.raises(TypeError, match="risk must be a risk such as CVaR"):
        drrho.DRRhoLoss(wrong)


def unit(rows=4, dim=3):
    draws = torch.randn(2, rows, dim, generator=torch.Generator().manual_seed(0))
    return PairEmbeddings(*torch.nn.functional.normalize(draws, dim=-1))


@pytest.mark.parametrize("config", [drrho.CLIP(), drrho.SigLIP(), drrho.FastCLIP()])
def test_embeddings_of_another_length_are_an_error(config):
    pairs = unit()
    objective = ContrastiveObjective(config, num_samples=None)
    objective(pairs)
    with pytest.raises(ValueError, match="target text embeddings must have unit length, got 3 to"):
        objective(PairEmbeddings(pairs.image, 3 * pairs.text))


def test_reference_and_teachers_have_unit_length_too():
    pairs, longer = unit(), PairEmbeddings(*(2 * e for e in unit()))
    with pytest.raises(ValueError, match="reference image embeddings must have unit length"):
        ContrastiveObjective(drrho.DRRhoCLIP(), num_samples=None)(pairs, longer)
    distillation = drrho.Distillation(teacher_temperatures=(0.1,))
    with pytest.raises(ValueError, match="teacher 0 image embeddings must have unit length"):
        ContrastiveObjective(distillation, num_samples=None)(pairs, teachers=[longer])
    absent = PairEmbeddings(*(e * torch.tensor([[1.0], [1.0], [1.0], [0.0]]) for e in pairs))
    with pytest.raises(ValueError, match="teacher 0 image embeddings must have unit length, got 0"):
        ContrastiveObjective(distillation, num_samples=None)(pairs, teachers=[absent])
    ContrastiveObjective(drrho.DRRhoCLIP(), num_samples=None)(pairs, absent)  # its plain loss


@pytest.mark.parametrize("wrong", [14.0, 0.0, -0.1, float("nan")])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_temperature_is_no_logit_scale_and_positive(wrong, kind):
    loss = GlobalContrastiveLoss(None, epsilon=1e-4)
    options = {"sample_ids": None, "gamma": 1.0}
    expected = loss(unit(), temperature=torch.tensor(0.07), **options)
    assert loss(unit(), temperature=0.07, **options) == expected
    with pytest.raises(ValueError, match=r"temperature (= 14\.0: .*logit scale|must be positive)"):
        loss(unit(), temperature=kind(wrong), **options)


def test_every_loss_takes_a_temperature_as_a_number():
    pairs, tau, bias = unit(), torch.tensor(0.1), torch.tensor(-1.0)
    teachers = [distillation.Teacher(pairs, 0.2)]
    for function, options in (
        (exact.log_gap_means, {}),
        (exact.clip_loss, {}),
        (exact.global_contrastive_risk, {"epsilon": 1e-4}),
        (log_sums.tiled_log_gap_means, {}),
        (siglip.siglip_anchor_losses, {"bias": bias}),
        (siglip.tiled_siglip_anchor_losses, {"bias": bias}),
        (distillation.distillation_anchor_losses, {"teachers": teachers}),
        (distillation.tiled_distillation_anchor_losses, {"teachers": teachers}),
    ):
        expected = function(pairs, temperature=tau, **options)
        assert torch.equal(function(pairs, temperature=0.1, **options), expected)
        with pytest.raises(ValueError, match="logit scale"):
            function(pairs, temperature=14, **options)


@pytest.mark.parametrize("wrong", ["reference", 3, unit().image, tuple(unit())])
def test_what_is_no_reference_is_refused_where_a_host_is_prepared(wrong):
    with pytest.raises(TypeError, match=r"stored embeddings, as drrho.open_reference\(folder"):
        SteeredPairs(drrho.DRRhoCLIP(), num_samples=4, reference=wrong)
    with pytest.raises(ValueError, match="reference image embeddings must have unit length"):
        SteeredPairs(
            drrho.DRRhoCLIP(),
            num_samples=4,
            reference=PairEmbeddings(*(2 * e for e in unit())),
        )


def test_shapes_and_types_of_plain_tensors_are_checked():
    pairs, loss = unit(), drrho.FastCLIPLoss(10)
    with pytest.raises(ValueError, match=r"one for each of the 4 pairs, got shape \(3,\)"):
        loss(*pairs, sample_ids=torch.arange(3), gamma=0.5)
    for wrong in (pairs.image[0], pairs.image.long()):
        with pytest.raises(ValueError, match=r"image embeddings must be \(pairs, dimension\) of a"):
            drrho.CLIPLoss()(wrong, pairs.text)


@pytest.mark.parametrize("loss", LOSSES)
def test_batches_are_as_frequent_as_they_should_be(loss):
    """Every ordered draw of 3 of 4, in chunks of 1 and 2, against its exact probability."""
    num_pairs, num_draws = 4, 600
    # Temperatures at which the rarest is still seen.
    learner, reference = (
        m._replace(temperature=t) for m, t in zip(models(loss, num_pairs), (0.8, 0.5), strict=True)
    )
    expected = {}
    first_p = plain_scores(learner, reference, []).softmax(dim=0)
    for first in range(num_pairs):
        scores = plain_scores(learner, reference, [first])
        scores[first] = -math.inf
        p = scores.softmax(dim=0)
        for second, third in itertools.permutations(set(range(num_pairs)) - {first}, 2):
            expected[first, second, third] = float(first_p[first] * p[second] * p[third])
            expected[first, second, third] /= float(1 - p[second])
    assert sum(expected.values()) == pytest.approx(1)
    # Far enough from uniform for the test to see a wrong score.
    assert max(expected.values()) > 5 * min(expected.values())

    config = jest.JestConfig(batch_size=3, num_chunks=2, loss=loss)
    generator = seeded()
    counts = dict.fromkeys(expected, 0)
    for _ in range(num_draws):
        found = jest.select_jointly(learner, reference, config=config, generator=generator)
        counts[tuple(found.index.tolist())] += 1
    chi_square = sum(
        (counts[d] - num_draws * p) ** 2 / (num_draws * p) for d, p in expected.items()
    )
    degrees = len(expected) - 1
    assert chi_square < degrees + 4.5 * math.sqrt(2 * degrees)


def test_published_draws_of_eight_are_as_frequent_as_they_should_be():
    """Every set of 2 and then 1 of 8 candidates, against its exact probability."""
    num_pairs, num_draws = 8, 1500
    learner, reference = (
        m._replace(temperature=t)
        for m, t in zip(models("softmax", num_pairs), (0.8, 0.5), strict=True)
    )
    linear = published_weights(learner, reference, []).exp()
    p = linear / linear.sum()
    expected = {}
    for first, second in itertools.combinations(range(num_pairs), 2):
        both = p[first] * p[second] * (1 / (1 - p[first]) + 1 / (1 - p[second]))
        conditional = published_weights(learner, reference, [first, second]).softmax(dim=0)
        for third in set(range(num_pairs)) - {first, second}:
            expected[first, second, third] = float(both * conditional[third])
    assert sum(expected.values()) == pytest.approx(1)

    generator = seeded()
    counts = dict.fromkeys(expected, 0)
    config = jest.JestConfig(batch_size=4, num_chunks=2, score="published")
    for _ in range(num_draws):
        index = jest.select_jointly(learner, reference, config=config, generator=generator).index
        *pair, third, _ = index.tolist()
        counts[(*sorted(pair), third)] += 1
    seen = [d for d, probability in expected.items() if num_draws * probability >= 5]
    rest = num_draws - sum(counts[d] for d in seen)
    numbers = [num_draws * expected[d] for d in seen]
    chi_square = sum((counts[d] - e) ** 2 / e for d, e in zip(seen, numbers, strict=True))
    left = num_draws - sum(numbers)
    chi_square += (rest - left) ** 2 / left
    assert chi_square < len(seen) + 4.5 * math.sqrt(2 * len(seen))


def test_averaging_over_batches_removes_the_bias_of_small_batches():
    """At fixed embeddings log U tends to the logarithm of the sum over the whole data set,
    while the mean over batches of the batch's own logarithm stays below it (Jensen)."""
    num_samples, batch, tau = 64, 8, torch.tensor(0.2, dtype=torch.float64)
    pairs = draw_pairs(num_samples, 6, seed=0)
    truth = exact.log_anchor_losses(exact.log_gap_means(pairs, temperature=tau), 1e-8).mean()
    generator = torch.Generator().manual_seed(0)
    biases = {}
    for gamma in (1.0, 0.05):
        loss = GlobalContrastiveLoss(num_samples, epsilon=1e-8).double()
        values = []
        for epoch in range(40):
            for ids in torch.randperm(num_samples, generator=generator).split(batch):
                some = PairEmbeddings(pairs.image[ids], pairs.text[ids])
                estimate = loss(some, temperature=tau, sample_ids=ids, gamma=gamma)
                if epoch >= 20:
                    values.append(estimate / tau)
        biases[gamma] = (torch.stack(values).mean() - truth).item()
    assert biases[1.0] < -0.1
    assert abs(biases[0.05]) < 0.2 * abs(biases[1.0])
