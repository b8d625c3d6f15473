"""Each method builds, steps, and refuses what would have no effect."""

import pytest
import torch
from torch.testing import assert_close

from drrho.contrastive.config import ObjectiveConfig, recommended_gamma_min
from drrho.contrastive.objective import ContrastiveObjective
from drrho.contrastive.risk import PairEmbeddings
from drrho.contrastive.temperature import Temperature, TemperatureConfig
from tests.contrastive.conftest import draw_pairs

IDS = torch.arange(7)


@pytest.mark.parametrize("method", ["clip", "fastclip", "drrho_clip"])
@pytest.mark.parametrize("learned", [False, True])
def test_every_method_learns_to_match_pairs(method, learned):
    config = ObjectiveConfig(
        method=method,
        temperature=TemperatureConfig(kind="learned" if learned else "constant"),
        rho=0.5 if learned and method != "clip" else None,
    )
    objective = ContrastiveObjective(config, num_samples=7)
    reference = draw_pairs(7, 4, seed=1, dtype=torch.float32) if method == "drrho_clip" else None
    image = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    text = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    optimiser = torch.optim.Adam([image, text, *objective.parameters()], lr=0.05)
    for _ in range(60):
        target = PairEmbeddings(*(torch.nn.functional.normalize(e, dim=-1) for e in (image, text)))
        loss, metrics = objective(target, reference, sample_ids=IDS, gamma=0.9, diagnose=True)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (target.image @ target.text.T).argmax(dim=1).tolist() == IDS.tolist()
    assert all(value.isfinite() and not value.requires_grad for value in metrics.values())
    assert ("excess_loss_variance" in metrics) == (method == "drrho_clip")
    assert (abs(metrics["temperature"] - 0.07) > 1e-3) == learned


def test_diagnostics_know_uniform_and_single_weights():
    """All negatives alike: every one counts. One negative near, the others far: it counts."""
    objective = ContrastiveObjective(
        ObjectiveConfig(method="fastclip", temperature=TemperatureConfig(initial=0.01)),
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
    ("options", "message"),
    [
        ({"method": "clip", "rho": 1.0}, "rho"),
        ({"method": "clip", "epsilon": 0.1}, "epsilon"),
        ({"method": "clip", "gamma_min": 0.5}, "gamma_min"),
        ({"method": "fastclip", "rho": 1.0}, "learned temperature"),
        (
            {"method": "fastclip", "temperature": TemperatureConfig(kind="learned")},
            "needs objective.rho",
        ),
        ({"method": "fastclip", "epsilon": 0.0}, "epsilon must be positive"),
        ({"method": "fastclip", "gamma_min": 0.0}, "gamma_min must be"),
    ],
)
def test_options_without_effect_or_sense_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**options)


def test_a_reference_must_be_there_exactly_when_it_is_used(target, reference):
    steered = ContrastiveObjective(ObjectiveConfig(method="drrho_clip"), num_samples=7)
    plain = ContrastiveObjective(ObjectiveConfig(method="fastclip"), num_samples=7)
    with pytest.raises(ValueError, match="needs reference embeddings"):
        steered(target, sample_ids=IDS, gamma=1.0)
    with pytest.raises(ValueError, match="take none"):
        plain(target, reference, sample_ids=IDS, gamma=1.0)


def test_recommended_gamma_min_shrinks_with_the_epochs():
    assert recommended_gamma_min(1) == recommended_gamma_min(7) == 1.0
    assert 0.3 < recommended_gamma_min(30) < 0.4


def test_a_learned_temperature_stops_at_its_minimum_and_can_rise_again():
    temperature = Temperature(TemperatureConfig(initial=0.02, kind="learned", minimum=0.01))
    optimiser = torch.optim.SGD(temperature.parameters(), lr=1.0)
    for sign, expected in ((1.0, 0.01), (-1.0, 0.01 * torch.e)):
        temperature().log().mul(sign).backward()
        optimiser.step()
        optimiser.zero_grad()
        assert_close(temperature().item(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"initial": 0.0},
        {"initial": float("nan")},
        {"minimum": 0.005},
        {"initial": 0.001, "kind": "learned"},
        {"minimum": 0.0, "kind": "learned"},
    ],
)
def test_temperatures_are_checked(options):
    with pytest.raises(ValueError, match="temperature"):
        TemperatureConfig(**options)


def test_a_constant_temperature_may_be_as_small_as_one_likes():
    assert_close(Temperature(TemperatureConfig(initial=0.001))().item(), 0.001, rtol=1e-6, atol=0)
