"""Training loop: batches in, optimiser steps, metrics and checkpoints out."""

import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor, nn

from drrho.runtime.files import write_json
from drrho.runtime.progress import Progress
from drrho.runtime.randomness import preserved_generators
from drrho.training.config import Training, require_precision
from drrho.training.finite import StepRecord, raise_if_not_finite
from drrho.training.interruption import DeferredSignals, TrainingInterrupted
from drrho.training.log import MetricsLog
from drrho.training.optimizer import logged_rates
from drrho.training.schedules import Schedule
from drrho.training.state import TrainingState
from drrho.training.step import AnyBatch, Objective, StepResult, take_step

Evaluator = Callable[[], Mapping[str, float]]
MOST_SHOWN = 4  # scores of an evaluation that are told in a line
# Metrics of the progress line, with their labels there.
SHOWN = {
    "loss": "loss",
    "peak_device_memory_gib": "device GiB",
    "time/data_wait": "data wait",
    "time/loss": "loss time",
}


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Metrics and totals of a finished run.

    Attributes:
        metrics: metrics of the last step and of the last evaluation.
        samples_seen: samples that entered a step, repetitions counted.
        seconds: wall time of all resumed parts.
    """

    metrics: Mapping[str, float]
    samples_seen: int
    seconds: float


def train(
    objective: Objective[AnyBatch],
    batches: Iterator[AnyBatch],
    *,
    state: TrainingState,
    config: Training,
    learning_rate: Schedule,
    evaluators: Mapping[str, Evaluator],
) -> TrainingResult:
    """Train from `state.step` to `state.until`, or to `config.num_steps`.

    A run that was killed and resumed computes what the uninterrupted run computes, bit for bit on
    one machine's CPU. On several processes each calls this with its share of every batch.

    Args:
        batches: endless iterator that begins with the batch of step `state.step`.
        state: new or resumed state, changed in place.
        config: length of the run, precision, logging and checkpoints.
        learning_rate: step -> rate; each group of the optimiser gets it times its `lr_scale`.
        evaluators: name -> function, called with the model in evaluation mode and without
            gradients; logged as `name/metric`.

    Raises:
        NotFiniteError: the loss or a gradient is nan or infinite, found at the latest before the
            next row of metrics or checkpoint is written.
        TrainingInterrupted: SIGINT, SIGTERM or SIGUSR1 came to any process; the step or the
            evaluation was finished and the state saved.
        OSError: a checkpoint could not be written; those before it remain.
        ValueError: the arguments contradict each other, or the batches ended.
    """
    _require_consistent(state, config, evaluators=evaluators)
    started = time.perf_counter() - state.seconds
    first = state.processes.is_first
    state.model.train()
    end = config.num_steps if state.until is None else state.until
    run = _Run(objective, batches, state, config, learning_rate, evaluators, end)
    with (
        ExitStack() as at_the_end,
        MetricsLog(
            state.folder,
            start_step=state.step,
            writes=first,
            trackers=(*config.trackers, *state.trackers),
            config=state.config,
        ) as log,
        Progress(
            f"train {state.folder.name}",
            total=end,
            unit="steps",
            initial=state.step,
            visible=first,
        ) as progress,
        DeferredSignals() as signals,
    ):
        at_the_end.callback(state.wait_until_saved)  # whatever ends the run
        row = _loop(run, log, progress=progress, signals=signals, started=started)
    _report_skipped(state)
    state.seconds = time.perf_counter() - started
    return TrainingResult(metrics=row, samples_seen=state.samples_seen, seconds=state.seconds)


@dataclass(frozen=True)
class _Run(Generic[AnyBatch]):
    """The arguments of `train`; `end` is the step to stop after."""

    objective: Objective[AnyBatch]
    batches: Iterator[AnyBatch]
    state: TrainingState
    config: Training
    learning_rate: Schedule
    evaluators: Mapping[str, Evaluator]
    end: int


def _loop(
    run: _Run, log: MetricsLog, *, progress: Progress, signals: DeferredSignals, started: float
) -> dict[str, float]:
    """Take all remaining steps, and return the last row of metrics."""
    state, config = run.state, run.config
    unchecked: list[StepRecord] = []
    saved, waited, logged_at = False, 0.0, state.seconds
    while True:
        # At the top, so that a run killed during an evaluation repeats it when resumed.
        row, received = _log_and_evaluate(run, log, progress=progress, signals=signals)
        if received is not None:  # in the last step, or in the evaluation after it
            if not saved:
                raise_if_not_finite(unchecked, last_checkpoint=state.last_checkpoint)
                state.save(keep=config.keep_checkpoints)
            raise TrainingInterrupted(step=state.step, steps=config.num_steps, received=received)
        if state.step == run.end:
            if not saved and state.step < config.num_steps:
                raise_if_not_finite(unchecked, last_checkpoint=state.last_checkpoint)
                state.save(keep=config.keep_checkpoints)
            return row

        logged = _is_due(state.step + 1, config.log_every, config)
        saved = _is_due(state.step + 1, config.checkpoint_every, config)
        asked = time.perf_counter()
        batch = _next_batch(run.batches, step=state.step)
        waited += time.perf_counter() - asked
        result, record = take_step(
            run.objective,
            batch,
            state=state,
            config=config,
            learning_rate=run.learning_rate,
            diagnose=logged,
        )
        unchecked.append(record)
        if logged or saved:
            raise_if_not_finite(unchecked, last_checkpoint=state.last_checkpoint)
            unchecked.clear()
        state.seconds = time.perf_counter() - started
        state.metrics = {}
        if logged:
            state.add_up()
            own = {
                "learning_rate": run.learning_rate(record.step),
                **logged_rates(state.optimizer),
                "time/data_wait": waited / (state.seconds - logged_at),
            }
            state.metrics = _metrics(state, result, record, own=own)
            waited, logged_at = 0.0, state.seconds
        if saved:
            state.save(keep=config.keep_checkpoints)
        begins = progress.completed == progress.initial
        progress.advance(1, **_shown(state, result.loss if begins else None))
        if begins:
            progress.draw()


def _log_and_evaluate(
    run: _Run, log: MetricsLog, *, progress: Progress, signals: DeferredSignals
) -> tuple[dict[str, float], signal.Signals | None]:
    """Return the row of this step, and the signal that any process received, if any."""
    state = run.state
    received = _received(signals, state)
    if received is not None:
        return {}, received
    due = bool(run.evaluators) and _is_due(state.step, run.config.evaluate_every, run.config)
    evaluation = (
        state.processes.broadcast_object(evaluate(run.evaluators, state.model)) if due else {}
    )
    row = state.metrics | evaluation
    if row:
        log.write(row, step=state.step, samples=state.samples_seen, seconds=state.seconds)
    if due:
        progress.say(_evaluation_in_words(evaluation, state, run.config))
        _keep_best(evaluation, state, run.config)
        received = _received(signals, state)
    return row, received


def _evaluation_in_words(
    evaluation: Mapping[str, float], state: TrainingState, config: Training
) -> str:
    """The scores of an evaluation in a line: the mean reciprocal ranks or, without, the first."""
    ranks = {name: value for name, value in evaluation.items() if name.endswith("/mrr")}
    tops = {name: value for name, value in evaluation.items() if name.endswith("/top1")}
    shown = list((ranks or tops or evaluation).items())[:MOST_SHOWN]
    scores = ", ".join(f"{name} {value:.4f}" for name, value in shown)
    return f"{state.folder.name}, step {state.step:,} of {config.num_steps:,}: {scores}"


def _keep_best(evaluation: Mapping[str, float], state: TrainingState, config: Training) -> None:
    """Write the model into `folder/best` if no evaluation before was better."""
    if config.keep_best is None:
        return
    if config.keep_best not in evaluation:
        raise ValueError(
            f"keep_best = {config.keep_best!r} is no metric of the evaluations; there are "
            f"{sorted(evaluation)}"
        )
    value = evaluation[config.keep_best]
    if state.best and value <= state.best["value"]:
        return
    state.best = {"step": state.step, "value": value}
    assert state.export is not None
    state.export(state.folder / "best" / "model")
    if state.processes.is_first:
        write_json(state.folder / "best" / "best.json", {"metric": config.keep_best} | state.best)


def _received(signals: DeferredSignals, state: TrainingState) -> signal.Signals | None:
    """Return the signal that any process received, so that all stop after the same step."""
    number = state.processes.all_reduce_max(signals.received or 0)
    return signal.Signals(number) if number else None


def evaluate(evaluators: Mapping[str, Evaluator], model: nn.Module) -> dict[str, float]:
    """Run the evaluators, and restore the random generators and the model's modes.

    Returns:
        Values by `name/metric`.
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
    state: TrainingState, config: Training, *, evaluators: Mapping[str, Evaluator]
) -> None:
    require_precision(config.precision, next(state.model.parameters()).device)
    state.require_saveable()
    if config.evaluate_every is not None and not evaluators:
        raise ValueError(
            f"evaluate_every = {config.evaluate_every} has no effect without evaluators; "
            "leave it out or give evaluators"
        )
    if config.keep_best is not None and (not evaluators or state.export is None):
        raise ValueError(
            f"keep_best = {config.keep_best!r} needs evaluators and a state that can export"
        )
    if state.step > config.num_steps:
        raise ValueError(
            f"the run is already at step {state.step}, beyond steps = {config.num_steps}; "
            "raise steps or train in another folder"
        )
    if state.until is not None and not state.step <= state.until <= config.num_steps:
        raise ValueError(
            f"until must lie between the run's step {state.step} and its last, "
            f"{config.num_steps}, got {state.until}"
        )


