"""Reads a stream with workers while its whole process group is signalled: see test_loading.py.

Prints the workers' process ids, then a line for each thing that went well.
"""

import multiprocessing
import os
import signal
import sys
import time
from functools import partial

from tests.data.tar_files import to_tensor, to_tokens

from drrho.data.indexing import index_shards
from drrho.data.loading import Loading, Position, training_batches

say = partial(print, flush=True)
batches = training_batches(
    index_shards(sys.argv[1]),
    to_tensor,
    tokenizer=to_tokens,
    config=Loading(batch_size=4, workers=2),
    position=Position(seed=0),
)
for _ in range(4):  # two from each: both workers are past their start
    next(batches)
say(*(worker.pid for worker in multiprocessing.active_children()))
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)  # in this process; its workers are on their own
    os.killpg(0, number)
time.sleep(0.5)
for _ in range(6):
    next(batches)
say("read on")
if sys.argv[2] == "close":
    started = time.monotonic()
    batches.close()  # type: ignore[attr-defined]
    say("closed after", time.monotonic() - started)
elif sys.argv[2] == "wait":
    signal.pause()
