"""What the server of `tests/processes.py` has imported, so that no process has to."""

import drrho.cli  # noqa: F401
from drrho.models.open_clip import import_open_clip
from tests import small_runs  # noqa: F401

import_open_clip()
