"""Each method builds, steps, and refuses what would have no effect."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from drrho.contrastive.diagnostics import contrastive_diagnostics
from drrho.contrastive.exact import log_anchor_losses, log_gap_means, pair_similarities
from drrho.contrastive.memory.temperature import Constant, Learned, PerSample, Temperature
from drrho.contrastive.objectives.algorithms import ALGORITHMS, method_title
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import Distillation, DistillationTerm
from drrho.contrastive.objectives.gist import GIST
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP, recommended_gamma_min
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.objectives.siglip import SigLIP
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles import strip
from tests.contrastive.conftest import draw_pairs

IDS = torch.arange(7)


LEARNED = Learned()
EVERY_METHOD = {
    "clip": CLIP(),
    "clip, learned": CLIP(temperature=Learned()),
    "clip, per direction": CLIP(temperature=Learned(per_direction=True)),
    "siglip": SigLIP(temperature=Learned(initial=0.1)),
    "sogclr": FastCLIP(gamma_min=0.8, gamma_schedule="constant"),
    "isogclr": FastCLIP(temperature=PerSample(), rho=0.5, gamma_min=0.8, gamma_schedule="constant"),
    "fastclip v1": FastCLIP(),
    "fastclip v3": FastCLIP(temperature=Learned(), rho=0.5),
    "fastclip, per direction": FastCLIP(temperature=Learned(per_direction=True), rho=0.5),
    "drrho": DRRhoCLIP(),
    "drrho, learned": DRRhoCLIP(temperature=LEARNED, rho=0.5),
    "drrho, per sample": DRRhoCLIP(temperature=PerSample(), rho=0.5),
    "drrho, reference as logits": DRRhoCLIP(reference_scale=2.0),
    "gist": GIST(),
    "gist, of both": GIST(temperature=Learned(per_direction=True), directions="both", margin=0.1),
    "gist and a teacher": GIST(distillation=DistillationTerm(teacher_temperatures=(0.05,))),
    "distillation": Distillation(teacher_temperatures=(0.05,)),
    "clip and two teachers": CLIP(
        distillation=DistillationTerm(teacher_temperatures=(0.05, 0.1), weight=2.0)
    ),
    "siglip and a teacher": SigLIP(distillation=DistillationTerm(teacher_temperatures=(0.05,))),
    "drrho, per sample, and a teacher": DRRhoCLIP(
        temperature=PerSample(),
        rho=0.5,
        distillation=DistillationTerm(teacher_temperatures=(0.05,)),
    ),
}


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_every_method_learns_to_match_pairs(name):
    config = EVERY_METHOD[name]
    objective = ContrastiveObjective(config, num_samples=7)
    reference = draw_pairs(7, 4, seed=1, dtype=torch.float32) if config.needs_reference else None
    teachers = [draw_pairs(7, 64, seed=9, dtype=torch.float32)] * config.num_teachers
    image = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    text = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    optimiser = torch.optim.Adam([image, text, *objective.parameters()], lr=0.05)
    for _ in range(60):
        target = PairEmbeddings(*(torch.nn.functional.normalize(e, dim=-1) for e in (image, text)))
        loss, metrics = objective(
            target, reference, sample_ids=IDS, gamma=0.9, teachers=teachers, diagnose=True
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (target.image @ target.text.T).argmax(dim=1).tolist() == IDS.tolist()
    assert all(value.isfinite() and not value.requires_grad for value in metrics.values())
    assert ("excess_loss_variance" in metrics) == config.needs_reference
    taus = [value for key, value in metrics.items() if key.startswith("temperature")]
    moved = (taus[0] - config.temperature.initial).abs() > 1e-3
    assert moved == config.temperature.learned


def plain_diagnostics(target, reference, tau, epsilon):
    """The same numbers by B x B matrices."""
    num_pairs = len(target.image)
    x = pair_similarities(target, reference)
    gaps = torch.stack([s - s.diagonal()[:, None] for s in (x, x.T)])
    scaled = gaps / tau.expand(2, num_pairs)[..., None]
    negatives = ~torch.eye(num_pairs, dtype=torch.bool)
    gaps, scaled = (m[:, negatives].view(2, num_pairs, -1) for m in (gaps, scaled))
    p = scaled.softmax(dim=-1)
    return {
        "mean": gaps.mean(),
        "variance": gaps.var(correction=0),
        "effective_sample_size": (1 / p.square().sum(-1)).mean() / (num_pairs - 1),
        "weights_kl": (p * (p * (num_pairs - 1)).log()).sum(-1).mean(),
        "saturated_anchors": (scaled.exp().mean(-1) < epsilon).double().mean(),
    }


@pytest.mark.parametrize("shape", [(), (2, 1), (2, 7)], ids=str)
def test_diagnostics_in_tiles_are_those_of_the_matrix(target, reference, shape, monkeypatch):
    monkeypatch.setattr(strip, "CPU_TILE", 3)
    tau = 0.1 + torch.rand(shape, dtype=torch.float64)
    found = contrastive_diagnostics(target, reference, temperature=tau, epsilon=0.5)
    plain = plain_diagnostics(target, None, tau, 0.5)
    assert_close([found["loss_mean"], found["loss_variance"]], [plain["mean"], plain["variance"]])
    for name, expected in plain_diagnostics(target, reference, tau, 0.5).items():
        found_name = f"excess_loss_{name}" if name in ("mean", "variance") else name
        assert_close(found[found_name], expected)


def test_per_sample_temperatures_move_by_the_exact_gradient(target, reference):
    """Against autograd of an anchor's own F_i in its own temperature."""
    config = PerSample(initial=0.2, momentum=0.75, learning_rate=0.02)
    objective = ContrastiveObjective(
        DRRhoCLIP(temperature=config, rho=0.3, epsilon=1e-2),
        num_samples=12,
    ).double()
    ids = torch.tensor([8, 0, 3, 11, 2, 5, 9])
    tau = torch.full((2, 7), 0.2, dtype=torch.float64)
    direction = torch.zeros(2, 7, dtype=torch.float64)
    for _ in range(3):
        leaf = tau.clone().requires_grad_()
        log_means = log_gap_means(target, reference, temperature=leaf)
        of_anchors = leaf * (0.3 + log_anchor_losses(log_means, 1e-2))
        (exact,) = torch.autograd.grad(of_anchors.sum(), leaf)
        direction = 0.75 * direction + 0.25 * exact
        tau = (tau - 0.02 * direction).clamp(min=0.01)
        leaves = PairEmbeddings(*(e.clone().requires_grad_() for e in target))
        objective(leaves, reference, sample_ids=ids, gamma=1.0).loss.backward()
        assert_close(objective.temperature.temperatures.read(ids), tau)
    untouched = objective.temperature.temperatures.read(torch.tensor([1, 4]))
    assert_close(untouched, torch.full((2, 2), 0.2).double(), atol=1e-8, rtol=0)


