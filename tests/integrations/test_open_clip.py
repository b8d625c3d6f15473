"""open_clip's own training code with the steered loss."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from drrho.contrastive.memory.temperature import Learned
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import DistillationTerm
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP, GlobalContrastiveLoss
from drrho.contrastive.objectives.siglip import SigLIP
from drrho.contrastive.pairs import PairEmbeddings
from drrho.integrations.open_clip import DataWithIds, SteeredClipLoss
from drrho.integrations.pairs import SteeredPairs, logit_scale, set_logit_scale, whole_state
from drrho.reference.store import ReferenceEmbeddings

open_clip = pytest.importorskip("open_clip")
train_one_epoch = importlib.import_module("open_clip_train.train").train_one_epoch

N = 16
GAMMA = 0.5
DRRHO = DRRhoCLIP(temperature=0.1, gamma_min=GAMMA, gamma_schedule="constant")


def tiny_model(seed=1):
    torch.manual_seed(seed)
    return open_clip.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 8, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8},
        text_cfg={"context_length": 4, "vocab_size": 12, "width": 16, "heads": 2, "layers": 1},
        output_dict=True,
    )


def draw():
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(N, 3, 8, 8, generator=generator)
    texts = torch.randint(1, 12, (N, 4), generator=generator)
    embeddings = torch.randn(2, N, 5, generator=generator)
    return images, texts, PairEmbeddings(*torch.nn.functional.normalize(embeddings, dim=-1))


IMAGES, TEXTS, REFERENCE = draw()
DATA = TensorDataset(IMAGES, TEXTS, torch.arange(N))


def batches_of(size, *, share=(0, 1)):
    """Batches of `size` pairs of all processes, of which this one has its share."""
    rank, world_size = share

    def batches_of_epoch(epoch):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
        own = order.view(-1, world_size, size // world_size)[:, rank].flatten().tolist()
        return DataLoader(DATA, size // world_size, sampler=own)

    return batches_of_epoch


def new_loss(config=DRRHO, *, reference=REFERENCE, steps=8):
    if config.method != "drrho_clip":
        reference = None
    return SteeredClipLoss(config, num_samples=N, reference=reference, steps=steps, epochs=4)


class Run:
    """A model in open_clip's trainer."""

    def __init__(self, loss, *, batch=8, accumulate=1, share=(0, 1)):
        self.model = tiny_model() if share == (0, 1) else DistributedDataParallel(tiny_model())
        self.loss = loss
        batches = batches_of(batch, share=share)
        self.data = DataWithIds(batches, loss, num_samples=N, num_batches=N // batch)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5, momentum=0.9)
        self.args = SimpleNamespace(
            device="cpu",
            precision="fp32",
            distill=False,
            accum_freq=accumulate,
            skip_scheduler=True,
            horovod=False,
            grad_clip_norm=None,
            rank=0,
            log_every_n_steps=100,
            world_size=1,
            batch_size=batch,
            wandb=False,
        )

    def train(self, *epochs):
        for epoch in epochs:
            train_one_epoch(
                self.model,
                {"train": self.data},
                self.loss,
                epoch,
                self.optimizer,
                scaler=None,
                scheduler=None,
                dist_model=None,
                args=self.args,
            )
        return self

    @property
    def state(self):
        return self.model.state_dict() | self.loss.state_dict()

    def parts(self):
        return self.model, self.optimizer, self.loss


def test_it_is_the_loss_of_an_own_loop():
    run = Run(new_loss()).train(0, 1)
    model, loss = tiny_model(), GlobalContrastiveLoss(N, epsilon=1e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for epoch in (0, 1):
        for images, texts, ids in batches_of(8)(epoch):
            out = model(images, texts)
            value = loss(
                PairEmbeddings(out["image_features"], out["text_features"]),
                PairEmbeddings(REFERENCE.image[ids], REFERENCE.text[ids]),
                temperature=torch.tensor(0.1),
                sample_ids=ids,
                gamma=GAMMA,
            )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    for name, weight in model.state_dict().items():
        assert_close(run.state[name], weight, msg=name)
    [averages] = [value for name, value in run.state.items() if name.endswith("entries")]
    assert_close(averages, loss.averages.log_u.entries)
    assert int(run.loss.step) == 4


def test_without_a_reference_and_learned_it_is_open_clips_loss():
    images, texts, ids = next(iter(batches_of(8)(0)))
    gradients = []
    for make in (lambda: new_loss(CLIP(temperature=Learned())), open_clip.loss.ClipLoss):
        model, loss = tiny_model(), make()
        if isinstance(loss, SteeredClipLoss):
            loss.expect(ids)
        loss(**model(images, texts), output_dict=True)["contrastive_loss"].backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert_close(*gradients)
    assert gradients[0]["logit_scale"] != 0


@pytest.mark.parametrize("method", [DRRhoCLIP, FastCLIP])
def test_accumulation_is_one_large_batch_and_one_update(method):
    config = method(temperature=0.1, gamma_min=GAMMA, gamma_schedule="constant")
    whole = Run(new_loss(config)).train(0, 1)
    parts = Run(new_loss(config), batch=4, accumulate=2).train(0, 1)
    assert_close(parts.state, whole.state, rtol=1e-4, atol=1e-5)
    assert int(parts.loss.step) == 4


def test_resumed_it_ends_as_if_never_interrupted(tmp_path):
    whole = Run(new_loss()).train(0, 1).state
    first = Run(new_loss()).train(0)
    torch.save([part.state_dict() for part in first.parts()], tmp_path / "epoch_1.pt")
    resumed = Run(new_loss())
    for part, state in zip(resumed.parts(), torch.load(tmp_path / "epoch_1.pt"), strict=True):
        part.load_state_dict(state)
    assert_close(resumed.train(1).state, whole, rtol=0, atol=0)
    without = Run(new_loss())
    model, optimizer, _ = torch.load(tmp_path / "epoch_1.pt")
    without.model.load_state_dict(model)
    without.optimizer.load_state_dict(optimizer)
    assert not torch.equal(without.train(1).state["text_projection"], whole["text_projection"])


def share_of_two_processes(folder, *, rank):
    """What test_hugging_face.py's two processes run: one start for all trainers."""
    run = Run(new_loss(), share=(rank, 2)).train(0, 1)
    torch.save(run.model.module.state_dict() | whole_state(run.loss), folder / f"{rank}.pt")


class HalfAStore:
    """Has embeddings of the even samples."""

    def gather(self, sample_ids):
        present = sample_ids % 2 == 0
        image, text = (
            rows[sample_ids].where(present[:, None], torch.tensor(0.0)) for rows in REFERENCE
        )
        return ReferenceEmbeddings(image=image, text=text, present=present)


def test_pairs_without_a_reference_are_left_out():
    images, texts, ids = next(iter(batches_of(8)(0)))
    values, states = [], []
    for reference, rows in ((HalfAStore(), ids >= 0), (REFERENCE, ids % 2 == 0)):
        loss, model = new_loss(reference=reference), tiny_model()
        loss.expect(ids[rows])
        out = model(images[rows], texts[rows])
        values.append(loss(**out))
        states.append(loss.state_dict())
    assert_close(values[0], values[1])
    assert_close(*states)


def test_batches_may_be_dictionaries():
    loss = new_loss()
    batches = [{"image": IMAGES, "text": TEXTS, "sample_id": torch.arange(N)}]
    data = DataWithIds(lambda _: batches, loss, num_samples=N, num_batches=1)
    [batch] = data.dataloader
    assert batch.keys() == {"image", "text"}
    assert loss(**tiny_model()(**batch)).isfinite()
    with pytest.raises(ValueError, match="no ids as 'sample_id', only image"):
        list(DataWithIds(lambda _: [batch], loss, num_samples=N, num_batches=1))
    with pytest.raises(ValueError, match="images, texts and sample ids, got 2"):
        list(DataWithIds(lambda _: [(IMAGES, TEXTS)], loss, num_samples=N, num_batches=1))


def test_rows_and_ids_that_do_not_fit_are_an_error():
    loss, out = new_loss(), tiny_model()(IMAGES, TEXTS)
    with pytest.raises(ValueError, match="16 pairs and the ids of 0"):
        loss(**out)
    loss.expect(torch.arange(8))
    with pytest.raises(ValueError, match="16 pairs and the ids of 8"):
        loss(**out)


def test_what_a_host_cannot_give_is_refused():
    def refused(match, objective):
        with pytest.raises(ValueError, match=match):
            SteeredPairs(objective, num_samples=N)

    refused("CLIP, FastCLIP or DRRhoCLIP", SigLIP())
    term = DistillationTerm(teacher_temperatures=(0.01,))
    refused("without distillation", CLIP(distillation=term))
    refused("constant or learned", CLIP(temperature=Learned(per_direction=True)))
    refused("no effect but by its kind", CLIP(temperature=Learned(initial=0.02)))
    refused("got none for 'drrho_clip'", DRRhoCLIP())
    with pytest.raises(ValueError, match="row for each of the 17 samples, got 16"):
        SteeredPairs(DRRHO, num_samples=17, reference=REFERENCE)


def test_the_logit_scale_of_a_model():
    model = tiny_model()
    set_logit_scale(model, 0.02)
    assert_close(logit_scale(model).exp().item(), 50.0)
    with pytest.raises(ValueError, match="must be positive and finite, got 0"):
        set_logit_scale(model, 0)
    with pytest.raises(ValueError, match="Linear has no parameter `logit_scale`"):
        set_logit_scale(torch.nn.Linear(1, 1), 1.0)


@pytest.mark.skipif(
    importlib.util.find_spec("open_clip.task") is None,
    reason="this open_clip has no tasks; they come with version 4",
)
def test_a_task_of_open_clip_4():
    from open_clip.task import CLIPTask  # noqa: PLC0415

    loss = new_loss()
    task = CLIPTask(tiny_model(), loss=loss).train()
    data = DataWithIds(batches_of(8), loss, num_samples=N, num_batches=2)
    losses = task(*next(iter(data)))
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert int(loss.step) == 1
