"""Lightning with the steered objective as a callback."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

from drrho.contrastive.objectives.clip import CLIP  # noqa: E402
from drrho.contrastive.objectives.global_risk import (  # noqa: E402
    DRRhoCLIP,
    GlobalContrastiveLoss,
    recommended_gamma_min,
)
from drrho.contrastive.pairs import PairEmbeddings  # noqa: E402
from drrho.integrations.lightning import Steering  # noqa: E402
from drrho.integrations.pairs import whole_state  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice about machines

N = 16
DRRHO = DRRhoCLIP(temperature=0.1, gamma_min=0.5, gamma_schedule="constant")
generator = torch.Generator().manual_seed(3)
REFERENCE = PairEmbeddings(
    *torch.nn.functional.normalize(torch.randn(2, N, 5, generator=generator), dim=-1)
)
DATA = TensorDataset(*torch.randn(2, N, 6, generator=generator), torch.arange(N))


def towers():
    torch.manual_seed(1)
    return torch.nn.ModuleList([torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)])


def encode(both, images, texts):
    pairs = (tower(x) for tower, x in zip(both, (images, texts), strict=True))
    return PairEmbeddings(*(torch.nn.functional.normalize(x, dim=-1) for x in pairs))


class TinyModule(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.towers = towers()
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))
        self.steering = Steering(DRRHO, num_samples=N, reference=REFERENCE)

    def training_step(self, batch, _):
        images, texts, ids = batch
        target = encode(self.towers, images, texts)
        scale = self.logit_scale.exp()
        return self.steering.loss(self, target, sample_ids=ids, logit_scale=scale)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)

    def configure_callbacks(self):
        return [self.steering]


def options(folder):
    return {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def trained(folder, *, epochs, ckpt_path=None, **others):
    model = TinyModule()
    trainer = lightning.Trainer(max_epochs=epochs, **options(folder), **others)
    trainer.fit(model, DataLoader(DATA, 8), ckpt_path=ckpt_path)
    return model, trainer


def share_of_two_processes(folder, *, rank):
    """What test_hugging_face.py's two processes run: one start for all trainers."""
    model = TinyModule()
    trainer = lightning.Trainer(
        devices=2, strategy="ddp", use_distributed_sampler=False, max_epochs=2, **options(folder)
    )
    order = torch.arange(N).view(-1, 2, 4)[:, rank].flatten().tolist()
    trainer.fit(model, DataLoader(DATA, 4, sampler=order))
    trainer.save_checkpoint(folder / "two.ckpt")
    torch.save(model.state_dict() | whole_state(model.steering.pairs), folder / f"{rank}.pt")


def state_of(model):
    return model.state_dict() | model.steering.pairs.state_dict()


def test_it_is_the_loss_of_an_own_loop(tmp_path):
    model, trainer = trained(tmp_path, epochs=2)
    both, loss = towers(), GlobalContrastiveLoss(N, epsilon=1e-4)
    optimizer = torch.optim.SGD(both.parameters(), lr=0.5, momentum=0.9)
    for _ in range(2):
        for images, texts, ids in DataLoader(DATA, 8):
            value = loss(
                encode(both, images, texts),
                PairEmbeddings(REFERENCE.image[ids], REFERENCE.text[ids]),
                temperature=torch.tensor(0.1),
                sample_ids=ids,
                gamma=0.5,
            )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    assert_close(model.towers.state_dict(), both.state_dict())
    [averages] = [v for k, v in model.steering.pairs.state_dict().items() if "entries" in k]
    assert_close(averages, loss.averages.log_u.entries)
    assert trainer.callback_metrics["gamma"] == 0.5
    assert not any("entries" in name for name in model.state_dict())


def test_resumed_it_ends_as_if_never_interrupted(tmp_path):
    whole, _ = trained(tmp_path, epochs=2)
    _, trainer = trained(tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed, _ = trained(tmp_path, epochs=2, ckpt_path=tmp_path / "one.ckpt")
    assert_close(state_of(resumed), state_of(whole), rtol=0, atol=0)


def test_what_it_refuses(tmp_path):
    with pytest.raises(ValueError, match="accumulate_grad_batches must be 1"):
        trained(tmp_path, epochs=1, accumulate_grad_batches=2)
    with pytest.raises(RuntimeError, match="when the Trainer sets up"):
        _ = TinyModule().steering.pairs


class Stream(torch.utils.data.IterableDataset):
    """Data without a length, for as long as they are asked for."""

    def __iter__(self):
        while True:
            yield from DATA


@pytest.mark.parametrize(
    "objective",
    [CLIP(temperature=0.1), DRRHO, DRRhoCLIP(temperature=0.1)],
    ids=lambda it: it.method,
)
def test_data_without_a_length_take_max_steps(tmp_path, objective):
    model = TinyModule()
    reference = REFERENCE if objective.needs_reference else None
    model.steering = Steering(objective, num_samples=N, reference=reference)
    trainer = lightning.Trainer(max_steps=5, **options(tmp_path))
    trainer.fit(model, DataLoader(Stream(), 8))
    assert trainer.global_step == 5
    if objective == DRRhoCLIP(temperature=0.1):  # five steps of 8 of 16 samples: 2.5 epochs
        assert model.steering._gamma(4) == pytest.approx(recommended_gamma_min(2.5))


def test_the_length_of_a_training_without_end_is_asked_for(tmp_path):
    trainer = lightning.Trainer(max_epochs=-1, **options(tmp_path))
    with pytest.raises(ValueError, match="schedule of gamma needs the length .* max_steps"):
        trainer.fit(TinyModule(), DataLoader(DATA, 8))