def test_per_sample_temperatures_settle_where_the_weights_are_rho_from_uniform():
    target = draw_pairs(40, 8, seed=0)
    config = PerSample(initial=0.1, learning_rate=0.02, momentum=0.5)
    objective = ContrastiveObjective(FastCLIP(temperature=config, rho=0.7), num_samples=40).double()
    for _ in range(150):
        leaves = PairEmbeddings(*(e.clone().requires_grad_() for e in target))
        objective(leaves, sample_ids=torch.arange(40), gamma=1.0).loss.backward()
    tau = objective.temperature.temperatures.read(torch.arange(40))
    metrics = contrastive_diagnostics(target, temperature=tau, epsilon=1e-14)
    assert_close(metrics["weights_kl"].item(), 0.7, atol=1e-3, rtol=0)
    assert tau.std() > 0.01


def test_the_reference_as_logits_of_its_own_temperature(target, reference):
    """x / tau is S / tau - R / tau_ref where reference_scale is tau / tau_ref."""
    config = DRRhoCLIP(temperature=0.1, reference_scale=0.1 / 0.04)
    loss = ContrastiveObjective(config, num_samples=7)(target, reference, sample_ids=IDS, gamma=1.0)
    z = target.image @ target.text.T / 0.1 - reference.image @ reference.text.T / 0.04
    expected = []
    for logits in (z, z.T):
        gaps = (logits - logits.diagonal()[:, None]).exp().fill_diagonal_(0)
        expected.append((1e-4 + gaps.sum(dim=1) / 6).log())
    assert_close(loss.loss, 0.1 * torch.stack(expected).mean(), rtol=1e-6, atol=1e-9)


