"""A loss belongs to its sample, whoever wrote it when, and what is not there is NaN."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.data.tar_files import pair, write_shard
from tests.processes import PATIENCE
from torch.testing import assert_close

import drrho
from drrho.data.indexing import index_shards
from drrho.data.items import manifest_of_items
from drrho.data.manifest import Manifest
from drrho.reference.losses import writer as loss_writer
from drrho.reference.losses.store import LossStore
from drrho.reference.losses.summary import summarise_losses
from drrho.reference.losses.writer import LossWriter

NAN = math.nan
NUM_SAMPLES = 10
MANIFEST = manifest_of_items(
    (b"%d" % number for number in range(NUM_SAMPLES)), name="numbers", items_per_shard=4
)
LOSSES = torch.arange(NUM_SAMPLES) ** 2 / 8


def write(folder, ids=range(NUM_SAMPLES), *, manifest=MANIFEST, reference="small", identity="v1"):
    """The losses of some samples, in batches of three."""
    with LossWriter.open(folder, manifest, reference=reference, identity=identity) as writer:
        for batch in torch.tensor(list(ids), dtype=torch.int64).split(3):
            writer.write(batch, LOSSES[batch])


def gather(folder, ids=range(NUM_SAMPLES), *, manifest=MANIFEST, reference="small"):
    store = LossStore.open(folder, manifest, reference=reference)
    return store.gather(torch.tensor(list(ids), dtype=torch.int64))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_losses_come_back_by_sample_id_whatever_the_order_of_writing(tmp_path):
    write(tmp_path, torch.randperm(NUM_SAMPLES).tolist())
    ids = torch.randint(0, NUM_SAMPLES, (50,)).tolist()
    found = gather(tmp_path, ids)
    assert found.dtype == torch.float32
    assert torch.equal(found, LOSSES[ids])
    assert gather(tmp_path, []).shape == (0,)


def test_the_order_of_writing_does_not_show_in_the_files(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", torch.randperm(NUM_SAMPLES).tolist())
    assert contents(tmp_path / "a" / "small") == contents(tmp_path / "b" / "small")


def test_a_sample_without_a_loss_is_nan(tmp_path):
    write(tmp_path, [0, 2])
    expected = torch.full((NUM_SAMPLES,), NAN)
    expected[[0, 2]] = LOSSES[[0, 2]]
    assert_close(gather(tmp_path), expected, equal_nan=True)


def test_a_loss_given_again_replaces_the_earlier_one(tmp_path):
    write(tmp_path)
    with LossWriter.open(tmp_path, MANIFEST, reference="small", identity="v1") as writer:
        writer.write(torch.tensor([3]), torch.tensor([7.0]))
        writer.write(torch.tensor([3, 5]), torch.tensor([8.0, 9.0]))
    assert gather(tmp_path, [3, 4, 5]).tolist() == [8.0, 2.0, 9.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_losses_of_any_precision_are_stored_in_float32(tmp_path, dtype):
    losses = torch.rand(NUM_SAMPLES).to(dtype).requires_grad_()
    with LossWriter.open(tmp_path, MANIFEST, reference="small", identity="v1") as writer:
        writer.write(torch.arange(NUM_SAMPLES), losses)
    assert torch.equal(gather(tmp_path), losses.detach().float())


def test_losses_serve_any_of_their_shards_in_any_order(tmp_path):
    write(tmp_path)
    some = Manifest(shards=(MANIFEST.shards[2], MANIFEST.shards[0]))
    found = gather(tmp_path, range(6), manifest=some)
    assert torch.equal(found, LOSSES[[8, 9, 0, 1, 2, 3]])


def test_losses_of_shards_serve_them_where_they_lie(tmp_path):
    for name, first in (("a", 0), ("b", 3)):
        write_shard(tmp_path / "data" / f"{name}.tar", [pair(n) for n in range(first, first + 3)])
    write(tmp_path / "losses", range(6), manifest=index_shards(tmp_path / "data"))
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    manifest = index_shards(f"{moved}/{{b,a}}.tar")
    assert torch.equal(gather(tmp_path / "losses", [0, 5], manifest=manifest), LOSSES[[3, 2]])


def test_a_data_set_that_grew_keeps_its_losses(tmp_path):
    write(tmp_path)
    items = [b"%d" % number for number in range(NUM_SAMPLES + 4)]
    grown = manifest_of_items(items, name="numbers", items_per_shard=4)
    with LossWriter.open(tmp_path, grown, reference="small", identity="v1") as writer:
        left = writer.unwritten_ids()  # of the last shard, which has other contents now
        assert left.tolist() == list(range(8, 14))
        writer.write(left, left.float())
    expected = torch.cat([LOSSES[:8], torch.arange(8.0, 14.0)])
    assert torch.equal(gather(tmp_path, range(14), manifest=grown), expected)
    assert torch.equal(gather(tmp_path), LOSSES)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("num_batches", range(5))
def test_interrupted_and_continued_gives_the_bytes_of_one_run(tmp_path, num_batches):
    write(tmp_path / "whole")
    arguments = {"reference": "small", "identity": "v1"}
    order = torch.randperm(NUM_SAMPLES)
    writing = LossWriter.open(tmp_path / "parts", MANIFEST, **arguments)
    with pytest.raises(Interrupted), writing as writer:
        for batch in order.split(3)[:num_batches]:
            writer.write(batch, LOSSES[batch])
        raise Interrupted
    with LossWriter.open(tmp_path / "parts", MANIFEST, **arguments) as writer:
        left = writer.unwritten_ids()
        assert left.tolist() == sorted(order[3 * num_batches :].tolist())
        writer.write(left, LOSSES[left])
    assert contents(tmp_path / "parts" / "small") == contents(tmp_path / "whole" / "small")


def test_a_killed_process_keeps_what_it_wrote(tmp_path):
    script = f"""
