"""What every test runs under: shapes and types checked, one thread, a known random state."""

import gc
import signal
import sys
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from tests import type_checks

# The hook rewrites modules as they are imported, so none may have been imported before it.
assert "drrho" not in sys.modules, "drrho was imported before tests/conftest.py"
type_checks.check("drrho")

# The same examples every time, so that a failure repeats; a shared machine keeps no deadlines.
hypothesis.settings.register_profile("drrho", deadline=None, derandomize=True)
hypothesis.settings.load_profile("drrho")

# Bitwise comparisons between runs need a fixed number of threads, and parallel tests need one.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Fixtures of runs for every room; a plugin, as one folder's conftest serves that folder only.

    A process that hands the tests out to others has no use for them, nor for what they import.
    """
    if not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tests.small_runs")


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect() -> None:
    """What was imported stays; collections, as trainings make, would look through it."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries look at the end for what they think was lost."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _known_random_state() -> None:
    """A test that forgot its own generator fails every time or never."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _signals_as_in_a_terminal() -> Iterator[None]:
    """A shell that starts the tests in the background hands SIGINT down ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