def test_an_unreachable_rho_is_warned_of_once_with_the_numbers(target):
    objective = ContrastiveObjective(FastCLIP(temperature=Learned(), rho=5.0), num_samples=7)
    with pytest.warns(UserWarning, match=r"rho = 5.0 .* 6 negatives .* at most 1.79 nats"):
        objective(target, sample_ids=IDS, gamma=1.0)
    objective(target, sample_ids=IDS, gamma=1.0)


def test_diagnostics_know_uniform_and_single_weights():
    """All negatives alike: every one counts. One negative near, the others far: it counts."""
    objective = ContrastiveObjective(
        FastCLIP(temperature=0.01),
        num_samples=4,
    )
    apart = PairEmbeddings(torch.eye(4), torch.eye(4))
    _, uniform = objective(apart, sample_ids=IDS[:4], gamma=1.0, diagnose=True)
    assert_close(uniform["effective_sample_size"], torch.tensor(1.0))
    assert_close(uniform["weights_kl"], torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(uniform["loss_mean"], torch.tensor(-1.0))
    assert_close(uniform["loss_variance"], torch.tensor(0.0))
    assert uniform["saturated_anchors"] == 1  # exp(-1 / 0.01) is far below 1e-14
    rows = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1], [0, 0.6, 0.8]])
    twins = PairEmbeddings(rows, rows)
    _, single = objective(twins, sample_ids=IDS[:4], gamma=1.0, diagnose=True)
    assert_close(single["effective_sample_size"], torch.tensor(1 / 3), atol=0.02, rtol=0)
    assert_close(single["weights_kl"], torch.tensor(3.0).log(), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        (CLIP, {"rho": 1.0}),
        (CLIP, {"epsilon": 0.1}),
        (CLIP, {"gamma_min": 0.5}),
        (SigLIP, {"gamma_schedule": "constant"}),
        (FastCLIP, {"reference_scale": 2.0}),
        (CLIP, {"initial_bias": -5.0}),
        (Distillation, {"teacher_temperatures": (0.1,), "weight": 2.0}),
        (Constant, {"minimum": 0.005}),
        (Constant, {"maximum": 0.5}),
        (Learned, {"momentum": 0.5}),
    ],
)
def test_an_option_without_effect_cannot_be_written(objective, options):
    with pytest.raises(TypeError, match="unexpected keyword"):
        objective(**options)


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (FastCLIP, {"rho": 1.0}, "learned temperature"),
        (FastCLIP, {"temperature": Learned()}, "needs objective.rho"),
        (FastCLIP, {"epsilon": 0.0}, "epsilon must be positive"),
        (FastCLIP, {"gamma_min": 0.0}, "gamma_min must be"),
        (FastCLIP, {"gamma_schedule": "constant"}, "needs objective.gamma_min"),
        (FastCLIP, {"gamma_decay_epochs": 0.0}, "gamma_decay_epochs must be positive"),
        (
            FastCLIP,
            {"gamma_decay_epochs": 3, "gamma_min": 0.5, "gamma_schedule": "constant"},
            "gamma_decay_epochs = 3 has no effect",
        ),
        (FastCLIP, {"gamma_decay_epochs": 3, "gamma_min": 1.0}, "gamma_decay_epochs = 3 has no"),
        (
            FastCLIP,
            {"temperature": Learned(), "rho": 1.0, "times_temperature": False},
            "rho = 1.0 has no effect without times_temperature",
        ),
        (
            FastCLIP,
            {"temperature": PerSample(), "times_temperature": False},
            "needs objective.rho",
        ),
        (DRRhoCLIP, {"reference_scale": 0.0}, "reference_scale must be positive"),
        (SigLIP, {"temperature": Learned(per_direction=True)}, "does not fit"),
        (Distillation, {"teacher_temperatures": ()}, "at least one"),
    ],
)
def test_options_without_sense_are_errors(objective, options, message):
    with pytest.raises(ValueError, match=message):
        objective(**options)


def test_a_float_is_a_constant_temperature():
    for objective in (CLIP, SigLIP, FastCLIP, DRRhoCLIP, GIST):
        assert objective(temperature=0.01) == objective(temperature=Constant(initial=0.01))
    with pytest.raises(ValueError, match="temperature must be positive and finite, got -1"):
        DRRhoCLIP(temperature=-1.0)