import os, signal, torch
from drrho.data.items import manifest_of_items
from drrho.reference.losses import writer as loss_writer
loss_writer.SECONDS_BETWEEN_FLUSHES, loss_writer.FLUSHING_SHARE = 0.0, 1e9
items = (b"%d" % number for number in range({NUM_SAMPLES}))
manifest = manifest_of_items(items, name="numbers", items_per_shard=4)
writing = loss_writer.LossWriter.open({str(tmp_path)!r}, manifest, reference="small", identity="v1")
with writing as writer:
    writer.write(torch.tensor([9]), torch.tensor([1.0]))
    writer.write(torch.tensor([0, 2]), torch.tensor([2.0, 3.0]))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = run_without(script)
    assert killed.returncode == -9, killed.stderr
    with LossWriter.open(tmp_path, MANIFEST, reference="small", identity="v1") as writer:
        assert writer.unwritten_ids().tolist() == [1, 3, 4, 5, 6, 7, 8]
    assert gather(tmp_path, [9, 0, 2]).tolist() == [1.0, 2.0, 3.0]


def test_flushes_that_take_long_become_rare(tmp_path, monkeypatch):
    """Where a flush takes 100 s, the next one comes when it is a tenth of the time."""
    now = 0.0
    flushes = []

    def slow(files, entry, losses):
        nonlocal now
        flushes.append(now)
        now += 100

    monkeypatch.setattr(loss_writer.time, "monotonic", lambda: now)
    monkeypatch.setattr(loss_writer, "save_losses", slow)
    with LossWriter.open(tmp_path, MANIFEST, reference="small", identity="v1") as writer:
        for _ in range(250):
            writer.write(torch.tensor([0]), torch.tensor([1.0]))
            now += 10
    assert flushes[:3] == [30, 1130, 2230]


def test_two_references_are_written_at_once_and_one_by_one_process_only(tmp_path):
    def opened(reference):
        return LossWriter.open(tmp_path, MANIFEST, reference=reference, identity=reference)

    with opened("a") as a, opened("b") as b:
        busy = pytest.raises(BlockingIOError, match=r"another process is at work in .*a")
        with busy, opened("a"):
            pass
        a.write(torch.tensor([1]), torch.tensor([1.0]))
        b.write(torch.tensor([1]), torch.tensor([2.0]))
    assert gather(tmp_path, [1], reference="a").tolist() == [1.0]
    assert gather(tmp_path, [1], reference="b").tolist() == [2.0]


def test_another_model_or_unit_under_the_same_name_is_refused(tmp_path):
    write(tmp_path)
    before = contents(tmp_path / "small")
    with pytest.raises(ValueError, match=r"losses of 'v1'.*not of 'v2'.*another reference name"):
        write(tmp_path, identity="v2")
    tokens = LossWriter.open(tmp_path, MANIFEST, reference="small", identity="v1", unit="token")
    refused = pytest.raises(ValueError, match="each sample, not of 'v1', one for each token")
    with refused, tokens:
        pass
    assert contents(tmp_path / "small") == before


