"""Metrics survive the process, and no step is ever there twice."""

import json
import sys
from contextlib import suppress

import pytest

from drrho.training.log import MetricsLog, read_metrics


def write(folder, steps, *, start_step=0, value=1.0):
    with MetricsLog(folder, start_step=start_step) as log:
        for step in steps:
            log.write({"loss": value, "val/mrr": 0.5}, step=step, samples=8 * step, seconds=0.1)


def test_rows_are_flat_objects(tmp_path):
    write(tmp_path, [1, 2])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    expected = {"step": 2, "samples": 16, "seconds": 0.1, "loss": 1.0, "val/mrr": 0.5}
    assert json.loads(lines[1]) == expected


def test_row_is_readable_before_the_log_is_closed(tmp_path):
    with MetricsLog(tmp_path, start_step=0) as log:
        log.write({"loss": 1.0}, step=1, samples=1, seconds=0.0)
        assert len(read_metrics(tmp_path)) == 1


def test_resumed_log_replaces_what_is_repeated(tmp_path):
    write(tmp_path, [2, 4, 6, 8])
    write(tmp_path, [6, 8, 10], start_step=6, value=3.0)
    found = [(row["step"], row["loss"]) for row in read_metrics(tmp_path)]
    assert found == [(2, 1.0), (4, 1.0), (6, 3.0), (8, 3.0), (10, 3.0)]


def test_a_full_disk_ends_the_log_and_not_the_run(tmp_path):
    with MetricsLog(tmp_path, start_step=0) as log:
        log.write({"loss": 1.0}, step=1, samples=8, seconds=0.1)
        assert log._file is not None
        log._file.close()
        log._file = full = open("/dev/full", "w")  # noqa: SIM115
        with pytest.warns(UserWarning, match="no longer go to metrics.jsonl .*No space left"):
            log.write({"loss": 1.0}, step=2, samples=8, seconds=0.1)
        log.write({"loss": 1.0}, step=3, samples=8, seconds=0.1)
    with suppress(OSError):
        full.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]


def test_other_processes_write_nothing(tmp_path):
    with MetricsLog(tmp_path / "run", start_step=0, writes=False) as log:
        log.write({"loss": 1.0}, step=1, samples=8, seconds=0.1)
    assert not (tmp_path / "run").exists()


def test_tensorboard_holds_the_same_and_no_step_twice(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, [2, 4, 6])
    write(tmp_path, [4, 6], start_step=4, value=3.0)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(2, 1.0), (4, 3.0), (6, 3.0)]


def test_without_tensorboard_there_is_a_note_and_the_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(UserWarning, match="tensorboard is not installed.*metrics.jsonl"):
        write(tmp_path, [1])
    assert len(read_metrics(tmp_path)) == 1


def test_line_torn_by_a_kill_is_dropped(tmp_path):
    write(tmp_path, [2, 4])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "los')
    assert [row["step"] for row in read_metrics(tmp_path)] == [2, 4]
    write(tmp_path, [6], start_step=6)
    assert [row["step"] for row in read_metrics(tmp_path)] == [2, 4, 6]


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"loss": 1}'])
def test_other_damage_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
        MetricsLog(tmp_path, start_step=5)


def test_value_that_is_not_finite_is_null(tmp_path):
    write(tmp_path, [1], value=float("nan"))
    assert read_metrics(tmp_path)[0]["loss"] is None


def test_names_of_the_log_are_taken(tmp_path):
    with (
        MetricsLog(tmp_path, start_step=0) as log,
        pytest.raises(ValueError, match=r"\['seconds'\]"),
    ):
        log.write({"seconds": 1.0}, step=1, samples=1, seconds=0.0)
