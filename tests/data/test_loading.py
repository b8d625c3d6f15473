"""What a batch holds, and that it depends on the step and on nothing else."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from tests.data.tar_files import (
    BROKEN,
    READABLE,
    numbers_shown,
    pair,
    picture,
    real_data,
    to_tensor,
    to_tokens,
    with_broken_image,
    write_flawed_set,
    write_shard,
)
from tests.processes import PATIENCE

from drrho.data import loading
from drrho.data.batch import Batch
from drrho.data.examples import evaluation_batches
from drrho.data.indexing import index_shards
from drrho.data.loading import (
    Loading,
    NothingReadable,
    Position,
    epoch_order,
    steps_per_epoch,
    training_batches,
)
from drrho.data.reading import workers
from drrho.data.views import Views

ROOT = Path(__file__).parents[2]


@pytest.fixture
def manifest(tmp_path):
    return index_shards(write_flawed_set(tmp_path / "flawed"))


def jitter(image):
    """A random transform that draws from all three generators."""
    return to_tensor(image) + torch.rand(()) + np.random.rand() + random.random()


def train(
    manifest,
    *,
    transform=to_tensor,
    workers=0,
    start_step=0,
    seed=0,
    batch_size=4,
    window=2,
    share=(0, 1),
):
    return training_batches(
        manifest,
        transform,
        tokenizer=to_tokens,
        config=Loading(batch_size=batch_size, shuffle_window=window, workers=workers),
        position=Position(seed=seed, step=start_step, share=share),
    )


def assert_same(batches, others):
    for one, other in zip(batches, others, strict=True):
        assert torch.equal(one.sample_ids, other.sample_ids)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.tokens, other.tokens)
        assert one.skipped == other.skipped


def test_image_and_caption_belong_to_the_id_with_flaws_in_between(manifest):
    for batch in islice(train(manifest), 9):
        ids = batch.sample_ids.tolist()
        assert numbers_shown(batch.images) == ids
        assert batch.tokens[:, 1].tolist() == ids
        assert batch.images.dtype == torch.float32


def test_an_epoch_is_its_order_without_the_ragged_end(manifest):
    steps = steps_per_epoch(manifest, batch_size=5)
    batches = list(islice(train(manifest, batch_size=5), 2 * steps))
    for epoch in range(2):
        order = epoch_order(manifest, seed=0, epoch=epoch, shuffle_window=2).tolist()
        for step, batch in enumerate(batches[epoch * steps : (epoch + 1) * steps]):
            planned = order[5 * step : 5 * step + 5]
            skipped = dict(batch.skipped)
            assert batch.sample_ids.tolist() == [i for i in planned if i not in skipped]
            assert skipped == {i: BROKEN[i] for i in planned if i in BROKEN}


@pytest.mark.parametrize("start_step", [1, 3, 4, 11])
def test_a_resumed_stream_is_the_tail_of_the_uninterrupted_one(manifest, start_step):
    uninterrupted = islice(train(manifest, transform=jitter), start_step, start_step + 5)
    resumed = islice(train(manifest, transform=jitter, start_step=start_step), 5)
    assert_same(uninterrupted, resumed)


def test_the_number_of_workers_changes_nothing(manifest):
    alone = list(islice(train(manifest, transform=jitter), 7))
    assert_same(alone, islice(train(manifest, transform=jitter, workers=2), 7))


def shared_or_not(**fields):
    """A batch that says whether its images were in shared memory when it was made."""
    return Batch(**fields | {"skipped": ((0, str(fields["images"].is_shared())),)})


@pytest.mark.skipif(
    multiprocessing.get_all_start_methods()[0] != "fork", reason="workers do not inherit the patch"
)
@pytest.mark.parametrize("workers", [0, 1])
def test_workers_put_images_where_the_main_process_reads_them(manifest, monkeypatch, workers):
    """Otherwise each batch would be copied once more, which costs more than all else here."""
    monkeypatch.setattr(loading, "Batch", shared_or_not)
    for batch in islice(train(manifest, workers=workers), 2):
        assert batch.skipped == ((0, str(workers > 0)),)


def test_a_random_transform_is_a_function_of_seed_epoch_and_sample(manifest):
    def drawn(*, seed=0, batch_size=4, epoch=0):
        """What was added to each image of an epoch, by id."""
        steps = steps_per_epoch(manifest, batch_size=batch_size)
        batches = train(
            manifest, transform=jitter, seed=seed, batch_size=batch_size, start_step=epoch * steps
        )
        plain = train(manifest, seed=seed, batch_size=batch_size, start_step=epoch * steps)
        return {
            int(i): float(level)
            for batch, other in islice(zip(batches, plain, strict=True), steps)
            for i, level in zip(
                batch.sample_ids, (batch.images - other.images).mean((1, 2, 3)), strict=True
            )
        }

    first = drawn()
    assert len({round(level, 4) for level in first.values()}) == len(first)
    regrouped = drawn(batch_size=3)
    assert all(abs(first[i] - regrouped[i]) < 1e-5 for i in first.keys() & regrouped.keys())
    for other in (drawn(seed=1), drawn(epoch=1)):
        assert all(abs(first[i] - other[i]) > 1e-5 for i in first.keys() & other.keys())


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generators_alone(manifest, workers):
    def draws():
        return torch.rand(2).tolist(), np.random.rand(2).tolist()

    def seed():
        torch.manual_seed(3)
        np.random.seed(3)

    seed()
    undisturbed = draws()
    seed()
    list(islice(train(manifest, transform=jitter, workers=workers), 3))
    list(evaluation_batches(manifest, to_tensor, batch_size=2, workers=workers))
    assert draws() == undisturbed


def test_nothing_is_read_but_the_batch(tmp_path, monkeypatch):
    """By a process that has a part of it, its part."""
    manifest = index_shards(write_shard(tmp_path / "a.tar", [pair(n) for n in range(40)]))
    spans = manifest.shards[0].spans
    read = []
    original = os.pread
    monkeypatch.setattr(
        os, "pread", lambda d, size, start: read.append(start) or original(d, size, start)
    )
    batch = next(train(manifest, batch_size=8, share=(1, 2)))
    assert len(batch.sample_ids) == 4
    assert sorted(spans.start[batch.sample_ids].tolist()) == read


@pytest.mark.parametrize("num_shares", [2, 3])
def test_processes_share_out_the_batches_of_one(manifest, num_shares):
    whole = list(islice(train(manifest, batch_size=5), 6))
    parts = [
        list(islice(train(manifest, batch_size=5, share=(k, num_shares)), 6))
        for k in range(num_shares)
    ]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([share.sample_ids for share in shares]), batch.sample_ids)
        assert torch.equal(torch.cat([share.images for share in shares]), batch.images)
        assert sum((share.skipped for share in shares), ()) == batch.skipped
    with pytest.raises(ValueError, match="a batch of 2 cannot be shared by 3 processes"):
        train(manifest, batch_size=2, share=(0, 3))
    with pytest.raises(ValueError, match="share must be"):
        Position(seed=0, share=(3, 3))


def test_a_batch_of_which_nothing_can_be_read_is_an_error_with_the_reasons(tmp_path):
    rows = [with_broken_image(n) for n in range(3)]
    manifest = index_shards(write_shard(tmp_path / "a.tar", rows))
    with pytest.raises(
        NothingReadable, match=r"sample \d: corrupt image.*remove damaged"
    ) as caught:
        next(train(manifest, batch_size=3))
    assert sorted(caught.value.skipped) == [(n, "corrupt image") for n in range(3)]
    share = next(train(manifest, batch_size=3, share=(1, 3)))
    assert len(share.sample_ids) == 0, "another process may have something"
    assert [reason for _, reason in share.skipped] == ["corrupt image"]


def test_arguments_are_checked_before_anything_is_read(manifest):
    with pytest.raises(ValueError, match="usable samples, 12 of 15"):
        train(manifest, batch_size=13)
    with pytest.raises(ValueError, match="step must not be negative"):
        train(manifest, start_step=-1)
    for name in ("batch_size", "shuffle_window"):
        with pytest.raises(ValueError, match=name):
            Loading(**{"batch_size": 1, name: 0})
    with pytest.raises(ValueError, match="workers"):
        Loading(batch_size=1, workers=-1)
    with pytest.raises(ValueError, match="batch_size"):
        evaluation_batches(manifest, to_tensor, batch_size=0)


def test_a_shard_changed_since_it_was_indexed_is_an_error(tmp_path):
    path = write_shard(tmp_path / "changed.tar", [pair(n) for n in range(4)])
    manifest = index_shards(path)
    changes = {
        "bytes, and had": [pair(n) for n in range(9)],
        "has another image, caption or key in row": [pair(n) for n in (1, 0, 2, 3)],
    }
    for message, rows in changes.items():
        write_shard(path, rows)
        with pytest.raises(ValueError, match=rf"changed\.tar.*{message}.*drrho index"):
            next(train(manifest))
    write_shard(path, [pair(n) for n in range(4)], first_key=1)
    with pytest.raises(ValueError, match=r"changed\.tar has another image, caption or key"):
        list(evaluation_batches(manifest, to_tensor, batch_size=2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_evaluation_sees_each_readable_sample_once_in_order(manifest, batch_size, workers):
    batches = list(evaluation_batches(manifest, to_tensor, batch_size=batch_size, workers=workers))
    assert [i for batch in batches for i in batch.sample_ids.tolist()] == READABLE
    assert [n for batch in batches for n in numbers_shown(batch.images)] == READABLE
    captions = [caption for batch in batches for caption in batch.first_captions]
    assert captions == [f"picture number {n}" for n in READABLE]
    assert [m["number"] for batch in batches for m in batch.metadata] == READABLE
    assert dict(s for batch in batches for s in batch.skipped) == BROKEN
    for batch in batches:  # none is empty, none reaches over the end of a shard
        assert len({manifest.locate(int(i))[0] for i in batch.sample_ids}) == 1


def test_unreadable_samples_at_both_ends_are_reported(tmp_path):
    rows = [with_broken_image(0), pair(1), with_broken_image(2)]
    manifest = index_shards(write_shard(tmp_path / "a.tar", rows))
    (batch,) = evaluation_batches(manifest, to_tensor, batch_size=1)
    assert batch.sample_ids.tolist() == [1]
    assert batch.skipped == ((0, "corrupt image"), (2, "corrupt image"))


def test_evaluation_of_nothing_readable_is_an_error(tmp_path):
    manifest = index_shards(write_shard(tmp_path / "a.tar", [with_broken_image(0), {"txt": b"a"}]))
    with pytest.raises(NothingReadable, match="sample 0: corrupt image"):
        list(evaluation_batches(manifest, to_tensor, batch_size=1))


def test_labelled_images_need_no_captions(tmp_path):
    rows = [{"jpg": picture(n), "cls": b"%d" % (n % 2)} for n in range(3)] + [{"cls": b"0"}]
    manifest = index_shards(write_shard(tmp_path / "a.tar", rows))
    with pytest.raises(NothingReadable, match="no usable sample"):
        list(evaluation_batches(manifest, to_tensor, batch_size=2))
    batches = list(evaluation_batches(manifest, to_tensor, batch_size=2, parts=("metadata",)))
    assert [n for batch in batches for n in numbers_shown(batch.images)] == [0, 1, 2]
    assert [m["cls"] for batch in batches for m in batch.metadata] == [0, 1, 0]
    assert all(batch.captions == [] for batch in batches)


def test_damaged_metadata_cost_no_sample_where_they_are_not_asked_for(tmp_path):
    rows = [pair(0), pair(1) | {"json": b"{"}, pair(2) | {"cls": b"cat"}]
    manifest = index_shards(write_shard(tmp_path / "a.tar", rows))
    (batch,) = evaluation_batches(manifest, to_tensor, batch_size=3, parts=("caption",))
    assert batch.sample_ids.tolist() == [0, 1, 2]
    assert batch.metadata == []
    assert batch.skipped == ()
    (batch,) = evaluation_batches(manifest, to_tensor, batch_size=3)
    assert batch.skipped == ((1, "corrupt json"), (2, "corrupt class index"))


def signalled_stream(tmp_path, then):
    """A process with two workers whose group gets SIGTERM and SIGINT, and the workers' ids."""
    path = write_shard(tmp_path / "a.tar", [pair(n) for n in range(8)])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.data.signalled_stream", str(path), then],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own
    )
    assert process.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    return process, workers


