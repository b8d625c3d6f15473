"""Fields of a recipe changed by arguments: `--training.steps 2000 --objective.method clip`."""

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

import tyro

from drrho.recipe.recipe import Recipe
from drrho.runtime.records import tag_of

Kind = TypeVar("Kind")
# Given one, the recipe's other one goes.
ALTERNATIVES = {"training.steps": "training.epochs", "training.epochs": "training.steps"}


def overridden(
    recipe: Recipe, arguments: Sequence[str], *, source: str, description: str
) -> Recipe:
    """The recipe with any field changed; `--help` among the arguments describes them, and exits.

    `--objective.method` and `--objective.temperature.kind` choose another class there, which keeps
    what the recipe sets of the fields that both have. What the recipe leaves out altogether
    (`selection`, `objective.distillation`) has no fields to change; it is added in the file.

    Args:
        recipe: what is changed.
        arguments: options with their values.
        source: the file or the name that the recipe came from, for messages.
        description: the text above the options in the help.

    Raises:
        ValueError: an option is of a part that the recipe leaves out, names no class, or gives a
            recipe that makes no sense.
    """
    default, left = recipe, list(arguments)
    for option in arguments:
        if option.startswith("--") and (part := _absent_part(default, option)):
            raise ValueError(
                f"{option} has nothing to change: recipe {source} has {part} = None. Set {part} in "
                "a recipe's file; the command line can change it then"
            )
        name, tag = _split(option)
        holder = default
        for step in name.split(".") if name else ():
            holder = getattr(holder, step, None)
        found = tag_of(holder) if is_dataclass(holder) else None
        if found is not None and found[0] == tag:
            value = _taken(left, option)
            default = _with(default, name, _of_kind(default, name, value, option))
    given = {".".join(_split(option)) for option in arguments}
    for name, other in ALTERNATIVES.items():
        if name in given and other not in given:
            default = _with(default, other, None)
    return tyro.cli(
        Recipe,
        args=left,
        prog=f"drrho train {source}",
        description=description,
        default=default,
        config=(tyro.conf.AvoidSubcommands,),
    )


def changed_kind(config: Any, kind: type[Kind]) -> Kind:
    """A configuration of another class, with what was set of the fields that both have."""
    return kind(**_set_fields(config, kind))


def _absent_part(recipe: object, option: str) -> str | None:
    """The part that an option such as `--selection.batch-size` is of, where the recipe lacks it."""
    names = ".".join(_split(option)).split(".")
    for depth, name in enumerate(names[:-1], start=1):
        if not is_dataclass(recipe) or name not in {part.name for part in fields(recipe)}:
            return None
        recipe = getattr(recipe, name)
        if recipe is None:
            return ".".join(names[:depth])
    return None


def _split(option: str) -> tuple[str, str]:
    """The part and the field that an option names: "objective.temperature" and "kind"."""
    if not option.startswith("--"):
        return "", ""
    part, _, field = option.partition("=")[0].removeprefix("--").replace("-", "_").rpartition(".")
    return part, field


def _taken(arguments: list[str], option: str) -> str:
    """The value of an option, which leaves the arguments."""
    place = arguments.index(option)
    arguments.pop(place)
    if "=" in option:
        return option.partition("=")[2]
    if place == len(arguments):
        raise ValueError(f"{option} needs a value")
    return arguments.pop(place)


def _of_kind(recipe: Recipe, name: str, value: str, option: str) -> Any:
    """A part of the recipe as the class of its union that has a tag."""
    above, _, own = name.rpartition(".")
    owner: Any = recipe
    for step in above.split(".") if above else ():
        owner = getattr(owner, step)
    members = filter(is_dataclass, get_args(get_type_hints(type(owner))[own]))
    kinds = {tag[1]: kind for kind in members if (tag := tag_of(kind))}
    if value not in kinds:
        raise ValueError(f"{option} must be one of {', '.join(kinds)}, got {value!r}")
    kind = kinds[value]
    required = {part.name: tyro.MISSING for part in fields(kind) if _default(part) is MISSING}
    return _unchecked(kind, required | _defaults(kind) | _set_fields(getattr(owner, own), kind))


def _with(config: Any, name: str, value: Any) -> Any:
    """A configuration with another value of a field, perhaps of one of its parts."""
    first, _, rest = name.partition(".")
    new = _with(getattr(config, first), rest, value) if rest else value
    return _unchecked(type(config), vars(config) | {first: new})


def _unchecked(kind: Any, values: dict[str, Any]) -> Any:
    """A configuration whose fields may not fit each other yet: other arguments make them fit."""
    made = object.__new__(kind)
    vars(made).update(values)
    return made


def _set_fields(config: Any, kind: Any) -> dict[str, Any]:
    """Values of the fields of a configuration that another class has too, but for defaults."""
    common = {part.name for part in fields(kind)}
    return {
        part.name: value
        for part in fields(config)
        if part.name in common and (value := getattr(config, part.name)) != _default(part)
    }


def _defaults(kind: Any) -> dict[str, Any]:
    return {p.name: value for p in fields(kind) if (value := _default(p)) is not MISSING}


def _default(part: Any) -> Any:
    return part.default if part.default_factory is MISSING else part.default_factory()
