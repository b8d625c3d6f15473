"""Charts and tables."""

import importlib.util
import os


def _forget_missing_backend() -> None:
    """Remove a backend that is not installed from the environment: matplotlib would not import.

    Notebooks name one for every program that they start; charts here are drawn without any.
    """
    kind, _, module = os.environ.get("MPLBACKEND", "").partition("://")
    try:
        missing = kind == "module" and importlib.util.find_spec(module) is None
    except (ImportError, ValueError):  # its package is missing, or it is no name
        missing = True
    if missing:
        del os.environ["MPLBACKEND"]


_forget_missing_backend()
