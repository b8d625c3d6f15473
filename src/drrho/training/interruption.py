"""Deferred signals: a job that is asked to stop finishes its step and saves a checkpoint."""

import signal
import threading
from types import FrameType
from typing import Any

# SIGUSR1 is what Slurm's --signal is usually asked to send; there is none on Windows.
SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGUSR1")
    if name in signal.Signals.__members__
)
# EX_TEMPFAIL of sysexits.h: nothing is wrong, start it again.
REQUEUE = 75


class TrainingInterrupted(Exception):
    """Training stopped before its end because of a signal, after saving a checkpoint.

    The program's `exit_status` is `REQUEUE` where a scheduler asked, and 130 after Ctrl-C.
    """

    def __init__(self, *, step: int, steps: int, received: signal.Signals) -> None:
        super().__init__(
            f"{received.name} received: training stopped after step {step} of {steps} and saved a "
            "checkpoint; start it again in the same folder to continue"
        )
        self.received = received
        self.exit_status = 128 + received if received == signal.SIGINT else REQUEUE


class DeferredSignals:
    """Recorder of Ctrl-C, SIGTERM and SIGUSR1 (a scheduler's warnings), not acted on at once.

    The second signal acts as usual, so an impatient user is never locked out. A signal that this
    process was started to ignore (`nohup`, or `&` in a script) stays ignored. Outside the main
    thread Python forbids signal handlers; then nothing is deferred.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}  # handlers have no public type

    def __enter__(self) -> "DeferredSignals":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_error: object) -> None:
        self._restore()

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
