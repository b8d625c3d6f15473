"""Rooms as users import them: compiled into one graph, and with their own errors at the border."""

import sys
from pathlib import Path

import pytest

from tests.processes import Process, finish


def run_pytest(arguments):
    sys.exit(pytest.main(arguments))


def test_rooms_without_the_suites_shape_checks():
    files = sorted(Path(__file__).parent.rglob("unhooked.py"))
    assert len(files) == 3
    options = ["--noconftest", "-q", "-p", "no:cacheprovider"]
    # What the server of processes has imported is not rewritten, and need not be.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    statuses, outputs, errors = finish([Process(run_pytest, [*options, *map(str, files)])])
    assert statuses == [0], outputs[0] + errors[0]
