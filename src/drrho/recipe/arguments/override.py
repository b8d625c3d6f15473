"""Fields of a recipe changed by arguments: `--training.steps 2000 --objective.method clip`."""

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

import tyro

from drrho.recipe.recipe import Recipe
from drrho.runtime.records import OPTIONAL, TAGS, tag_of

Kind = TypeVar("Kind")
# Given one, the recipe's other one goes.
ALTERNATIVES = {
    "training.steps": "training.epochs",
    "training.epochs": "training.steps",
    "model.name": "model.pretrained",  # weights belong to an architecture
}


def overridden(
    recipe: Recipe, arguments: Sequence[str], *, source: str, description: str
) -> Recipe:
    """Change fields of a recipe; `--help` among the arguments describes them, and exits.

    `--objective.method` and `--objective.temperature.kind` choose another class, which keeps what
    the recipe sets of the fields that both have. Of the other parts that the recipe leaves out
    some begin with their first field (`tuning.lora`, `training.ema`); `selection` and
    `objective.distillation` are added in the file.

    Args:
        recipe: recipe to change.
        arguments: options with their values.
        source: file or name that the recipe came from, for messages.
        description: text above the options in the help.

    Raises:
        ValueError: an option belongs to a part that the recipe leaves out, names no class, or
            gives a recipe that makes no sense.
    """
    default, left = recipe, list(arguments)
    for option in arguments:
        name, tag = _split(option)
        if tag in TAGS and (kinds := _kinds(default, name)):
            value = _taken(left, option)
            if value not in kinds:
                raise ValueError(f"{option} must be one of {', '.join(kinds)}, got {value!r}")
            default = _with(default, name, _of_kind(_part(default, name), kinds[value]))
    for option in left:
        while option.startswith("--") and (part := _absent_part(default, option)):
            if (kind := _kind_to_add(default, part)) is not None:
                default = _with(default, part, _of_kind(None, kind))
                continue
            raise ValueError(
                f"{option} has nothing to change: recipe {source} has {part} = None. Set {part} in "
                "a recipe's file; the command line can change it then"
            )
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
    """Convert a configuration to another class, with what was set of the fields that both have."""
    return kind(**_set_fields(config, kind))


def _absent_part(recipe: object, option: str) -> str | None:
    """Name the part that an option such as `--selection.batch-size` needs and the recipe lacks."""
    names = ".".join(_split(option)).split(".")
    for depth, name in enumerate(names[:-1], start=1):
        if not is_dataclass(recipe) or name not in {part.name for part in fields(recipe)}:
            return None
        recipe = getattr(recipe, name)
        if recipe is None:
            return ".".join(names[:depth])
    return None


def _kind_to_add(recipe: Recipe, name: str) -> Any:
    """Find the class of a part that a recipe leaves out and an option may begin; or None."""
    above, _, own = name.rpartition(".")
    owner: Any = _part(recipe, above)
    if not any(it.name == own and it.metadata == OPTIONAL for it in fields(owner)):
        return None
    members = [it for it in get_args(get_type_hints(type(owner))[own]) if is_dataclass(it)]
    return members[0] if len(members) == 1 else None


def _split(option: str) -> tuple[str, str]:
    """Split an option into its part and its field: "objective.temperature" and "kind"."""
    if not option.startswith("--"):
        return "", ""
    part, _, field = option.partition("=")[0].removeprefix("--").replace("-", "_").rpartition(".")
    return part, field


def _taken(arguments: list[str], option: str) -> str:
    """Remove an option from the arguments, and return its value."""
    place = arguments.index(option)
    arguments.pop(place)
    if "=" in option:
        return option.partition("=")[2]
    if place == len(arguments):
        raise ValueError(f"{option} needs a value")
    return arguments.pop(place)


def _part(recipe: Any, name: str) -> Any:
    """Look up a part by its dotted name; None where the recipe has none."""
    for step in name.split(".") if name else ():
        recipe = getattr(recipe, step, None)
    return recipe


def _kinds(recipe: Recipe, name: str) -> dict[str, Any]:
    """List the classes that a part may have by their tags; none unless it is a union of such."""
    above, _, own = name.rpartition(".")
    owner = _part(recipe, above)
    hint = get_type_hints(type(owner)).get(own) if is_dataclass(owner) else None
    members = filter(is_dataclass, get_args(hint))
    return {tag[1]: kind for kind in members if (tag := tag_of(kind))}


def _of_kind(config: Any, kind: Any) -> Any:
    """Convert a part of the recipe, or None, to another class."""
    defaults = {part.name: _default(part) for part in fields(kind)}
    return _unchecked(kind, defaults | ({} if config is None else _set_fields(config, kind)))


def _with(config: Any, name: str, value: Any) -> Any:
    """Replace the value of a field, perhaps of one of the configuration's parts."""
    first, _, rest = name.partition(".")
    new = _with(getattr(config, first), rest, value) if rest else value
    return _unchecked(type(config), vars(config) | {first: new})


def _unchecked(kind: Any, values: dict[str, Any]) -> Any:
    """Build a configuration without its checks: later arguments may make its fields fit."""
    made = object.__new__(kind)
    vars(made).update(values)
    return made


def _set_fields(config: Any, kind: Any) -> dict[str, Any]:
    """Collect the values of fields that another class has too, but for those left at a default.

    A default is told by identity: a number equal to it that somebody gave is another object, and
    is kept where the other class has another default.
    """
    common = {part.name for part in fields(kind)}
    return {
        part.name: value
        for part in fields(config)
        if part.name in common and (value := getattr(config, part.name)) is not part.default
    }


def _default(part: Any) -> Any:
    """Return the default of a field; tyro's mark of a required option without one."""
    if part.default_factory is not MISSING:
        return part.default_factory()
    return tyro.MISSING if part.default is MISSING else part.default