def _is_due(step: int, every: int | None, config: Training) -> bool:
    """Whether something done every so many steps, and at the end, is due after `step` steps."""
    return step == config.num_steps or (every is not None and step > 0 and step % every == 0)


def _next_batch(batches: Iterator[AnyBatch], *, step: int) -> AnyBatch:
    # A DataLoader seeds its workers from torch's generator whenever an iterator is made, which
    # a resumed run does at other steps than an uninterrupted one.
    with preserved_generators():
        batch = next(batches, None)
    if batch is None:
        raise ValueError(f"the batches ended at step {step}; training needs an endless iterator")
    return batch


def _metrics(
    state: TrainingState, result: StepResult, record: StepRecord, *, own: dict[str, float]
) -> dict[str, float]:
    """Build the row of a logged step: the loop's own values, then the objective's."""
    values = {**record.values, **own, "skipped_samples": state.skipped.total()}
    if state.scaler is not None:
        values["gradient_scale"] = state.scaler.get_scale()
    if state.skipped_steps:
        values["skipped_steps"] = state.skipped_steps
    if result.loss.is_cuda:
        peak = torch.cuda.max_memory_allocated(result.loss.device)
        values["peak_device_memory_gib"] = peak / 2**30
    taken = values.keys() & result.metrics.keys()
    if taken:
        raise ValueError(
            f"the objective's metrics must not be called {sorted(taken)}: the loop logs those"
        )
    return {
        name: float(value.detach() if isinstance(value, Tensor) else value)
        for name, value in (values | dict(result.metrics)).items()
    }


def _shown(state: TrainingState, first_loss: Tensor | None) -> dict[str, float]:
    """Choose the values of the progress line, which keeps the last ones between logged steps.

    The first loss is shown whether it is logged or not: it tells at once that something is wrong.
    """
    metrics = state.metrics
    shown = {label: metrics[name] for name, label in SHOWN.items() if name in metrics}
    if first_loss is not None and "loss" not in shown:
        shown["loss"] = float(first_loss.detach())
    return shown


def _report_skipped(state: TrainingState) -> None:
    if not state.processes.is_first:
        return
    if state.skipped_steps:
        warnings.warn(
            f"{state.skipped_steps:,} of {state.step:,} steps were left out because the loss or a "
            "gradient was not finite",
            stacklevel=3,
        )
    if state.skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in state.skipped.most_common())
        total = state.skipped.total()
        warnings.warn(
            f"{total:,} of {total + state.samples_seen:,} samples could not be used, "
            f"repetitions counted: {reasons}",
            stacklevel=3,
        )
