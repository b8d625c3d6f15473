"""Provenance of a run: its configuration as plain data, and the versions of the libraries."""

import json
import os
import platform
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drrho.runtime.files import parse_json, read_regular

MAX_FILE = 2**24  # bytes of the file of what was asked for
LIBRARIES = ("open_clip_torch", "torchvision", "pillow")


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a configuration to what JSON would return: tuples to lists, paths to text.

    Raises:
        TypeError: a value is neither plain data nor a path.
    """
    return json.loads(json.dumps(config, default=os.fspath))


def config_differences(
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    may_change: Collection[str] = (),
) -> list[str]:
    """Describe each value in which two plain configurations differ, in a line.

    Args:
        may_change: dotted names of values whose difference does not matter.
    """
    lines = differences(flat(saved), flat(current))
    return [line for line in lines if line.split(":")[0] not in may_change]


def require_same_call(
    path: Path, asked: Mapping[str, Any], *, what: str, may_change: Collection[str]
) -> None:
    """Raise ValueError if the folder of a file belongs to a call that asked for something else.

    Args:
        path: where what was asked for is kept; nothing is raised while it is not there.
        what: what such a folder holds, as "race".
        may_change: as in `config_differences`.
    """
    if not path.exists():
        return
    before = parse_json(read_regular(path, most=MAX_FILE))
    if not isinstance(before, dict):
        raise ValueError(f"{path} is damaged; remove it")
    if changed := config_differences(before, asked, may_change=may_change):
        raise ValueError(
            f"{path.parent} holds another {what}; take another output, or remove it:\n  "
            + "\n  ".join(changed)
        )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries into one with dotted names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Describe each name that is missing on a side or differs in value, in a line."""
    return [
        f"{name}: {saved.get(name, 'absent')} before, {current.get(name, 'absent')} now"
        for name in {**saved, **current}
        if name not in saved or name not in current or saved[name] != current[name]
    ]


def versions() -> dict[str, str | None]:
    """List the versions of what computes the numbers, without libraries that are absent."""
    libraries = {name: _installed_version(name) for name in LIBRARIES}
    return {
        "drrho": _installed_version("drrho"),  # None in a source tree that is not installed
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: found for name, found in libraries.items() if found is not None},
    }


def _installed_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
