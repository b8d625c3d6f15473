"""Rooms as users import them: compiled into one graph, and with their own errors at the border."""

import os
import subprocess
import sys
from pathlib import Path

import drrho
from tests.processes import PATIENCE


def test_rooms_without_the_suites_shape_checks():
    source = Path(drrho.__file__).parents[1]
    files = sorted(Path(__file__).parent.rglob("unhooked.py"))
    assert len(files) == 3
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider"]
    finished = subprocess.run(
        [*command, *map(str, files)],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
