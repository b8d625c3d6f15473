"""Imports of packages that only a part of drrho needs."""

import importlib
from types import ModuleType


def import_optional(name: str, *, user: str, extra: str) -> ModuleType:
    """Import a module that `user` (a plural noun) needs and drrho[`extra`] installs.

    Raises:
        ModuleNotFoundError: the module is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; {user} need: pip install 'drrho[{extra}]'", name=error.name
        ) from error
