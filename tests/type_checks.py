"""Shapes and types, checked at every call of a function of drrho.

jaxtyping's decorator binds the arguments of each call and checks them twice, which is what shapes
cost. Most functions have none in their annotations: these get beartype's decorator alone, which
checks the same types.
"""

import inspect
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

import beartype
import jaxtyping
from jaxtyping import AbstractArray, install_import_hook

# `float` accepts an int, as it does for every Python type checker but beartype's default. Errors
# are of the class that jaxtyping's are of.
CHECKS = beartype.BeartypeConf(is_pep484_tower=True, violation_type=TypeError)
check_types = beartype.beartype(conf=CHECKS)

_with_shapes = jaxtyping.jaxtyped


def check(module: str) -> None:
    """Has a module that is not imported yet, and those in it, be checked."""
    jaxtyping.jaxtyped = _decorator  # by this name the hook puts it above functions and classes
    install_import_hook(module, f"{__name__}.check_types")


def _decorator(*, typechecker: Any) -> Any:
    def decorate(decorated: Any) -> Any:
        if inspect.isfunction(decorated) and not _has_shapes(decorated):
            return check_types(decorated)
        if is_dataclass(decorated):
            initial = vars(decorated).get("__init__")
            if inspect.isfunction(initial) and not _has_shapes(initial):
                decorated.__init__ = check_types(initial)
                return decorated
        return _with_shapes(decorated, typechecker=typechecker)

    return decorate


def _has_shapes(function: Any) -> bool:
    """Whether an annotation has a shape in it, or may have."""
    if inspect.isgeneratorfunction(function):
        return True  # beartype refuses some annotations of these
    try:
        hints = get_type_hints(function)
    except NameError:  # of a class that is being defined
        return True
    return any(map(_is_shaped, hints.values()))


def _is_shaped(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(map(_is_shaped, get_args(hint)))
