"""Progress of long work: one live line in a terminal, plain lines in a log file."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import TracebackType

import psutil
from rich.console import Console
from rich.live import Live
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_REDRAWS = 0.2
# The rate looks back this far: long enough to be steady, short enough to forget a slow start.
RATE_WINDOW_SECONDS = 30.0


def announce(line: str) -> None:
    """Write a line to standard error, where it is open."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


class Progress:
    """Count of work done, shown on standard error.

    Shows the count, its share of the total, the recent rate, the time spent and left, the
    resident memory of this process, and the values last passed to `advance`. In a terminal that
    is one line drawn in place; elsewhere a plain line about every ten seconds. Both end with a
    line that stays and gives the mean rate. Work continues if standard error is closed.

        with Progress("index shards", total=len(shards), unit="shards") as progress:
            for shard in shards:
                progress.advance(1, unusable=len(shard.unusable))

    Args:
        description: description of the work, in a few words.
        total: number of units, `initial` included.
        unit: plural noun for the units.
        initial: units done before this run, for resumed work; they do not count for the rate.
        visible: whether anything is shown; the first process of several shows it.

    Raises:
        ValueError: `total` is negative, or `initial` is not between 0 and `total`.
    """

    def __init__(
        self,
        description: str,
        *,
        total: int,
        unit: str = "samples",
        initial: int = 0,
        visible: bool = True,
    ) -> None:
        if total < 0:
            raise ValueError(f"total must not be negative, got {total}")
        if not 0 <= initial <= total:
            raise ValueError(f"initial must be between 0 and total = {total}, got {initial}")
        self.description = description
        self.total = total
        self.unit = unit
        self.initial = initial
        self.completed = initial
        self._visible = visible
        self._shown: dict[str, float | str] = {}
        self._live: Live | None = None
        self._started = self._last_drawn = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque([(self._started, initial)])

    def __enter__(self) -> "Progress":
        self._started = self._last_drawn = time.monotonic()
        self._marks = deque([(self._started, self.completed)])
        if self._visible and _stderr_is_a_terminal():
            # No refresh thread: the line moves when the work does, and a hang is seen as one.
            self._live = live = Live(self._line(), console=_terminal(), auto_refresh=False)
            with self._silenced_when_broken():
                live.start(refresh=True)
        return self

    def advance(self, n: int, **shown: float | str) -> None:
        """Count `n` more units done; `shown` values replace earlier ones of the same name."""
        self.completed += n
        self._shown.update(shown)
        now = time.monotonic()
        interval = SECONDS_BETWEEN_LINES if self._live is None else SECONDS_BETWEEN_REDRAWS
        if now - self._last_drawn >= interval:
            self._last_drawn = now
            self._mark(now)
            self._draw(self._line())

    def draw(self) -> None:
        """Draw the line now, whenever the last one was drawn."""
        self._last_drawn = time.monotonic()
        self._draw(self._line())

    def say(self, line: str) -> None:
        """Write a line that stays, above the live one where there is one."""
        if not self._visible:
            return
        if self._live is None:
            announce(line)
            return
        with self._silenced_when_broken():
            self._live.console.print(line, markup=False, highlight=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._draw(self._line(finished=True))
        if self._live is not None:
            with self._silenced_when_broken():
                self._live.stop()

    def _mark(self, now: float) -> None:
        """Remember the count at this time, and the newest mark at least a window old."""
        self._marks.append((now, self.completed))
        while len(self._marks) > 2 and now - self._marks[1][0] >= RATE_WINDOW_SECONDS:
            self._marks.popleft()

    def _draw(self, line: Text) -> None:
        if not self._visible or sys.stderr is None:  # None, as under pythonw or in a service
            return
        with self._silenced_when_broken():
            if self._live is not None:
                self._live.update(line, refresh=True)
            else:
                sys.stderr.write(f"{line.plain}\n")
                sys.stderr.flush()

    @contextmanager
    def _silenced_when_broken(self) -> Iterator[None]:
        """Stop showing after a closed file, a broken pipe, a full disk or a lost terminal."""
        try:
            yield
        except (OSError, ValueError):
            self._visible = False

    def _line(self, *, finished: bool = False) -> Text:
        elapsed = time.monotonic() - self._started
        since, count = (self._started, self.initial) if finished else self._marks[0]
        seconds = time.monotonic() - since
        rate = (self.completed - count) / seconds if seconds > 0 else 0.0
        share = self.completed / self.total if self.total else 1.0
        parts = [
            f"{self.description}: {self.completed:,}/{self.total:,} {self.unit} ({share:.0%})",
            f"{_quantity(rate)} {self.unit}/s",
            f"{_duration(elapsed)} elapsed",
        ]
        if not finished:
            left = self.total - self.completed
            parts.append(f"{_duration(left / rate) if rate > 0 else '?'} left")
        parts.append(f"{psutil.Process().memory_info().rss / 2**30:.2f} GiB")
        parts += [f"{name} {_quantity(value)}" for name, value in self._shown.items()]
        return Text(", ".join(parts), no_wrap=True, overflow="ellipsis")


class StudyProgress:
    """Count of the runs of a study, told in a line after each, with the time that is left.

    Runs that were there already do not count for the time.

    Args:
        total: number of runs.
        visible: whether anything is shown.
    """

    def __init__(self, total: int, *, visible: bool = True) -> None:
        self._total = total
        self._visible = visible
        self._done = self._worked = 0
        self._seconds = 0.0

    @contextmanager
    def run(self, name: str, *, is_new: bool) -> Iterator[None]:
        """Count a run when the block ends; after a new one, say how far the study is."""
        started = time.monotonic()
        yield
        self._done += 1
        if not is_new:
            return
        self._worked += 1
        self._seconds += time.monotonic() - started
        left = self._total - self._done
        if self._visible and self._total > 1:
            rest = (
                f"about {_duration(left * self._seconds / self._worked)} left" if left else "done"
            )
            announce(f"study: {self._done:,} of {self._total:,} runs, {name} the last; {rest}")


@cache
def _terminal() -> Console:
    """Return this process's one console: rich stacks nested live lines only within it."""
    return Console(stderr=True)


def _stderr_is_a_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty() and not _terminal().is_dumb_terminal
    except ValueError:  # isatty() of a closed file
        return False


def _quantity(value: float | str) -> str:
    """Format four significant digits, and a count without an exponent."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02d}:{whole_seconds:02d}" if hours or days else ""
    return f"{days} d {clock}" if days else clock or f"{minutes}:{whole_seconds:02d}"
