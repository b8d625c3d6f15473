"""Imports of packages that only a part of drrho needs."""

import importlib
from types import ModuleType


def import_optional(name: str, *, user: str, extra: str) -> ModuleType:
    """Import a package, or say what needs it and how to install it.

    Args:
        name: of the module.
        user: what needs it, in the plural.
        extra: of drrho, which installs it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; {user} need: pip install 'drrho[{extra}]'", name=error.name
        ) from error
