"""The published DRRho-CLIP code's loss, from ours by the stated transformation.

The numbers were printed by the class SogCLRLoss of the public repository
Optimization-AI/DRRho-CLIP in float64 on embeddings that need no random numbers. Its loss
differs from the exact one as docs/mathematics.md, "The official code", lists: the averages
U are over B instead of B - 1, and the similarity term lacks a factor 1/2, so that its
temperature gradient is the gradient of no objective.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from drrho.contrastive.exact import clip_loss
from drrho.contrastive.objectives.distillation import (
    DistillationTerm,
    Teacher,
    converted_weight,
)
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, GlobalContrastiveLoss
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.pairs import PairEmbeddings
from tests.contrastive.conftest import distillation_loss

B, RHO, NUM_SAMPLES = 6, 11.0, 16
PER_MEAN = (B - 1) / B  # the official mean over B of a sum over B - 1 negatives


def features(a: float, b: float, c: float):
    i = torch.arange(B).double()[:, None]
    k = torch.arange(5).double()[None]
    return F.normalize(torch.sin(a + b * (i + 1) * (k + 1) + c * k * k + 0.37 * i), dim=-1)


REFERENCE = PairEmbeddings(features(0.2, 0.71, 0.29), features(0.45, 0.7, 0.305))
IDS = torch.tensor([3, 0, 7, 5, 12, 9])


class Official:
    """What the official loss reports, computed from `GlobalContrastiveLoss`."""

    def __init__(self, epsilon: float):
        self.loss = GlobalContrastiveLoss(NUM_SAMPLES, epsilon=epsilon / PER_MEAN, rho=RHO)
        self.loss.double()

    def step(self, scale: float, *, reference, gamma=1.0, shift=0.0, ids=IDS):
        image = features(0.1 + shift, 0.7, 0.3).requires_grad_()
        text = features(0.5 - shift, 0.69, 0.31).requires_grad_()
        tau = torch.tensor(1 / scale, dtype=torch.float64, requires_grad=True)
        ours = self.loss(
            PairEmbeddings(image, text), reference, temperature=tau, sample_ids=ids, gamma=gamma
        )
        image_gradient, text_gradient, tau_gradient = torch.autograd.grad(ours, [image, text, tau])
        log_u = self.loss.averages.log_u.read(ids)
        self.u = log_u + math.log(PER_MEAN)
        # sum_ij [A_ij d_ij + D_ij d_ij] of the exact temperature gradient, times 2B / (B - 1)
        self.similarity = (RHO + log_u.mean() - tau_gradient) * 2 / PER_MEAN
        self.value = (self.similarity + RHO + self.u.mean()) / scale
        self.gradients = [g * 2 / PER_MEAN for g in (image_gradient, text_gradient)]
        self.scale_gradient = (self.similarity - RHO - self.u.mean()) / scale**2

    def numbers(self):
        image, text = self.gradients
        return [self.value, image.sum(), image.abs().sum(), text.abs().sum(), self.scale_gradient]


def assert_matches(numbers, expected):
    assert_close(
        torch.stack([torch.as_tensor(n) for n in numbers]).double(),
        torch.tensor(expected, dtype=torch.float64),
        rtol=3e-10,
        atol=1e-13,
    )


U_C = [1.46278115, 2.817659606, 1.657819488, 1.393328732, 1.189396453, 2.304457742]


@pytest.mark.parametrize(
    ("scale", "epsilon", "reference", "expected", "u_image"),
    [
        pytest.param(
            20.0, 1e-14, None,
            [-0.994037158774, 0.0141415653652, 3.09861589155, 5.29137816456, -0.0532492492474],
            [-12.54116768, -6.670375197, -10.32305694, -15.2551739, -9.34110943, -7.751991345],
            id="A: no reference",
        ),
        pytest.param(
            100.0, 1e-4, REFERENCE,
            [0.598954459573, 0.364779841623, 7.00507603522, 5.93622075528, 0.00113350583685],
            [12.31181445, 18.60366464, 11.9009193, 12.20217844, 10.54285002, 17.55414607],
            id="B: reference",
        ),
    ],
)  # fmt: skip
def test_one_batch(scale, epsilon, reference, expected, u_image):
    official = Official(epsilon)
    official.step(scale, reference=reference)
    assert_matches(official.numbers(), expected)
    assert_close(official.u[0], torch.tensor(u_image, dtype=torch.float64), rtol=1e-8, atol=1e-8)


def test_c_without_the_factor_of_the_temperature():
    official = Official(1e-4)
    official.step(20.0, reference=REFERENCE)
    image, text = (20.0 * g for g in official.gradients)
    similarity = official.similarity
    assert_matches(
        [similarity, image.sum(), image.abs().sum(), text.abs().sum(), similarity / 20.0],
        [6.14177376516, 5.34323467026, 133.842344413, 116.256032206, 0.307088688258],
    )
    assert_close(official.u[0], torch.tensor(U_C, dtype=torch.float64), rtol=1e-8, atol=1e-8)


def distillation(scale: torch.Tensor, image, text):
    return distillation_loss(
        PairEmbeddings(image, text), [Teacher(REFERENCE, 0.01)], temperature=1 / scale
    )


def test_d_with_distillation_added():
    official = Official(1e-4)
    official.step(20.0, reference=REFERENCE)
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    sides = [features(0.1, 0.7, 0.3).requires_grad_(), features(0.5, 0.69, 0.31).requires_grad_()]
    distill = 0.5 * distillation(scale, *sides) / scale.detach()
    image, text, scale_gradient = torch.autograd.grad(distill, [*sides, scale])
    image, text = (2 * g + d for g, d in zip(official.gradients, (image, text), strict=True))
    assert_matches(
        [
            2 * official.value,
            distill.detach(),
            image.sum(),
            image.abs().sum(),
            text.abs().sum(),
            2 * official.scale_gradient + scale_gradient,
        ],
        [
            1.88654684449,
            6.19050599649e-05,
            0.534138149269,
            13.3842654048,
            11.627097221,
            -0.0329247740938,
        ],
    )


def test_e_four_epochs_of_moving_averages():
    official = Official(1e-4)
    later_ids = torch.tensor([3, 1, 7, 2, 12, 4])
    steps = [
        (0.0, IDS, 1.0,
         [0.943273422247, 0.267161733513, 6.69211722067, 5.81280161032, -0.0164548022865],
         U_C),
        (0.05, IDS, 0.3 * (1 + math.cos(math.pi / 4)) + 0.4,
         [0.736354707509, 0.137893975362, 5.61218477735, 5.06703311695, -0.0221676659678],
         [0.8418451755, 1.143684973, 0.1822643975, 1.348267453, 0.534615318, 1.046333575]),
        (0.1, later_ids, 0.7,
         [0.646994208554, 0.0493407701345, 5.69255867649, 5.54770420506, -0.0230034792952],
         [0.5132919715, -0.9066502377, -0.6673645071, 1.41846806, 0.1877602344, -0.1721641061]),
        (0.15, IDS, 0.3 * (1 + math.cos(3 * math.pi / 4)) + 0.4,
         [0.639294666054, -0.0106691346749, 4.08497222598, 4.36741226729, -0.0245176702544],
         [0.3795165118, 0.5269677769, -1.169168729, 1.483769573, 0.03440607294, 0.5643398688]),
    ]  # fmt: skip
    for shift, ids, gamma, expected, u_image in steps:
        official.step(20.0, reference=REFERENCE, gamma=gamma, shift=shift, ids=ids)
        assert_matches(official.numbers(), expected)
        expected_u = torch.tensor(u_image, dtype=torch.float64)
        assert_close(official.u[0], expected_u, rtol=1e-8, atol=1e-8)


def test_f_clip_with_distillation():
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    sides = [features(0.1, 0.7, 0.3).requires_grad_(), features(0.5, 0.69, 0.31).requires_grad_()]
    contrastive = 0.3 * clip_loss(PairEmbeddings(*sides), temperature=1 / scale)
    distill = 0.7 * distillation(scale, *sides)
    image, _, scale_gradient = torch.autograd.grad(contrastive + distill, [*sides, scale])
    assert_matches(
        [contrastive.detach(), distill.detach(), scale_gradient, image.abs().sum()],
        [0.000742860338988, 0.00173334167902, -0.000606780846598, 0.102659283228],
    )


@pytest.mark.parametrize("times_temperature", [True, False])
@pytest.mark.parametrize("published", [0.3, 1.0])
def test_a_converted_distillation_weight_gives_the_published_gradient(published, times_temperature):
    """Up to the factor 2B / (B - 1) of the whole, which the published loss has.

    Without --multiply_tau there both terms are without tau.
    """
    official = Official(1e-4)
    official.step(20.0, reference=REFERENCE)
    scale = torch.tensor(20.0, dtype=torch.float64)
    sides = [features(0.1, 0.7, 0.3).requires_grad_(), features(0.5, 0.69, 0.31).requires_grad_()]
    term = published * distillation(scale, *sides) / scale
    expected = [
        g + d for g, d in zip(official.gradients, torch.autograd.grad(term, sides), strict=True)
    ]
    if not times_temperature:
        expected = [scale * gradient for gradient in expected]
    weight = converted_weight(published, batch_size=B)
    config = DRRhoCLIP(
        temperature=1 / 20.0,
        epsilon=1e-4 / PER_MEAN,
        times_temperature=times_temperature,
        distillation=DistillationTerm(teacher_temperatures=(0.01,), weight=weight),
    )
    objective = ContrastiveObjective(config, num_samples=NUM_SAMPLES).double()
    objective.temperature.log_temperature.fill_(-math.log(20.0))
    loss, _ = objective(PairEmbeddings(*sides), REFERENCE, sample_ids=IDS, teachers=[REFERENCE])
    for found, gradient in zip(torch.autograd.grad(loss, sides), expected, strict=True):
        assert_close(found * 2 / PER_MEAN, gradient, rtol=1e-9, atol=1e-12)