def test_what_cannot_name_a_reference_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"reference must be made of letters.*'\.\./x'"):
        write(tmp_path, reference="../x")
    with pytest.raises(ValueError, match="identity must say what computed"):
        write(tmp_path, identity="")


def test_losses_that_are_not_one_for_each_sample_are_refused(tmp_path):
    with LossWriter.open(tmp_path, MANIFEST, reference="small", identity="v1") as writer:
        for losses in (torch.tensor(1.0), torch.zeros(1), torch.zeros(2, 1)):
            with pytest.raises(ValueError, match=r'for 2 samples.*reduction="none"'):
                writer.write(torch.tensor([0, 1]), losses)
        with pytest.raises(IndexError, match=r"\[0, 10\)"):
            writer.write(torch.tensor([0, 10]), torch.zeros(2))
        with pytest.raises(ValueError, match="use write,"):
            writer.write_tokens(torch.tensor([0]), torch.zeros(1, 2), torch.ones(1, 2).bool())
        assert len(writer.unwritten_ids()) == NUM_SAMPLES
    with pytest.raises(ValueError, match="the writer is closed"):
        writer.write(torch.tensor([0]), torch.zeros(1))


# Sample n has n % 4 tokens that count; the one at position k has the loss n + k / 4.
NUM_TOKENS = [number % 4 for number in range(NUM_SAMPLES)]


def token_batch(ids, *, length, side):
    """Losses and mask, padded to a side; what does not count is -1."""
    losses, mask = torch.full((len(ids), length), -1.0), torch.zeros(len(ids), length).bool()
    for place, number in enumerate(ids):
        count = NUM_TOKENS[number]
        start = 0 if side == "right" else length - count
        losses[place, start : start + count] = number + torch.arange(count) / 4
        mask[place, start : start + count] = True
    return losses, mask


def write_tokens(folder, ids=range(NUM_SAMPLES)):
    with LossWriter.open(
        folder, MANIFEST, reference="tokens", identity="v1", unit="token"
    ) as writer:
        for batch in torch.tensor(list(ids)).split(3):
            writer.write_tokens(batch, *token_batch(batch.tolist(), length=5, side="right"))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("length", [3, 9])
def test_losses_of_tokens_go_where_the_tokens_are(tmp_path, length, side):
    write_tokens(tmp_path, torch.randperm(NUM_SAMPLES).tolist())
    store = LossStore.open(tmp_path, MANIFEST, reference="tokens")
    ids = torch.randint(0, NUM_SAMPLES, (30,))
    losses, mask = token_batch(ids.tolist(), length=length, side=side)
    found = store.gather_tokens(ids, mask)
    assert_close(found, torch.where(mask, losses, NAN), equal_nan=True, rtol=0, atol=0)


def test_tokens_that_do_not_count_may_lie_in_between(tmp_path):
    write_tokens(tmp_path)
    store = LossStore.open(tmp_path, MANIFEST, reference="tokens")
    found = store.gather_tokens(torch.tensor([7]), torch.tensor([[True, False, True, False, True]]))
    assert_close(found, torch.tensor([[7.0, NAN, 7.25, NAN, 7.5]]), equal_nan=True)


def test_a_sample_without_losses_of_tokens_is_nan(tmp_path):
    write_tokens(tmp_path, [3])
    store = LossStore.open(tmp_path, MANIFEST, reference="tokens")
    found = store.gather_tokens(torch.tensor([7, 3]), torch.ones(2, 3).bool())
    assert_close(found, torch.tensor([[NAN] * 3, [3.0, 3.25, 3.5]]), equal_nan=True)
    assert store.gather_tokens(
        torch.empty(0, dtype=torch.int64), torch.ones(0, 3).bool()
    ).shape == (0, 3)


def test_losses_of_tokens_survive_being_written_in_parts(tmp_path):
    write_tokens(tmp_path / "whole")
    for ids in ([9, 1, 3], [2, 0, 7, 8], [3, 4, 5, 6]):
        write_tokens(tmp_path / "parts", ids)
    assert contents(tmp_path / "parts" / "tokens") == contents(tmp_path / "whole" / "tokens")


