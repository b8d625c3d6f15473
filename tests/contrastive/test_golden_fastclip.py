"""FastCLIP v0 and v2 as published: three visits of the same samples, gamma by epoch.

The numbers were printed by the classes FastCLIPLoss (without multiply_tau) and
FastCLIPLossIndividual of the public repository Optimization-AI/fast_clip, in float64 on one
process, temperature 0.25 at the start, gamma 0.2 reached after two epochs.
"""

import pytest
import torch
from torch.testing import assert_close

from drrho.contrastive.memory.temperature import Learned, PerSample
from drrho.contrastive.objectives.global_risk import FastCLIP
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.pairs import PairEmbeddings, pair_partition
from tests.contrastive.test_golden import IDS, NUM_SAMPLES, features

VISITS = ((1.0, 0.0), (0.6, 0.2), (0.2, 0.35))  # gamma, shift of the embeddings

# 2-norm of the gradient of images and of texts, and image 1's
V0 = (
    (
        (1.2307152346850645, 1.723007087962331),
        (-0.2671177895, 0.11400354897, -0.18036299108, -0.06407306582, 0.06548055009),
        -1.069733325453869,
    ),
    (
        (1.2464712228808084, 1.1981442345381201),
        (-0.29921471586, -0.0871603819519, 0.06235475102, -0.04391369265, 0.16901144998),
        -1.0551821454403134,
    ),
    (
        (2.024642293771032, 1.4401204791416278),
        (-0.5413392912, -0.29119723511, 0.32235720345, -0.0916258980355, 0.35828684882),
        -1.2217001868829898,
    ),
)
V2 = (
    (
        (1.2307152346850645, 1.723007087962331),
        (-0.2671177895, 0.11400354897, -0.18036299108, -0.06407306582, 0.06548055009),
        ((0.236700000397, 0.236700000316, 0.236700000198, 0.236700000323, 0.263299998004,
          0.23670000051),
         (0.23670000024, 0.236700000336, 0.236700000866, 0.236700000271, 0.236700002293,
          0.236700000368)),
    ),
    (
        (1.2342522378435532, 1.1846574479720773),
        (-0.29519721886, -0.09700528216, 0.05994270858, -0.03591519136, 0.16932902813),
        ((0.233948281503, 0.233974497585, 0.233927993999, 0.233642607125, 0.266692580928,
          0.233805928705),
         (0.234042410027, 0.233959956981, 0.233868835606, 0.233913287578, 0.234396397838,
          0.233856363673)),
    ),
    (
        (2.0722941219077473, 1.4560257593548116),
        (-0.55103026329, -0.3192242849, 0.32460066239, -0.07238244659, 0.37331930845),
        ((0.231404752999, 0.231644783234, 0.231730698330, 0.230771133908, 0.268892681386,
          0.231076982469),
         (0.232049086048, 0.231693330541, 0.230459773878, 0.231820935319, 0.231042392003,
          0.231190393361)),
    ),
)  # fmt: skip


def visits(objective):
    """Gradients of the two embeddings after each visit."""
    for gamma, shift in VISITS:
        image = features(0.1 + shift, 0.7, 0.3).requires_grad_()
        text = features(0.5 - shift, 0.69, 0.31).requires_grad_()
        pairs = PairEmbeddings(image, text)
        objective(pairs, sample_ids=IDS, gamma=gamma).loss.backward()
        yield image.grad, text.grad


def assert_gradients(found, norms, row):
    assert_close(torch.stack([g.norm() for g in found]), torch.tensor(norms).double())
    assert_close(found[0][1], torch.tensor(row, dtype=torch.float64), rtol=1e-9, atol=1e-10)


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_v0_and_its_temperature():
    """The published gradient in the logit scale counts both halves of the batch's sum whole: it
    is twice that of the loss.
    """
    tau = Learned(initial=0.25)
    config = FastCLIP(temperature=tau, times_temperature=False, gamma_min=0.2)
    objective = ContrastiveObjective(config, num_samples=NUM_SAMPLES)
    for found, (norms, row, of_scale) in zip(visits(objective), V0, strict=True):
        assert_gradients(found, norms, row)
        parameter = objective.temperature.log_temperature
        assert parameter.grad * -0.25 * 2 == pytest.approx(of_scale, rel=1e-9)
        parameter.grad = None


def test_v2_and_its_temperatures():
    tau = PerSample(initial=0.25, learning_rate=0.0133, rule="adam")
    config = FastCLIP(temperature=tau, times_temperature=False, rho=1.2, gamma_min=0.2)
    objective = ContrastiveObjective(config, num_samples=NUM_SAMPLES)
    for found, (norms, row, taus) in zip(visits(objective), V2, strict=True):
        assert_gradients(found, norms, row)
        moved = objective.temperature.temperatures.read(IDS)
        assert_close(moved, torch.tensor(taus, dtype=torch.float64), rtol=1e-9, atol=1e-11)


def test_a_gradient_that_is_not_finite_leaves_every_table_as_it_was():
    tau = PerSample(initial=0.25, learning_rate=0.0133, rule="adam")
    config = FastCLIP(temperature=tau, times_temperature=False, rho=1.2, gamma_min=0.2)
    objective = ContrastiveObjective(config, num_samples=NUM_SAMPLES)
    for _ in visits(objective):
        pass
    before = {name: value.clone() for name, value in objective.temperature.named_buffers()}
    assert set(before) == {
        f"{table}.entries" for table in ("temperatures", "directions", "squares", "visits")
    }
    pairs = PairEmbeddings(features(0.1, 0.7, 0.3), features(0.5, 0.69, 0.31))
    for worst in (torch.inf, -torch.inf, torch.nan):
        batch = objective.estimator.locate(IDS, pair_partition(pairs, group=None))
        objective.temperature(batch, dtype=torch.float64).backward(torch.full((2, 6), worst))
    for name, value in objective.temperature.named_buffers():
        assert_close(value, before[name], rtol=0, atol=0)
