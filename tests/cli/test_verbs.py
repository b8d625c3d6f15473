"""The command line and the front door have the same verbs; exceptions are named with a reason."""

import importlib
import inspect
from dataclasses import fields
from typing import get_type_hints

import pytest

import drrho
from drrho.cli import COMMANDS

# Commands that are called otherwise in Python; all others have their own name.
CALLED = {
    "reference precompute": "precompute_reference",
    "reference import": "import_reference",
    "reference join": "join_reference",
}
WITHOUT_A_VERB = {
    "demo": "a comparison of its own, shown once",
    "mix": "writes a manifest, which programs make with drrho.data",
    "split": "writes manifests, which programs make with drrho.data",
    "reference verify": "a report to read",
    "reference losses": "a report to read",
    "probe losses": "the same verb, probe, takes losses in Python",
    "recipes": "a list to read",
    "scaling fit": "a report of finished comparisons to read",
    "scaling efficiency": "a report of finished comparisons to read",
    "variance": "a picture to look at",
    "scenes": "data of the demonstration and the tests",
}
WITHOUT_A_COMMAND = {
    "load": "gives a model to a program",
    "open_reference": "gives stored embeddings to a program",
}
VERBS = {
    *("train", "load", "index", "evaluate", "probe", "compare", "curate", "report", "export"),
    *("steer", "ls", "advise"),
    *("precompute_reference", "open_reference", "import_reference"),
    "join_reference",
}
# Functions of the front door that are mathematics and no verb of a workflow.
MATHEMATICS = {"accumulate_gradients", "effective_sample_size", "excess_loss", "token_losses"}


def test_every_command_is_a_verb_or_says_why_not():
    assert set(WITHOUT_A_VERB) <= set(COMMANDS)
    called = {CALLED.get(name, name) for name in COMMANDS if name not in WITHOUT_A_VERB}
    assert called == VERBS - set(WITHOUT_A_COMMAND)


def test_the_front_door_has_these_verbs_and_no_other():
    assert {name for name in drrho.__all__ if name[0].islower()} - MATHEMATICS == VERBS


def takes_trust(command):
    """Whether a command has the option `--trust`."""
    module, _, name = COMMANDS[command].partition(":")
    function = getattr(importlib.import_module(module), name)
    (kind,) = (kind for it, kind in get_type_hints(function).items() if it != "return")
    if kind == list[str]:  # it reads its options itself
        return "--trust" in function.__doc__
    return "trust" in {part.name for part in fields(kind)}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in WITHOUT_A_VERB])
def test_a_verb_takes_trust_where_its_command_does(command):
    verb = getattr(drrho, CALLED.get(command, command))
    assert ("trust" in inspect.signature(verb).parameters) == takes_trust(command)


def test_these_commands_take_trust_and_no_other():
    assert {name for name in COMMANDS if takes_trust(name)} == {
        *("train", "compare", "probe", "evaluate", "export", "report", "curate"),
        *("reference precompute", "reference verify", "reference join", "steer", "advise"),
    }
