"""Frozen dataclasses as plain data and JSON files, and back: one reader and one writer for all.

Recipes, results of runs and results of studies are such records. A member of a union of
dataclasses is told by its tag, the class attribute `method` or `kind`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from drrho.runtime.files import parse_json, read_regular, require_checksum, write_json

# The metadata of a field that is left out of the file where it has its default.
OPTIONAL = {"left_out_if_default": True}
MAX_JSON = 2**24  # bytes of a file; in memory JSON takes up to twenty times as much
FORMAT = "format"  # the name of the version number in every file
TAGS = ("method", "kind")
INTEGERS = range(-(2**63), 2**63)
REMEDY = "restore the file from a backup, or write it again"
Record = TypeVar("Record")


def tag_of(record: Any) -> tuple[str, str] | None:
    """The name and the value of the tag of a dataclass or its instance, where it has one."""
    own = {part.name for part in fields(record)}
    for name in TAGS:
        if name not in own and isinstance(getattr(record, name, None), str):
            return name, getattr(record, name)
    return None


def to_json(value: Any) -> Any:
    """Return what JSON can hold: objects for dataclasses and mappings, lists for tuples.

    Numbers that are not finite become null.
    """
    match value:
        case _ if is_dataclass(value):
            found = {part: getattr(value, part.name) for part in fields(value)}
            tag = tag_of(value)
            return ({} if tag is None else dict([tag])) | {
                part.name: to_json(content)
                for part, content in found.items()
                if not (part.metadata == OPTIONAL and content == _default(part))
            }
        case Mapping():
            return {str(name): to_json(content) for name, content in value.items()}
        case list() | tuple():
            return [to_json(content) for content in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def _default(part: Any) -> Any:
    return part.default if part.default_factory is MISSING else part.default_factory()


def write_record(path: Path, record: Any) -> None:
    """Write a dataclass; its class attribute `version`, the format's version, comes first."""
    write_json(path, {FORMAT: record.version, **to_json(record)})


def read_record(path: Path, kind: type[Record]) -> Record:
    """Read what `write_record` wrote, in this version or an earlier one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of a later version, or something else.
    """
    return from_json(kind, read_versioned(path, kind), where=str(path))


