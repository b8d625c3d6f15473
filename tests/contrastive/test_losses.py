"""The losses of the front door: plain tensors in, the exact objective and its gradient out."""

import math

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

import drrho
from drrho.contrastive.exact import clip_loss, global_contrastive_risk
from drrho.contrastive.objectives.distillation import Teacher
from drrho.contrastive.objectives.siglip import siglip_anchor_losses
from drrho.contrastive.pairs import PairEmbeddings
from tests.contrastive.conftest import distillation_loss
from tests.contrastive.test_gist import plain_gist

IDS = torch.arange(7)
TAU = torch.tensor(0.1, dtype=torch.float64)


def draw(*shape, seed):
    """Embeddings of any length, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def embeddings(dtype=torch.float64):
    return tuple(draw(7, 5, seed=seed).to(dtype).requires_grad_() for seed in (0, 1))


REFERENCE = draw(7, 3, seed=2), draw(7, 3, seed=3)
TEACHER = draw(7, 4, seed=4), draw(7, 4, seed=5)


def unit(image, text):
    return PairEmbeddings(normalize(image, dim=-1), normalize(text, dim=-1))


# name -> (loss, what it is called with, the exact objective of unit embeddings)
CASES = {
    "drrho_clip": (
        lambda **impl: drrho.DRRhoCLIPLoss(temperature=0.1, **impl),
        {"reference": REFERENCE},
        lambda pairs: global_contrastive_risk(
            pairs, unit(*REFERENCE), temperature=TAU, epsilon=1e-4
        ),
    ),
    "fastclip": (
        lambda **impl: drrho.FastCLIPLoss(num_samples=7, temperature=0.1, **impl),
        {"sample_ids": IDS},
        lambda pairs: global_contrastive_risk(pairs, temperature=TAU, epsilon=1e-14),
    ),
    "clip": (
        lambda **impl: drrho.CLIPLoss(temperature=0.1, **impl),
        {},
        lambda pairs: clip_loss(pairs, temperature=TAU),
    ),
    "siglip": (
        lambda **impl: drrho.SigLIPLoss(temperature=0.1, initial_bias=-4.0, **impl),
        {},
        lambda pairs: siglip_anchor_losses(pairs, temperature=TAU, bias=torch.tensor(-4.0)).mean(),
    ),
    "gist": (
        lambda **impl: drrho.GISTLoss(temperature=0.1, **impl),
        {"guide": TEACHER},
        lambda pairs: plain_gist(pairs, unit(*TEACHER), temperature=TAU),
    ),
    "distillation": (
        lambda **impl: drrho.DistillationLoss([0.2], temperature=0.1, **impl),
        {"teachers": [TEACHER]},
        lambda pairs: distillation_loss(pairs, [Teacher(unit(*TEACHER), 0.2)], temperature=TAU),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("impl", ["auto", "exact", "tiles"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_exact_objective(name, impl, dtype):
    make, arguments, exact = CASES[name]
    image, text = embeddings(dtype)
    loss = make(impl=impl).double()(image, text, **arguments)
    loss.backward()
    wide = [given.detach().double().requires_grad_() for given in (image, text)]
    expected = exact(unit(*wide))
    expected.backward()
    tolerance = {torch.float64: 1e-7, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    for given, plain in zip((image, text), wide, strict=True):
        assert given.grad.dtype == dtype
        assert_close(given.grad.double(), plain.grad, rtol=tolerance, atol=tolerance)


def test_averages_over_visits_need_ids_and_change_the_loss():
    loss = drrho.FastCLIPLoss(num_samples=7, temperature=0.1)
    image, text = embeddings()
    first = loss(image, text, sample_ids=IDS)
    other = loss(text, image.flip(0), sample_ids=IDS, gamma=0.5)
    assert not torch.isclose(other, drrho.FastCLIPLoss(temperature=0.1)(text, image.flip(0)))
    again = drrho.FastCLIPLoss(num_samples=7, temperature=0.1)
    again.load_state_dict(loss.state_dict())
    assert first != other
    assert torch.equal(
        again(image, text, sample_ids=IDS, gamma=0.5), loss(image, text, sample_ids=IDS, gamma=0.5)
    )


def test_a_loss_with_learned_temperature_has_parameters():
    learned = drrho.CLIPLoss(temperature=drrho.Learned())
    learned(*embeddings(torch.float32)).backward()
    (parameter,) = learned.parameters()
    assert parameter.grad != 0
    assert not list(drrho.CLIPLoss().parameters())
    with pytest.raises(ValueError, match="needs num_samples"):
        drrho.FastCLIPLoss(temperature=drrho.PerSample(), rho=0.5)
    each = drrho.FastCLIPLoss(num_samples=7, temperature=drrho.PerSample(), rho=0.5)
    each(*embeddings(torch.float32), sample_ids=IDS).backward()
    with pytest.raises(ValueError, match="needs sample_ids"):
        each(*embeddings(torch.float32))


@pytest.mark.parametrize(
    "make",
    [
        drrho.DRRhoCLIPLoss,
        drrho.FastCLIPLoss,
        drrho.CLIPLoss,
        drrho.SigLIPLoss,
        drrho.GISTLoss,
        lambda temperature: drrho.DistillationLoss([temperature]),
        lambda temperature: drrho.DistillationLoss([0.1], temperature=temperature),
    ],
)
def test_a_logit_scale_is_no_temperature(make):
    with pytest.raises(ValueError, match=r"this looks like a logit scale.* 1 / 100.0 = 0.01"):
        make(temperature=100.0)
    for wrong in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="must be positive"):
            make(temperature=wrong)


@pytest.mark.parametrize("kind", [drrho.Constant, drrho.Learned, drrho.PerSample])
def test_recipes_refuse_a_logit_scale_too(kind):
    with pytest.raises(ValueError, match=r"temperature.initial = 14.*looks like a logit scale"):
        kind(initial=14)
    with pytest.raises(ValueError, match=r"teacher_temperatures = 14.*looks like a logit scale"):
        drrho.DistillationTerm(teacher_temperatures=(0.01, 14))


def test_a_learned_temperature_may_not_start_at_a_logit_scale():
    with pytest.raises(ValueError, match="this looks like a logit scale"):
        drrho.CLIPLoss(temperature=drrho.Learned(initial=14.3))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_an_embedding_without_direction_is_an_error(value):
    image, text = (given.detach().clone() for given in embeddings())
    wrong = text.clone()
    wrong[3] = value
    with pytest.raises(ValueError, match="target text embeddings have a row of length zero"):
        drrho.CLIPLoss()(image, wrong)
    loss = drrho.DRRhoCLIPLoss()
    with pytest.raises(ValueError, match="reference image embeddings have a row of length zero"):
        loss(image, text, reference=(wrong, text))


def test_what_a_gpu_says_late_is_said_in_the_next_call():
    """As on a GPU, where the flag of an earlier batch arrives in the meantime."""
    loss = drrho.CLIPLoss()
    flag = torch.full((), 2, dtype=torch.uint8)
    loss._unit._flags = [("target text", flag)]
    loss(*embeddings())
    flag.fill_(1)
    with pytest.raises(ValueError, match="in an earlier batch, target text embeddings"):
        loss(*embeddings())
    loss(*embeddings())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_not_waited_for():
    image, text = (given.detach().cuda() for given in embeddings(torch.float32))
    loss = drrho.FastCLIPLoss().cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss._unit.pairs("target", image, text * (torch.arange(7, device="cuda")[:, None] > 0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match="in an earlier batch, target text embeddings"):
        loss(image, text)
    assert loss(image, text).isfinite()


@pytest.mark.parametrize(
    ("loss", "config"),
    [
        (drrho.DRRhoCLIPLoss, drrho.DRRhoCLIP()),
        (drrho.FastCLIPLoss, drrho.FastCLIP()),
        (drrho.CLIPLoss, drrho.CLIP()),
        (drrho.SigLIPLoss, drrho.SigLIP(temperature=0.1)),
        (drrho.GISTLoss, drrho.GIST()),
        (lambda: drrho.DistillationLoss([0.2]), drrho.Distillation(teacher_temperatures=(0.2,))),
    ],
)
def test_the_defaults_of_a_loss_are_those_of_its_objective(loss, config):
    assert loss().objective.config == config
