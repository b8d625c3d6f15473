"""The room as users import it: compiled into one graph, and with its own errors at the border."""

import os
import subprocess
import sys
from pathlib import Path

import drrho


def test_room_without_the_suites_shape_checks():
    source = Path(drrho.__file__).parents[1]
    tests = Path(__file__).with_name("unhooked.py")
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider"]
    finished = subprocess.run(
        [*command, str(tests)],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
