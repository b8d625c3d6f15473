"""Every objective on K processes is that of one process, and so is its state, saved and read."""

import warnings
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from drrho.contrastive.accumulation import encode_in_micro_batches
from drrho.contrastive.memory.temperature import Learned, PerSample
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import Distillation, DistillationTerm
from drrho.contrastive.objectives.gist import GIST
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.objectives.siglip import SigLIP
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles.tiling import JOINT
from tests.processes import run

NUM_PAIRS, NUM_SAMPLES, NUM_STEPS = 14, 21, 3
SHARES = {1: [14], 2: [5, 9], 4: [4, 0, 9, 1]}
CONFIGS = {
    "clip": CLIP(temperature=Learned()),
    "siglip": SigLIP(temperature=Learned(initial=0.1)),
    "gist": GIST(temperature=Learned(initial=0.1)),
    "gist, of both": GIST(directions="both", margin=0.1, margin_strategy="relative"),
    "isogclr": FastCLIP(temperature=PerSample(), rho=0.5, gamma_min=0.6, gamma_schedule="constant"),
    "fastclip v2": FastCLIP(
        temperature=PerSample(rule="adam"), rho=0.5, times_temperature=False, gamma_min=0.6
    ),
    "drrho, per direction": DRRhoCLIP(temperature=Learned(per_direction=True), rho=0.5),
    "drrho, per sample, and teachers": DRRhoCLIP(
        temperature=PerSample(),
        rho=0.5,
        distillation=DistillationTerm(teacher_temperatures=(0.05, 0.1)),
    ),
    "distillation": Distillation(temperature=Learned(), teacher_temperatures=(0.05, 0.1)),
}


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs_of(seed, dim, rows):
    return PairEmbeddings(
        *(normalize(e[rows], dim=1) for e in random(2, NUM_PAIRS, dim, seed=seed))
    )


class Towers(torch.nn.Module):
    """Two linear towers behind one forward pass, as DistributedDataParallel wants it."""

    def __init__(self):
        super().__init__()
        self.image = torch.nn.Parameter(random(8, 6, seed=1))
        self.text = torch.nn.Parameter(random(9, 6, seed=2))

    def forward(self, pairs):
        image, text = pairs
        return PairEmbeddings(
            *(normalize(e, dim=1) for e in (image @ self.image, text @ self.text))
        )


def sample_ids(step):
    """Some of the data set; the last step shows sample 3 three times, wherever its pairs lie."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randperm(NUM_SAMPLES, generator=generator)[:NUM_PAIRS]
    if step == NUM_STEPS - 1:
        ids[torch.tensor([0, 6, 13])] = 3
    return ids


def make_objective(config):
    # Distillation beside another objective is in separate passes.
    impl = JOINT if isinstance(config, Distillation) else "auto"
    return ContrastiveObjective(config, num_samples=NUM_SAMPLES, impl=impl).double()


def train(config, rows, *, micro_batch=None):
    """Losses, gradients, diagnostics and the final state of some steps with the pairs `rows`."""
    towers, objective = Towers(), make_objective(config)
    encode = DistributedDataParallel(towers) if dist.is_initialized() else towers
    optimiser = torch.optim.SGD([*towers.parameters(), *objective.parameters()], lr=0.1)
    history = []
    for step in range(NUM_STEPS):
        inputs = [random(NUM_PAIRS, dim, seed=10 + step)[rows] for dim in (8, 9)]
        parts = zip(*(i.split(micro_batch or max(1, len(rows))) for i in inputs), strict=True)
        target = encode_in_micro_batches(encode, list(parts))
        value = objective(
            target,
            pairs_of(3, 4, rows) if config.needs_reference else None,
            sample_ids=sample_ids(step)[rows],
            gamma=0.6,
            teachers=[pairs_of(5 + k, 4 + k, rows) for k in range(config.num_teachers)],
            diagnose=True,
        )
        optimiser.zero_grad()
        value.loss.backward()
        optimiser.step()
        parameters = [*towers.parameters(), *objective.parameters()]
        history += [value.loss.detach(), *value.metrics.values()]
        history += [p.grad.clone() for p in parameters if p.grad is not None]
    return history, objective


def whole_state(objective):
    """The state of all samples, on every process."""
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value.detach()
        for name, value in objective.state_dict().items()
    }


def answers_of(rank, world, folder, saved_by):
    """They also read what `saved_by` processes saved, and save theirs."""
    answers = {}
    rows = torch.arange(NUM_PAIRS).split(SHARES[world])[rank]
    for name, config in CONFIGS.items():
        history, objective = train(config, rows)
        answers[name] = (history, whole_state(objective))
        if 0 not in SHARES[world]:
            answers[name + " in micro-batches"] = (
                train(config, rows, micro_batch=2)[0],
                whole_state(objective),
            )
        resharded = make_objective(config)
        state = resharded.state_dict()
        dcp.load(state, checkpoint_id=f"{folder}/{saved_by}/{name}")
        resharded.load_state_dict(state)
        answers["resharded " + name] = whole_state(resharded)
        dcp.save(objective.state_dict(), checkpoint_id=f"{folder}/{world}/{name}")
        from_whole = make_objective(config)
        from_whole.load_state_dict(answers[name][1])
        assert_same(whole_state(from_whole), answers[name][1])
    return answers


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@contextmanager
def single_process():
    """The checkpoint library says so when there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@pytest.fixture(scope="module")
def alone(folder):
    """History and state of one process without a group, whose states are saved too."""
    answers = {}
    for name, config in CONFIGS.items():
        history, objective = train(config, torch.arange(NUM_PAIRS))
        answers[name] = (history, whole_state(objective))
        with single_process():
            dcp.save(objective.state_dict(), checkpoint_id=folder / "1" / name)
    return answers


def assert_all_close(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_processes_are_one_process_and_their_state_moves_between_numbers_of_them(alone, folder):
    saved_by = 1
    for world in (2, 4):
        answers = run(answers_of, world, folder, saved_by, world=world)
        for name, (history, state) in alone.items():
            for answer in answers:
                found, found_state = answer[name]
                assert_all_close(found, history)
                assert_all_close(found_state.values(), state.values())
                if name + " in micro-batches" in answer:
                    assert_all_close(answer[name + " in micro-batches"][0], history)
                # What another number of processes saved is read exactly.
                assert_all_close(answer["resharded " + name].values(), state.values())
        saved_by = world
    for name, (_, state) in alone.items():
        objective = make_objective(CONFIGS[name])
        read = objective.state_dict()
        with single_process():
            dcp.load(read, checkpoint_id=folder / "4" / name)
        objective.load_state_dict(read)
        assert_all_close(whole_state(objective).values(), state.values())
