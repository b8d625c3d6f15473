"""A recipe as plain data, as `recipe.json` and checkpoints hold it, and back.

A member of a union of dataclasses is told by its tag, the class attribute `method` or `kind`. A
field that is not there has its default, so that what an earlier version wrote is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from drrho.recipe.recipe import Recipe

TAGS = ("method", "kind")
CONTENTS = "contents"  # of what a recipe names, beside its own fields


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON can hold it."""
    return _plain(recipe)


def read_recipe(document: Mapping[str, Any]) -> Recipe:
    """The recipe that `plain_recipe` wrote, be it that of an earlier version.

    Raises:
        ValueError: it is none.
    """
    own = {name: value for name, value in document.items() if name != CONTENTS}
    if isinstance(own.get("objective"), Mapping):
        own["objective"] = _upgraded_objective(own["objective"])
    return _read_dataclass(Recipe, own, "recipe")


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded recipe, with its contents, as today's version would write it.

    Raises:
        ValueError: it is none.
    """
    kept = {CONTENTS: document[CONTENTS]} if CONTENTS in document else {}
    return plain_recipe(read_recipe(document)) | kept


def tag_of(config: object) -> tuple[str, str] | None:
    """The name and the value of the tag of a dataclass or its instance, where it has one."""
    assert is_dataclass(config)
    own = {part.name for part in fields(config)}
    for name in TAGS:
        if name not in own and hasattr(config, name):
            return name, getattr(config, name)
    return None


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        tag = tag_of(value)
        found = {} if tag is None else dict([tag])
        return found | {part.name: _plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _read(kind: Any, value: Any, where: str) -> Any:
    arguments = get_args(kind)
    match get_origin(kind) or kind:
        case origin if origin in (Union, UnionType):
            return _read_union(arguments, value, where)
        case origin if origin is Literal and value in arguments:
            return value
        case origin if origin is tuple and isinstance(value, list):
            kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
            return tuple(_read(*pair, where) for pair in zip(kinds, value, strict=True))
        case origin if is_dataclass(origin) and isinstance(value, Mapping):
            return _read_dataclass(origin, value, where)
        case origin if type(value) is origin or (origin is float and type(value) is int):
            return value
    raise ValueError(f"{where} must be of type {kind}, got {value!r}")


def _read_union(kinds: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    if not isinstance(value, Mapping):
        suitable = {str: str, list: tuple}.get(type(value), type(value))
        near = [
            k for k in kinds if (get_origin(k) or k) is suitable or (k, suitable) == (float, int)
        ]
        return _read(near[0] if near else kinds, value, where)
    members: list[Any] = [kind for kind in kinds if is_dataclass(kind)]
    for member in members:
        tag = tag_of(member)
        if tag is None or value.get(tag[0]) == tag[1]:
            return _read_dataclass(member, value, where)
    given = {name: value[name] for name in TAGS if name in value}
    raise ValueError(f"{where} must be one of {[m.__name__ for m in members]}, got {given}")


def _read_dataclass(kind: Any, document: Mapping[str, Any], where: str) -> Any:
    tag = tag_of(kind)
    hints, found = get_type_hints(kind), {}
    known = {part.name for part in fields(kind)}
    for name, value in document.items():
        if tag is not None and name == tag[0]:
            continue
        if name in known and (value is not None or NoneType in get_args(hints[name])):
            found[name] = _read(hints[name], value, f"{where}.{name}")
        elif value is not None:  # null stood for a default, or for what the member does not have
            raise ValueError(f"{where} has no {name!r}, which is {value!r} there")
    for part in fields(kind):
        if part.name not in found and (part.default, part.default_factory) == (MISSING, MISSING):
            raise ValueError(f"{where} has no {part.name!r}")
    return kind(**found)


def _upgraded_objective(document: Mapping[str, Any]) -> dict[str, Any]:
    """An objective as the version of 2026-11-30 wrote it, one class for all, in today's form."""
    found = dict(document)
    temperature = found.get("temperature")
    if isinstance(temperature, Mapping) and temperature.get("kind") == "per_direction":
        found["temperature"] = {**temperature, "kind": "learned", "per_direction": True}
    if found.get("method") not in ("fastclip", "drrho_clip"):
        found.pop("gamma_schedule", None)
    if found.get("method") == "distillation" and isinstance(found.get("distillation"), Mapping):
        found["teacher_temperatures"] = found.pop("distillation")["teacher_temperatures"]
    return found