def read_versioned(path: Path, kind: Any) -> dict[str, Any]:
    """Read the JSON object of a record, of its version or an earlier one; raises as above."""
    content = read_json_object(path)
    version = content.get(FORMAT, 0)  # files without one are older
    if type(version) is not int or not 0 <= version <= kind.version:
        raise ValueError(
            f"{path} has format {version!r:.80}, and this version of drrho reads up to "
            f"{kind.version}; install the version that wrote it, or a later one"
        )
    return content


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file that anybody may have written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, too large or nested too deep, or holds something else.
    """
    return _read(path)[1]


def read_checked(path: Path, kind: type[Record]) -> Record:
    """Read a dataclass that `write_checked_json` wrote; raises as above, for other names too."""
    text, content = _read(path)
    try:
        require_checksum(text, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return from_json(kind, content, where=str(path), strict=True)


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        text = read_regular(path, most=MAX_JSON)
        content = parse_json(text, strict=True)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); it was damaged: {REMEDY}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; it was damaged: {REMEDY}")
    return text, content


def from_json(kind: Any, content: Any, *, where: str, strict: bool = False) -> Any:
    """Build a value of a type from JSON. Absent names take the default.

    Args:
        kind: a dataclass, NamedTuple, mapping, tuple, union or plain type, nested.
        content: as `json.loads` returns it, or a value of a dataclass already.
        where: the place of the content, for errors.
        strict: whether a name that the type does not have is an error, and null a default where
            the type has no None; else such names are passed over.

    Raises:
        ValueError: something is absent that has no default, or of another type.
    """
    origin: Any = get_origin(kind) or kind
    arguments = get_args(kind)
    if kind is Any or (type(content) is origin and is_dataclass(origin)):
        return content
    if origin in (Union, UnionType):
        inner = _member(arguments, content, where)
        return content if inner is None else from_json(inner, content, where=where, strict=strict)
    if origin is Literal:
        holds = any(type(content) is type(it) and content == it for it in arguments)
        return _require(holds, content, where, " or ".join(map(repr, arguments)))
    if is_dataclass(origin) or hasattr(origin, "_fields"):
        return _from_object(origin, content, where, strict)
    if issubclass(origin, Mapping):
        _require(isinstance(content, Mapping), content, where, "an object")
        key, value = arguments
        return {
            _key(key, name, where): from_json(value, part, where=f"{where}.{name}")
            for name, part in content.items()
        }
    if origin is tuple:
        _require(isinstance(content, list | tuple), content, where, "a list")
        kinds = arguments[:1] * len(content) if arguments[1:] == (Ellipsis,) else arguments
        _require(len(kinds) == len(content), content, where, f"a list of {len(kinds)}")
        pairs = enumerate(zip(kinds, content, strict=True))
        return tuple(
            from_json(kind, value, where=f"{where}[{i}]", strict=strict)
            for i, (kind, value) in pairs
        )
    if kind is float and content is None:
        content = math.nan  # a number that is not finite
    return _require(_fits(kind, content), content, where, f"a {kind.__name__}")


def _member(kinds: Sequence[Any], content: Any, where: str) -> Any:
    """The member of a union that the content is of; None for null."""
    members = [kind for kind in kinds if kind is not NoneType]
    if content is None and len(members) < len(kinds):
        return None
    if len(members) == 1:
        return members[0]
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in members)
    found = [kind for kind in members if _fits(kind, content)]
    _require(len(found) > 0, content, where, f"a {names}")
    return found[0]


def _fits(kind: Any, content: Any) -> bool:
    """Whether content is of a type, judged by its tag or its outermost type."""
    origin = get_origin(kind) or kind
    if is_dataclass(origin):
        tag = tag_of(origin)
        return isinstance(content, Mapping) and (tag is None or content.get(tag[0]) == tag[1])
    if origin is tuple:
        return isinstance(content, list)
    if type(content) is int:
        return origin in (int, float) and content in INTEGERS
    return type(content) is origin


def _key(kind: type, name: str, where: str) -> Any:
    """Convert the name of an entry to the type of a mapping's keys."""
    try:
        return kind(name)
    except ValueError:
        raise ValueError(
            f"{where} must have keys of type {kind.__name__}, got {name!r:.80}; {REMEDY}"
        ) from None


def _from_object(kind: Any, content: Any, where: str, strict: bool) -> Any:
    """Build a dataclass from an object, or a NamedTuple from an object or a list."""
    names = getattr(kind, "_fields", ())
    if names and isinstance(content, list):
        content = dict(zip(names, content, strict=False))
    _require(isinstance(content, Mapping), content, where, "an object")
    has_default, tag = set(getattr(kind, "_field_defaults", ())), None
    if not names:
        names, tag = tuple(part.name for part in fields(kind)), tag_of(kind)
        has_default = {
            part.name
            for part in fields(kind)
            if (part.default, part.default_factory) != (MISSING, MISSING)
        }
    hints, values = _type_hints(kind), {}
    for name in names:
        hint, value = hints[name], content.get(name)
        if name in content and not (strict and value is None and NoneType not in get_args(hint)):
            values[name] = from_json(hint, value, where=f"{where}.{name}", strict=strict)
        elif name not in has_default:
            raise ValueError(
                f"{where} has no {name!r}; it was damaged, or is of something else: {REMEDY}"
            )
    for name, value in content.items() if strict else ():
        if name not in names and value is not None and (name, value) != tag:
            raise ValueError(f"{where} has no {name!r}, which is {value!r} there")
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


@cache
def _type_hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _require(holds: bool, content: Any, where: str, expected: str) -> Any:
    """Return the content, or raise ValueError."""
    if not holds:
        got = "a number of many digits" if type(content) is int and content not in INTEGERS else ""
        raise ValueError(f"{where} must be {expected}, got {got or f'{content!r:.80}'}; {REMEDY}")
    return content
