"""The training loop: batches in, optimiser steps, metrics and checkpoints out.

It knows no loss. What is minimised, how the learning rate moves and what is evaluated are
arguments; where training stands is `drrho.training.state`.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from drrho.progress import Progress
from drrho.randomness import preserved_generators, restore_generators
from drrho.training.config import TrainingConfig, require_precision
from drrho.training.finite import StepRecord, raise_if_not_finite
from drrho.training.interruption import DeferredSignals, TrainingInterrupted
from drrho.training.log import MetricsLog
from drrho.training.schedules import Schedule
from drrho.training.state import TrainingState
from drrho.training.step import AnyBatch, Objective, StepResult, take_step

Evaluator = Callable[[], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The end of a finished run.

    Attributes:
        metrics: of the last step and of the last evaluation.
        samples_seen: samples that entered a step, repetitions counted.
        seconds: wall time, all resumed parts together.
    """

    metrics: Mapping[str, float]
    samples_seen: int
    seconds: float


def train(
    objective: Objective[AnyBatch],
    batches: Iterator[AnyBatch],
    *,
    state: TrainingState,
    config: TrainingConfig,
    learning_rate: Schedule,
    evaluators: Mapping[str, Evaluator],
) -> TrainingResult:
    """Trains from `state.step` to `config.steps`.

    A run that was killed and resumed computes what the uninterrupted run computes, bit for bit on
    one machine's CPU: everything the next step depends on is in the checkpoint, and neither the
    fetching of batches nor evaluation moves the random generators.

    Args:
        objective: forward pass and loss.
        batches: endless, the first for step `state.step`.
        state: new, or resumed; changed in place.
        learning_rate: step -> rate; each group of the optimiser gets it times its `lr_scale`.
        evaluators: name -> function, called with the model in evaluation mode and without
            gradients; logged as `name/metric`.

    Raises:
        NotFiniteError: the loss or a gradient is nan or infinite, found at the latest before the
            next row of metrics or checkpoint is written.
        TrainingInterrupted: SIGINT or SIGTERM came, be it in the last evaluation; the step or the
            evaluation was finished and the state saved.
        ValueError: the arguments contradict each other, or the batches ended.
    """
    _require_consistent(state, config, evaluators=evaluators)
    if state.generators is not None:
        restore_generators(state.generators)
    started = time.perf_counter() - state.seconds
    unchecked: list[StepRecord] = []
    row: dict[str, float] = {}
    saved = False
    state.model.train()
    with (
        MetricsLog(state.folder, start_step=state.step) as log,
        Progress(
            f"train {state.folder.name}", total=config.steps, unit="steps", initial=state.step
        ) as progress,
        DeferredSignals() as signals,
    ):
        while True:
            # At the top, so that a run killed during an evaluation repeats it when resumed.
            if signals.received is None:
                row = state.metrics | _due_evaluation(evaluators, state, config)
                if row:
                    log.write(
                        row, step=state.step, samples=state.samples_seen, seconds=state.seconds
                    )
            if signals.received is not None:  # in the last step, or in the evaluation after it
                if not saved:
                    raise_if_not_finite(unchecked, checkpoints=state.checkpoints)
                    state.save(keep=config.keep_checkpoints)
                raise TrainingInterrupted(
                    step=state.step, steps=config.steps, received=signals.received
                )
            if state.step == config.steps:
                break

            logged = _is_due(state.step + 1, config.log_every, config)
            batch = _next_batch(batches, step=state.step)
            result, record = take_step(
                objective,
                batch,
                state=state,
                config=config,
                learning_rate=learning_rate,
                diagnose=logged,
            )
            unchecked.append(record)
            saved = _is_due(state.step, config.checkpoint_every, config)
            if logged or saved:
                raise_if_not_finite(unchecked, checkpoints=state.checkpoints)
                unchecked.clear()
            rate = learning_rate(record.step)
            state.metrics = _metrics(state, result, record, rate=rate) if logged else {}
            state.seconds = time.perf_counter() - started
            if saved:
                state.save(keep=config.keep_checkpoints)
            progress.advance(1, samples=state.samples_seen, **_shown(state.metrics))
    _report_skipped(state)
    state.seconds = time.perf_counter() - started
    return TrainingResult(metrics=row, samples_seen=state.samples_seen, seconds=state.seconds)