def test_a_reference_must_be_there_exactly_when_it_is_used(target, reference):
    steered = ContrastiveObjective(DRRhoCLIP(), num_samples=7)
    plain = ContrastiveObjective(FastCLIP(), num_samples=7)
    with pytest.raises(ValueError, match="needs reference embeddings"):
        steered(target, sample_ids=IDS, gamma=1.0)
    with pytest.raises(ValueError, match="take none"):
        plain(target, reference, sample_ids=IDS, gamma=1.0)
    with pytest.raises(ValueError, match="temperatures of 0 teachers, got embeddings of 1"):
        plain(target, sample_ids=IDS, gamma=1.0, teachers=[reference])


@pytest.mark.parametrize("config", EVERY_METHOD.values(), ids=EVERY_METHOD)
def test_a_config_says_what_its_objective_has(config):
    objective = ContrastiveObjective(config, num_samples=5)
    assert config.has_averages == (objective.estimator is not None)
    assert config.needs_reference == isinstance(config, DRRhoCLIP | GIST)
    assert config.temperature.learned != isinstance(config.temperature, Constant)


def test_recommended_gamma_min_shrinks_with_the_epochs():
    assert recommended_gamma_min(1) == recommended_gamma_min(7) == 1.0
    assert 0.3 < recommended_gamma_min(30) < 0.4


def test_a_learned_temperature_stops_at_its_minimum_and_can_rise_again():
    temperature = Temperature(Learned(initial=0.02, minimum=0.01))
    optimiser = torch.optim.SGD(temperature.parameters(), lr=1.0)
    for sign, expected in ((1.0, 0.01), (-1.0, 0.01 * torch.e)):
        temperature().log().mul(sign).backward()
        optimiser.step()
        optimiser.zero_grad()
        assert_close(temperature().item(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("maximum", "expected"), [(1.0, 1.0), (None, 0.9 * torch.e)])
def test_a_learned_temperature_stops_at_its_maximum(maximum, expected):
    """CLIP's logit scale is at least 1; what was never limited is None."""
    temperature = Temperature(Learned(initial=0.9, maximum=maximum))
    optimiser = torch.optim.SGD(temperature.parameters(), lr=1.0)
    (-temperature().log()).backward()
    optimiser.step()
    assert_close(temperature().item(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Constant, {"initial": 0.0}),
        (Constant, {"initial": float("nan")}),
        (Learned, {"initial": 0.001}),
        (Learned, {"minimum": 0.0}),
        (PerSample, {"maximum": 0.01}),
        (Learned, {"maximum": 0.01}),
        (PerSample, {"learning_rate": 0.0}),
        (PerSample, {"momentum": 1.0}),
    ],
)
def test_temperatures_are_checked(kind, options):
    with pytest.raises(ValueError, match="temperature"):
        kind(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"teacher_temperatures": ()},
        {"teacher_temperatures": (0,)},
        {"teacher_temperatures": (0.1,), "weight": 0.0},
    ],
)
def test_distillation_is_checked(options):
    with pytest.raises(ValueError, match="distillation"):
        DistillationTerm(**options)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_says_what_it_is(name):
    algorithm = ALGORITHMS[name]
    assert method_title(name) == algorithm.title
    assert algorithm.citation.startswith("arXiv ")
    assert algorithm.objective.method in (
        "clip",
        "siglip",
        "gist",
        "fastclip",
        "drrho_clip",
        "distillation",
    )


def test_a_constant_temperature_may_be_as_small_as_one_likes():
    assert_close(Temperature(Constant(initial=0.001))().item(), 0.001, rtol=1e-6, atol=0)


def test_the_guide_has_the_table_of_algorithms():
    rows = [
        f"| `{name}` | {found.title} | `{type(found.objective).__name__}` | "
        f"`{type(found.objective.temperature).__name__}` | {found.summary} | {found.citation} |\n"
        for name, found in ALGORITHMS.items()
    ]
    guide = Path(__file__).parents[2] / "docs" / "guides" / "contrastive.md"
    before, table, _ = guide.read_text().partition("".join(rows) + "\n")
    assert table
    assert before.endswith("|---|---|---|---|---|---|\n")


def test_gamma_falls_in_the_part_of_the_run_that_its_epochs_are():
    assert FastCLIP(gamma_decay_epochs=3, gamma_min=0.5).decay_share(epochs=12) == 0.25
    assert FastCLIP().decay_share(epochs=12) is None
