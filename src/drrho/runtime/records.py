"""Frozen dataclasses as JSON files, and back: one reader and one writer for every result."""

import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from drrho.runtime.files import write_json

# The metadata of a field that is None by default, and then left out of the file.
OPTIONAL = {"left_out_if_none": True}
FORMAT = "format"  # the name of the version number in every file


def to_json(value: Any) -> Any:
    """Return what JSON can hold: objects for dataclasses and mappings, lists for tuples.

    Numbers that are not finite become null.
    """
    if is_dataclass(value) and not isinstance(value, type):
        found = {f: getattr(value, f.name) for f in fields(value)}
        return {
            f.name: to_json(content)
            for f, content in found.items()
            if not (content is None and f.metadata == OPTIONAL)
        }
    match value:
        case Mapping():
            return {str(name): to_json(content) for name, content in value.items()}
        case list() | tuple():
            return [to_json(content) for content in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def write_record(path: Path, content: Mapping[str, Any], *, version: int) -> None:
    """Write a JSON object with the version of its format first."""
    write_json(path, {FORMAT: version, **content})


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); it was damaged") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; it was damaged")
    return content


def require_version(content: Mapping[str, Any], newest: int, *, path: Path) -> None:
    """Raise ValueError if a later version wrote the file. Files without a version are older."""
    version = content.get(FORMAT, 0)
    if not isinstance(version, int) or version > newest:
        raise ValueError(
            f"{path} has format {version}, and this version of drrho reads up to {newest}; "
            "install the version that wrote it, or a later one"
        )


def from_json(kind: Any, content: Any, *, where: str) -> Any:
    """Build a value of a type from JSON.

    Names that the type does not have are passed over; absent ones take the default.

    Args:
        kind: a dataclass, NamedTuple, mapping, tuple, union with None or plain type, nested.
        content: as `json.loads` returns it.
        where: the place of the content, for errors.

    Raises:
        ValueError: something is absent that has no default, or of another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return content
    if origin in (Union, types.UnionType):
        if content is None and types.NoneType in arguments:
            return content
        (inner,) = [kind for kind in arguments if kind is not types.NoneType]
        return from_json(inner, content, where=where)
    if origin is Literal:
        return _require(content in arguments, content, where, " or ".join(map(repr, arguments)))
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        return _from_object(kind, content, where)
    if origin is not None and issubclass(origin, Mapping):
        _require(isinstance(content, Mapping), content, where, "an object")
        key, value = arguments
        return {key(k): from_json(value, v, where=f"{where}.{k}") for k, v in content.items()}
    if origin is tuple:
        _require(isinstance(content, Sequence), content, where, "a list")
        kinds = arguments
        if arguments[1:] == (Ellipsis,):
            kinds = arguments[:1] * len(content)
        _require(len(kinds) == len(content), content, where, f"a list of {len(kinds)}")
        pairs = enumerate(zip(kinds, content, strict=True))
        return tuple(from_json(k, value, where=f"{where}[{i}]") for i, (k, value) in pairs)
    if kind is float and content is None:
        content = math.nan  # a number that is not finite
    accepted = (int, float) if kind is float else kind
    return _require(isinstance(content, accepted), content, where, f"a {kind.__name__}")


def _from_object(kind: Any, content: Any, where: str) -> Any:
    """Build a dataclass from an object, or a NamedTuple from an object or a list."""
    names = getattr(kind, "_fields", ())
    if names and isinstance(content, list):
        content = dict(zip(names, content, strict=False))
    _require(isinstance(content, Mapping), content, where, "an object")
    has_default = set(getattr(kind, "_field_defaults", ()))
    for f in getattr(kind, "__dataclass_fields__", {}).values():
        if (f.default, f.default_factory) != (MISSING, MISSING):
            has_default.add(f.name)
    values = {}
    for name, hint in get_type_hints(kind).items():
        if name in content:
            values[name] = from_json(hint, content[name], where=f"{where}.{name}")
        elif name not in has_default:
            raise ValueError(f"{where} has no {name!r}; it was damaged, or is of something else")
    return kind(**values)


def _require(holds: bool, content: Any, where: str, expected: str) -> Any:
    """Return the content, or raises ValueError."""
    if not holds:
        raise ValueError(f"{where} must be {expected}, got {content!r:.80}")
    return content