def is_running(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_signals_to_the_whole_process_group_do_not_end_the_workers(tmp_path):
    process, _ = signalled_stream(tmp_path, "close")
    try:
        said = process.communicate(timeout=PATIENCE)[0].split()
    finally:
        process.kill()
    assert process.returncode == 0
    assert said[:-1] == ["read", "on", "closed", "after"]
    assert float(said[-1]) < 4, "closing must not wait for the DataLoader's limit of 5 seconds"


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_a_stream_left_open_does_not_keep_the_process_from_ending(tmp_path):
    """What an error's traceback holds, for example, is still open when Python exits."""
    process, _ = signalled_stream(tmp_path, "exit")
    try:
        assert process.communicate(timeout=PATIENCE)[0] == "read on\n"
    finally:
        process.kill()
    assert process.returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_workers_end_when_the_main_process_is_killed(tmp_path):
    process, workers = signalled_stream(tmp_path, "wait")
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "read on\n"
        process.send_signal(signal.SIGKILL)
    limit = time.monotonic() + 30  # torch's watchdog looks every 5 seconds
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_real_images_and_captions_load():
    manifest = index_shards(real_data("emoji-pictograms") / "val-0000.tar")

    def resized(image):
        return to_tensor(image.resize((32, 32)))

    def lengths(captions):
        return torch.tensor([[len(caption)] for caption in captions])

    batches = training_batches(
        manifest,
        resized,
        tokenizer=lengths,
        config=Loading(batch_size=128),
        position=Position(seed=0),
    )
    batch = next(batches)
    assert batch.images.shape == (128, 3, 32, 32)
    assert batch.tokens.min() > 0
    assert batch.skipped == ()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("an odd\nshape")])