def test_other_tokens_than_were_stored_are_an_error(tmp_path):
    write_tokens(tmp_path)
    store = LossStore.open(tmp_path, MANIFEST, reference="tokens")
    with pytest.raises(ValueError, match="sample 7 has 3 stored losses .* mask counts 2; tokenize"):
        store.gather_tokens(torch.tensor([2, 7]), torch.ones(2, 2).bool())
    with pytest.raises(ValueError, match="mask has 1 rows for 2 sample ids"):
        store.gather_tokens(torch.tensor([2, 7]), torch.ones(1, 2).bool())
    with pytest.raises(IndexError, match=r"\[0, 10\)"):
        store.gather_tokens(torch.tensor([-1]), torch.ones(1, 2).bool())
    with LossWriter.open(
        tmp_path, MANIFEST, reference="tokens", identity="v1", unit="token"
    ) as writer:
        for losses, mask in (((2, 3), (2, 2)), ((3, 3), (3, 3)), ((2,), (2,))):
            with pytest.raises(ValueError, match=r"for 2 samples; both must be \(2, length\)"):
                ids = torch.tensor([0, 1])
                writer.write_tokens(ids, torch.zeros(losses), torch.ones(mask).bool())


def test_each_unit_has_its_lookup(tmp_path):
    write(tmp_path)
    write_tokens(tmp_path)
    with pytest.raises(ValueError, match="one for each sample.*gather\\(sample_ids\\)"):
        LossStore.open(tmp_path, MANIFEST, reference="small").gather_tokens(
            torch.tensor([1]), torch.ones(1, 2).bool()
        )
    with pytest.raises(ValueError, match="one for each token.*gather_tokens"):
        gather(tmp_path, reference="tokens")


def test_an_id_outside_the_manifest_is_an_error(tmp_path):
    write(tmp_path)
    for ids in ([-1, 3], [3, 10]):
        with pytest.raises(IndexError, match=r"\[0, 10\)"):
            gather(tmp_path, ids)


def test_an_unknown_reference_is_an_error_that_names_the_known_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match="reference 'big'.*losses of: none.*LossWriter"):
        gather(tmp_path, reference="big")
    write(tmp_path, reference="tiny")
    write(tmp_path)
    with pytest.raises(FileNotFoundError, match="reference 'big'.*losses of: small, tiny"):
        gather(tmp_path, reference="big")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([b"0", b"1", b"2"], "do not fit shard .*numbers-00000: they are of 4 samples.* has 3"),
        ([b"0", b"1", b"3", b"2"], "the same keys but other contents"),
    ],
)
def test_data_changed_since_are_an_error_that_names_the_shard(tmp_path, items, message):
    write(tmp_path)
    changed = manifest_of_items(items, name="numbers")
    with pytest.raises(ValueError, match=rf"losses in .*{message}.*LossWriter"):
        gather(tmp_path, manifest=changed)


def test_data_without_losses_are_an_error_that_names_the_shard(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="no losses of shard .*letters-00000.*of 3 shards: "):
        gather(tmp_path, manifest=manifest_of_items([b"a"], name="letters"))


def test_a_missing_or_damaged_file_is_an_error_with_the_remedy(tmp_path):
    write(tmp_path)
    first, second = (tmp_path / "small" / f"numbers-0000{n}.safetensors" for n in range(2))
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"numbers-00000, is damaged.*remove it and.*LossWriter"):
        gather(tmp_path)
    with pytest.raises(ValueError, match=r"numbers-00000, is damaged"):
        write(tmp_path)
    first.write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match=r"is not of shard numbers-00000.*content_sha256"):
        gather(tmp_path)
    first.unlink()
    with pytest.raises(FileNotFoundError, match=r"losses of shard numbers-00000 are missing"):
        gather(tmp_path)
    write(tmp_path, range(4))
    assert torch.equal(gather(tmp_path), LOSSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "this program reads"),
        ({"version": 3}, "this program reads"),
        ({"shards": [{}]}, "damaged"),
        ({"unit": "word"}, "damaged.*unit"),
        ({"identity": "v2"}, "is not of shard numbers-00000 and the model"),
    ],
)
def test_a_card_that_does_not_hold_is_an_error(tmp_path, change, message):
    write(tmp_path)
    card = tmp_path / "small" / "losses.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
    with pytest.raises(ValueError, match=rf"{message}.*LossWriter"):
        gather(tmp_path)


