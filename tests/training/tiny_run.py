"""A training run of milliseconds in which everything that a checkpoint holds matters.

The step depends on torch's and NumPy's generators, on the loss's per-sample state and on the
optimiser's moments.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from drrho.training.config import Training
from drrho.training.loop import TrainingResult, train
from drrho.training.optimizer import Optimizer, build_optimizer, learning_rate_schedule
from drrho.training.state import TrainingState
from drrho.training.step import StepResult

SAMPLES = 64
BATCH_SIZE = 6
CONFIG = Training(
    steps=40,
    optimizer=Optimizer(
        learning_rate=0.05, warmup_steps=4, weight_decay=0.1, temperature_lr_scale=0.25
    ),
    max_grad_norm=1.0,
    log_every=3,
    checkpoint_every=5,
    evaluate_every=10,
)


@dataclass(frozen=True)
class TinyBatch:
    sample_ids: Tensor
    inputs: Tensor
    skipped: tuple[tuple[int, str], ...] = ()

    def to(self, device: torch.device) -> "TinyBatch":
        return TinyBatch(self.sample_ids, self.inputs.to(device), self.skipped)


class TinyLoss(nn.Module):
    """A squared error weighted by a remembered loss per sample and a learnable temperature."""

    remembered: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("remembered", torch.ones(SAMPLES))

    def forward(self, outputs: Tensor, sample_ids: Tensor) -> Tensor:
        losses = (outputs.float() - 1).square().mean(dim=1)
        state = 0.7 * self.remembered[sample_ids] + 0.3 * losses.detach()
        self.remembered[sample_ids] = state
        return (losses / state).mean() + (self.temperature - 0.1).square()


class TinyObjective:
    """Counts its calls and does what a test asks for at a step: `at[step](loss)`."""

    def __init__(self, state: TrainingState, *, seconds_per_step: float = 0.0) -> None:
        self.state = state
        self.seconds_per_step = seconds_per_step
        self.at = {}
        self.diagnosed = []

    def __call__(self, batch: TinyBatch, *, step: int, diagnose: bool) -> StepResult:
        time.sleep(self.seconds_per_step)
        if diagnose:
            self.diagnosed.append(step)
        assert self.state.loss is not None
        noise = 1 + 0.1 * np.random.rand()
        loss = noise * self.state.loss(self.state.model(batch.inputs), batch.sample_ids)
        if step in self.at:
            loss = self.at[step](loss)
        return StepResult(
            loss=loss, num_samples=len(batch.sample_ids), metrics={"noise": float(noise)}
        )


def tiny_batches(start_step: int) -> Iterator[TinyBatch]:
    """A pure function of the step, ragged at times."""
    step = start_step
    while True:
        generator = torch.Generator().manual_seed(step)
        size = BATCH_SIZE - step % 2
        ids = torch.randperm(SAMPLES, generator=generator)[:size]
        yield TinyBatch(ids, torch.randn(size, 4, generator=generator))
        step += 1


def tiny_state(folder: Path, config: Training = CONFIG) -> TrainingState:
    torch.manual_seed(0)
    np.random.seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.LayerNorm(8), nn.Linear(8, 3))
    loss = TinyLoss()
    return TrainingState(
        folder=folder,
        model=model,
        loss=loss,
        optimizer=build_optimizer(model, config.optimizer, loss=loss),
        config={"training": {"steps": config.steps}, "data": {"workers": 2}},
    )


def tiny_evaluators(state: TrainingState):
    """An evaluator that draws from the generators: training must not notice."""

    def evaluator() -> dict[str, float]:
        np.random.rand()
        torch.rand(3)
        return {"output": float(state.model(torch.ones(1, 4)).sum())}

    return {"val": evaluator}


def tiny_train(
    state: TrainingState,
    objective: TinyObjective | None = None,
    *,
    config: Training = CONFIG,
    **changed,
) -> TrainingResult:
    arguments = {
        "batches": tiny_batches(state.step),
        "learning_rate": learning_rate_schedule(config.optimizer, steps=config.steps),
        "evaluators": tiny_evaluators(state) if config.evaluate_every else {},
        **changed,
    }
    objective = TinyObjective(state) if objective is None else objective
    return train(objective, state=state, config=config, **arguments)


def resume_slowly(folder: Path, seconds_per_step: float) -> None:
    run = tiny_state(folder)
    run.resume()
    tiny_train(run, TinyObjective(run, seconds_per_step=seconds_per_step))
