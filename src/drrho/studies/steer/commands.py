"""Commands of the command line that do a step alone, from the configurations that do it here."""

import shlex
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from tyro.conf import Positional

(POSITIONAL,) = get_args(Positional[int])[1:]  # tyro's mark of a field without a name


def command_of(name: str, config: Any) -> str:
    """Write the command with the options in which a configuration differs from its defaults."""
    hints = get_type_hints(type(config), include_extras=True)
    words, options = ["drrho", *name.split()], []
    for part in fields(config):
        value = getattr(config, part.name)
        default = part.default if part.default_factory is MISSING else part.default_factory()
        if POSITIONAL in get_args(hints[part.name])[1:]:
            words += value if isinstance(value, tuple) else [value]
        elif value != default:
            options += _option(part.name.replace("_", "-"), value)
    return shlex.join([*words, *options])


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
