"""Worker processes that load batches, in order, and what is said when one is lost."""

import atexit
import os
import signal
from collections.abc import Iterable, Iterator
from ctypes import c_bool
from functools import partial
from multiprocessing.sharedctypes import RawValue
from types import FrameType

import torch
from torch.utils.data import DataLoader, Dataset


def load_in_order(dataset: Dataset, plan: Iterator, *, workers: int) -> Iterable:
    """Load the items of a data set in the order of the plan, whatever the number of workers."""
    exiting = RawValue(c_bool, False)
    if workers > 0:
        # Before the function that multiprocessing registered: it ends workers, and waits for them.
        atexit.register(setattr, exiting, "value", True)
    loader = DataLoader(
        dataset,
        sampler=plan,
        batch_size=None,  # an item is a batch already
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or it would draw from the global one
        worker_init_fn=partial(_outlive_signals, exiting),
    )
    return loader if workers == 0 else _from_workers(loader)


def _from_workers(loader: Iterable) -> Iterator:
    """Yield what workers load; where one of them was lost, say so in a sentence.

    Raises:
        OSError: a worker was killed, or the shared memory for batches is full.
    """
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if (sentence := loss_of_worker(str(error))) is None:
                raise
            raise OSError(sentence) from error
        yield batch


def loss_of_worker(message: str) -> str | None:
    """Explain an error that torch raises for a worker that is gone; None for other errors."""
    if any(sign in message for sign in ("shared memory", "Bus error", "No space left", "shm")):
        return (
            "the shared memory (/dev/shm) in which worker processes hand over batches is full; "
            "enlarge it (docker run --shm-size=8g), or lower loading.workers or loading.batch_size"
        )
    if "DataLoader worker" in message and "Traceback" not in message:
        return (
            "a worker process that loads data was killed, most often for memory; lower "
            "loading.workers, or give the job more memory"
        )
    return None


def _outlive_signals(exiting: c_bool, _worker: int) -> None:
    """Ignore, in a worker, the signals of a scheduler, which the main process handles.

    The main process ends its workers when it closes the stream, or with SIGTERM when it exits
    (`exiting`, shared memory); a worker whose main process was killed notices within 5 seconds
    (torch's watchdog).
    """

    def exit_if_asked(_number: int, _frame: FrameType | None) -> None:
        if exiting.value:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, exit_if_asked)
