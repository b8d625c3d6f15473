"""A recipe as the text of a Python file, to read and to edit."""

from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import drrho
from drrho.recipe.recipe import Recipe

WIDTH = 100


def write_recipe_text(recipe: Recipe, *, made_by: str, notes: list[str], command: str) -> str:
    """Write the Python file that `drrho train` takes: what differs from the defaults is in it.

    Args:
        made_by: command that wrote it.
        notes: why each value was chosen, a line each.
        command: command that trains by the file.
    """
    lines = "\n".join(f"* {note}" for note in notes)
    return (
        f'"""Recipe of `{made_by}`; edit it, and train by it with\n\n    {command}\n\n{lines}\n'
        f'"""\n\nimport drrho\n\nrecipe = {_text(recipe, 0)}\n'
    )


def _text(value: Any, indent: int) -> str:
    if not is_dataclass(value):
        return _plain_text(value)
    name = type(value).__name__
    if getattr(drrho, name, None) is not type(value):
        raise ValueError(f"{name} has no public name, so it cannot be written into a recipe's file")
    given = [
        f"{part.name}={_text(getattr(value, part.name), indent + 4)}"
        for part in fields(value)
        if getattr(value, part.name) != _default(part)
    ]
    line = f"drrho.{name}({', '.join(given)})"
    if len(line) + indent + 20 <= WIDTH and "\n" not in line:
        return line
    inner = "".join(f"{' ' * (indent + 4)}{one},\n" for one in given)
    return f"drrho.{name}(\n{inner}{' ' * indent})"


def _plain_text(value: Any) -> str:
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}"' if value.isprintable() else repr(value)
    return repr(value)


def _default(part: Any) -> Any:
    if part.default_factory is not MISSING:
        return part.default_factory()
    return part.default