def evaluate(evaluators: Mapping[str, Evaluator], model: nn.Module) -> dict[str, float]:
    """Runs the evaluators and leaves no trace: not in the generators, not in the model's modes.

    Args:
        evaluators: name -> function that returns metric -> value.
        model: put in evaluation mode meanwhile; each of its modules gets back the mode it had.

    Returns:
        `name/metric` -> value.
    """
    modes = [(module, module.training) for module in model.modules()]
    metrics: dict[str, float] = {}
    model.eval()
    try:
        with torch.no_grad(), preserved_generators():
            for name, evaluator in evaluators.items():
                metrics |= {f"{name}/{key}": float(v) for key, v in evaluator().items()}
    finally:
        for module, mode in modes:
            module.training = mode
    return metrics


def _require_consistent(
    state: TrainingState, config: TrainingConfig, *, evaluators: Mapping[str, Evaluator]
) -> None:
    require_precision(config.precision, next(state.model.parameters()).device)
    if config.evaluate_every is not None and not evaluators:
        raise ValueError(
            f"evaluate_every = {config.evaluate_every} has no effect without evaluators; "
            "leave it out or give evaluators"
        )
    if state.step > config.steps:
        raise ValueError(
            f"the run stands at step {state.step}, beyond steps = {config.steps}; "
            "raise steps or train in another folder"
        )


def _is_due(step: int, every: int | None, config: TrainingConfig) -> bool:
    """Whether something done every so many steps, and at the end, is done after `step` steps."""
    return step == config.steps or (every is not None and step > 0 and step % every == 0)


def _due_evaluation(
    evaluators: Mapping[str, Evaluator], state: TrainingState, config: TrainingConfig
) -> dict[str, float]:
    if not evaluators or not _is_due(state.step, config.evaluate_every, config):
        return {}
    return evaluate(evaluators, state.model)


def _next_batch(batches: Iterator[AnyBatch], *, step: int) -> AnyBatch:
    # A DataLoader seeds its workers from torch's generator whenever an iterator is made, which
    # a resumed run does at other steps than an uninterrupted one.
    with preserved_generators():
        batch = next(batches, None)
    if batch is None:
        raise ValueError(f"the batches ended at step {step}; training needs an endless iterator")
    return batch


def _metrics(
    state: TrainingState, result: StepResult, record: StepRecord, *, rate: float
) -> dict[str, float]:
    """The row of a logged step: the loop's own values, then the objective's."""
    own: dict[str, Tensor | float] = {
        **record.values,
        "learning_rate": rate,
        "skipped_samples": state.skipped.total(),
    }
    if result.loss.is_cuda:
        peak = torch.cuda.max_memory_allocated(result.loss.device)
        own["peak_device_memory_gib"] = peak / 2**30
    taken = own.keys() & result.metrics.keys()
    if taken:
        raise ValueError(
            f"the objective's metrics must not be called {sorted(taken)}: the loop logs those"
        )
    return {
        name: float(value.detach() if isinstance(value, Tensor) else value)
        for name, value in (own | dict(result.metrics)).items()
    }


def _shown(metrics: Mapping[str, float]) -> dict[str, float]:
    """What the progress line shows; it keeps showing the last values between logged steps."""
    names = ("loss", "peak_device_memory_gib")
    return {name: metrics[name] for name in names if name in metrics}


def _report_skipped(state: TrainingState) -> None:
    if state.skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in state.skipped.most_common())
        total = state.skipped.total()
        warnings.warn(
            f"{total:,} of {total + state.samples_seen:,} samples could not be used, "
            f"repetitions counted: {reasons}",
            stacklevel=3,
        )