def test_a_sample_on_which_the_transform_fails_is_counted(manifest, error):
    """As one that cannot be decoded, in training, with views and in evaluation."""

    def transform(image):
        if numbers_shown(to_tensor(image)[None]) == [4]:
            raise error
        return to_tensor(image)

    said = {MemoryError: "MemoryError", RuntimeError: "RuntimeError: an odd shape"}[type(error)]
    reason = f"the transform failed ({said})"
    for views in (None, Views(count=2, scale=(0.9, 1.0))):
        config = Loading(batch_size=len(READABLE) + len(BROKEN), views=views)
        (batch,) = islice(
            training_batches(
                manifest, transform, tokenizer=to_tokens, config=config, position=Position(seed=0)
            ),
            1,
        )
        assert sorted(batch.sample_ids.tolist()) == sorted(set(READABLE) - {4})
        assert len(batch.images) == len(batch.tokens) == len(batch.sample_ids)
        assert dict(batch.skipped) == BROKEN | {4: reason}
    batches = list(evaluation_batches(manifest, transform, batch_size=3))
    assert dict(s for batch in batches for s in batch.skipped) == BROKEN | {4: reason}
    with pytest.raises(NothingReadable, match="the transform failed"):
        list(evaluation_batches(manifest, lambda image: image.absent, batch_size=3))


def killed_in_a_worker(image):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_lost_is_said_in_a_sentence(manifest):
    with pytest.raises(OSError, match="a worker process .* was killed, .* lower loading.workers"):
        next(train(manifest, transform=killed_in_a_worker, workers=1))


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("unable to write to file </torch_1>: No space left on device (28)", "/dev/shm"),
        ("DataLoader worker (pid 1) is killed by signal: Bus error. It is ...", "/dev/shm"),
        ("DataLoader worker (pid(s) 1, 2) exited unexpectedly", "was killed"),
        ("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback ...", None),
        ("a bug", None),
    ],
)
def test_errors_of_lost_workers_are_told_from_others(message, sentence):
    found = workers.loss_of_worker(message)
    assert found is None if sentence is None else sentence in found
