"""The help of every command: each option has a phrase that stands alone."""

import re
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import docstring_parser
import pytest
from tests.plain_words import unclear

from drrho.cli import COMMANDS, _load
from drrho.recipe.arguments.command import FineTuningOptions, ScaleOptions
from drrho.recipe.recipe import Recipe

# Beginnings that need the name of the option, or another option's text, to be understood.
FRAGMENT = re.compile(r"(of|which|whose|where|likewise|such|these|those|that|as|for|in|with)\b")


def configs(kind):
    """The dataclasses that an annotation is made of, those of their fields included."""
    if is_dataclass(kind):
        yield kind
        for annotation in get_type_hints(kind).values():
            yield from configs(annotation)
    for part in get_args(kind):
        yield from configs(part)


def configs_of(command):
    hints = get_type_hints(_load(COMMANDS[command]))
    kinds = [kind for name, kind in hints.items() if name != "return"]
    assert len(kinds) == 1
    return (ScaleOptions, FineTuningOptions, Recipe) if kinds == [list[str]] else kinds


def texts(config):
    """{field: its text}, from the docstrings of the class and of those that it inherits from."""
    found = {}
    for parent in config.__mro__:
        for line in docstring_parser.parse(parent.__doc__ or "").params:
            for name in line.arg_name.split(","):
                found.setdefault(name.strip(), line.description or "")
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_phrase_that_stands_alone(command):
    wrong = []
    for config in {it for kind in configs_of(command) for it in configs(kind)}:
        found = texts(config)
        for name in (it.name for it in fields(config) if it.init):
            text = " ".join(found.get(name, "").split())
            words = re.sub(r"[^a-z]+", " ", text.lower()).split()
            repeats = set(words) <= {*name.split("_"), "the", "a"}
            if not text.endswith(".") or FRAGMENT.match(text) or repeats or unclear(text):
                wrong.append(f"{config.__module__}.{config.__name__}.{name}: {text!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("text", ["of the bootstrap.", "which, from 0.", "likewise."])
def test_a_fragment_would_be_found(text):
    assert FRAGMENT.match(text)