def test_a_file_of_another_reference_is_an_error(tmp_path):
    write(tmp_path)
    write(tmp_path, reference="other", identity="v2")
    name = "numbers-00001.safetensors"
    (tmp_path / "small" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ValueError, match=rf"{name} is not of shard.*model_sha256"):
        gather(tmp_path)


def test_a_summary_counts_what_is_missing_and_what_is_not_finite(tmp_path):
    with LossWriter.open(tmp_path, MANIFEST, reference="small", identity="v1") as writer:
        writer.write(torch.arange(5), torch.tensor([1.0, 2.0, 6.0, math.inf, NAN]))
        (summary,), pairs = summarise_losses(tmp_path)
        assert summary.num_missing == 6  # the second shard is not complete, nor written
    (summary,), pairs = summarise_losses(tmp_path)
    assert (summary.reference, summary.identity, summary.unit) == ("small", "v1", "sample")
    assert (summary.num_samples, summary.num_missing) == (NUM_SAMPLES, 5)
    assert (summary.num_losses, summary.num_nonfinite) == (5, 2)
    assert summary.mean == 3.0
    assert_close(summary.standard_deviation, math.sqrt((4 + 1 + 9) / 3))
    assert pairs == []
    assert_close(gather(tmp_path, [3, 4]), torch.tensor([math.inf, NAN]), equal_nan=True)


def test_a_summary_correlates_common_samples(tmp_path):
    write(tmp_path)
    write_tokens(tmp_path, range(1, 9))
    with LossWriter.open(tmp_path, MANIFEST, reference="minus", identity="v1") as writer:
        writer.write(torch.arange(6), 5 - 2 * LOSSES[:6])
    with LossWriter.open(tmp_path, MANIFEST, reference="zero", identity="v1") as writer:
        writer.write(torch.tensor([2]), torch.tensor([0.0]))
    summaries, pairs = summarise_losses(tmp_path)
    assert [summary.reference for summary in summaries] == ["minus", "small", "tokens", "zero"]
    tokens = summaries[2]
    assert (tokens.num_losses, tokens.num_missing) == (sum(NUM_TOKENS[1:9]), 2)
    found = {pair.references: (pair.num_samples, pair.correlation) for pair in pairs}
    assert len(found) == 6
    assert found["minus", "small"] == (6, pytest.approx(-1))
    # Samples 4 and 8 have no token: they have no mean.
    with_tokens = [1, 2, 3, 5, 6, 7]
    means = torch.tensor([n + (NUM_TOKENS[n] - 1) / 8 for n in with_tokens])
    expected = torch.stack([LOSSES[with_tokens], means]).corrcoef()[0, 1]
    assert found["small", "tokens"] == (6, pytest.approx(float(expected)))
    num_samples, correlation = found["small", "zero"]
    assert num_samples == 1
    assert math.isnan(correlation)


def test_a_folder_without_losses_has_no_summary(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no NAME/losses\.json.*LossWriter"):
        summarise_losses(tmp_path)


def run_without(script, *modules):
    """Runs Python that cannot import some modules."""
    block = f"import sys\nsys.modules.update(dict.fromkeys({modules!r}))\n"
    source = str(Path(drrho.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", block + script],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_core_installation_is_enough(tmp_path):
    script = f"""
import torch
from drrho.data.items import manifest_of_items
from drrho.reference.losses.summary import summarise_losses
from drrho.reference.losses.writer import LossWriter
from drrho.reference.losses.store import LossStore
manifest = manifest_of_items([b"a", b"b"], name="letters")
with LossWriter.open({str(tmp_path)!r}, manifest, reference="r", identity="v1") as writer:
    writer.write(torch.tensor([1]), torch.tensor([2.0]))
store = LossStore.open({str(tmp_path)!r}, manifest, reference="r")
print(store.gather(torch.tensor([1, 0])).tolist(), summarise_losses({str(tmp_path)!r})[0][0].mean)
"""
    extras = ("fsspec", "open_clip", "rich", "psutil", "PIL", "torchvision", "tyro")
    finished = run_without(script, *extras)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "[2.0, nan] 2.0\n"


def test_shards_of_the_same_items_are_refused(tmp_path):
    same = manifest_of_items([b"padding"] * 6, name="blocks", items_per_shard=3)
    with (
        pytest.raises(ValueError, match="blocks-00000 and .*blocks-00001 hold the same samples"),
        LossWriter.open(tmp_path, same, reference="small", identity="small"),
    ):
        pass
