"""Progress tells the truth about the work, and never disturbs it."""

import io
import os
import pty
import re
import select
from contextlib import redirect_stderr, suppress

import pytest

from drrho.runtime import progress as progress_module
from drrho.runtime.progress import Progress


class Clock:
    """Stands in for time.monotonic; moves only when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_module.time, "monotonic", clock)
    return clock


class Terminal:
    """A pseudo-terminal; what is written to `stream` is what a person would be shown."""

    def __init__(self):
        self._screen, line = pty.openpty()
        self.stream = os.fdopen(line, "w")

    def read(self):
        """Everything sent so far; the kernel passes it on in pieces, and a little later."""
        received = b""
        while select.select([self._screen], [], [], 0.2)[0]:
            received += os.read(self._screen, 65536)
        return received.decode()

    def hang_up(self):
        if self._screen is not None:
            os.close(self._screen)
            self._screen = None


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    progress_module._terminal.cache_clear()  # it remembers the terminal it first saw
    terminal = Terminal()
    yield terminal
    with suppress(OSError):  # what was written after a hang-up is still in the buffer
        terminal.stream.close()
    terminal.hang_up()


def work(progress, clock, *, steps, seconds_per_step, **shown):
    for _ in range(steps):
        clock.now += seconds_per_step
        progress.advance(1, **shown)


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(clock, capsys):
    with Progress("train", total=100, unit="steps") as progress:
        work(progress, clock, steps=95, seconds_per_step=1.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 9 + 1
    assert lines[0].startswith("train: 10/100 steps (10%)")
    assert lines[-1].startswith("train: 95/100 steps (95%)")
    assert all("\r" not in line and "\x1b" not in line for line in lines)


def test_rate_and_time_left_forget_a_slow_start(clock, capsys):
    with Progress("train", total=940, unit="steps") as progress:
        work(progress, clock, steps=60, seconds_per_step=1.0)
        work(progress, clock, steps=480, seconds_per_step=0.125)
    last_while_working, last = capsys.readouterr().err.splitlines()[-2:]
    assert "540/940 steps (57%), 8 steps/s, 2:00 elapsed, 0:50 left" in last_while_working
    assert "4.5 steps/s" in last


def test_resumed_work_counts_towards_the_total_but_not_the_rate(clock, capsys):
    with Progress("train", total=200, unit="steps", initial=100) as progress:
        work(progress, clock, steps=10, seconds_per_step=2.0)
    assert "110/200 steps (55%), 0.5 steps/s, 0:20 elapsed" in capsys.readouterr().err


def test_values_are_shown_until_replaced(clock, capsys):
    with Progress("train", total=3) as progress:
        progress.advance(1, loss=0.123456, stage="warm-up")
        progress.advance(1, loss=2)
    assert capsys.readouterr().err.strip().endswith("loss 2, stage warm-up")


def test_memory_is_that_of_this_process(capsys):
    with Progress("train", total=1) as progress:
        progress.advance(1)
    [gibibytes] = re.findall(r"([\d.]+) GiB", capsys.readouterr().err)
    assert 0.02 < float(gibibytes) < 64


def test_long_times_are_written_with_days(clock, capsys):
    with Progress("train", total=10, unit="epochs") as progress:
        work(progress, clock, steps=1, seconds_per_step=90061.0)
    assert "1 d 1:01:01 elapsed" in capsys.readouterr().err


def test_nothing_to_do_is_not_an_error(capsys):
    with Progress("index", total=0):
        pass
    assert "0/0 samples (100%)" in capsys.readouterr().err


def test_a_terminal_gets_one_line_drawn_in_place(clock, terminal):
    with redirect_stderr(terminal.stream), Progress("train", total=100) as progress:
        work(progress, clock, steps=20, seconds_per_step=1.0)
        while_working = terminal.read()
    assert while_working.count("train: ") > 20
    assert "\n" not in while_working
    assert terminal.read().count("\n") == 1


def test_progress_within_progress_leaves_both_readable(clock, terminal):
    with redirect_stderr(terminal.stream), Progress("train", total=2) as outer:
        work(outer, clock, steps=1, seconds_per_step=1.0)
        with Progress("evaluate", total=5) as inner:
            work(inner, clock, steps=5, seconds_per_step=1.0)
        work(outer, clock, steps=1, seconds_per_step=1.0)
    shown = terminal.read()
    assert "evaluate: 5/5 samples (100%)" in shown
    assert "train: 2/2 samples (100%)" in shown


def test_a_dumb_terminal_is_treated_as_a_log(clock, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with redirect_stderr(terminal.stream), Progress("train", total=5) as progress:
        work(progress, clock, steps=5, seconds_per_step=1.0)
    assert terminal.read().count("train: ") == 1


def test_work_goes_on_when_the_terminal_goes_away(clock, terminal):
    with redirect_stderr(terminal.stream), Progress("train", total=50) as progress:
        work(progress, clock, steps=10, seconds_per_step=1.0)
        terminal.hang_up()
        work(progress, clock, steps=40, seconds_per_step=1.0)
    assert progress.completed == 50


def closed_file():
    stream = io.StringIO()
    stream.close()
    return stream


class BrokenPipe(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stderr", [lambda: None, closed_file, BrokenPipe])
def test_work_goes_on_without_a_standard_error(clock, stderr):
    with redirect_stderr(stderr()), Progress("train", total=50) as progress:
        work(progress, clock, steps=50, seconds_per_step=1.0)
    assert progress.completed == 50


def test_standard_output_is_left_to_results(capfd):
    with Progress("train", total=1) as progress:
        progress.advance(1)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("train: 1/1")


def test_invisible_progress_counts_but_shows_nothing(capsys):
    with Progress("train", total=1, visible=False) as progress:
        progress.advance(1)
    assert progress.completed == 1
    assert capsys.readouterr().err == ""


def test_an_error_passes_through_and_the_count_reached_is_shown(capsys):
    with pytest.raises(RuntimeError, match="diverged"), Progress("train", total=9) as progress:
        progress.advance(4)
        raise RuntimeError("diverged")
    assert "4/9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"total": -1}, "total"),
        ({"total": 3, "initial": 4}, "initial"),
        ({"total": 3, "initial": -1}, "initial"),
    ],
)
def test_counts_that_make_no_sense_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        Progress("train", **arguments)


def test_a_study_says_how_many_runs_are_done_and_how_long_the_rest_takes(capsys, clock):
    study = progress_module.StudyProgress(4)
    for name, seconds, is_new in (("clip:0", 60, True), ("clip:1", 120, True), ("a:0", 1, False)):
        with study.run(name, is_new=is_new):
            clock.now += seconds
    assert capsys.readouterr().err.splitlines() == [
        "study: 1 of 4 runs, clip:0 the last; about 3:00 left",
        "study: 2 of 4 runs, clip:1 the last; about 3:00 left",
    ]


def test_a_line_that_stays_is_written_where_anything_is(capsys):
    with Progress("work", total=2) as work:
        work.say("evaluated")
    assert capsys.readouterr().err.startswith("evaluated\n")
    with Progress("work", total=2, visible=False) as work:
        work.say("evaluated")
    assert capsys.readouterr().err == ""
