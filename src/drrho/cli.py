"""The command line: `drrho COMMAND ...`.

A command is a line of `COMMANDS`: its name, and the place of a function whose docstring is its line
in `drrho --help` and whose one parameter is a dataclass, which tyro fills in from the options. The
function returns the text to print, or the text and an exit status. One whose parameter is
`list[str]` reads its options itself, as does a dataclass with a method `from_arguments`.

Only the module of the command that is called is imported; the list of commands is read from the
source.
"""

import ast
import difflib
import importlib
import os
import re
import select
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from drrho import __version__
from drrho.runtime.optional import install_command

COMMANDS = {
    "demo": "drrho.studies.demo:run_demo",
    "index": "drrho.data.index:run_index",
    "mix": "drrho.data.index:run_mix",
    "split": "drrho.data.splits:run_split",
    "steer": "drrho.studies.steer.steer:run_steer",
    "reference precompute": "drrho.reference.build:run_precompute",
    "reference verify": "drrho.reference.build:run_verify",
    "reference import": "drrho.reference.formats.build:run_import",
    "reference join": "drrho.reference.joining.join:run_join",
    "reference losses": "drrho.reference.build:run_losses",
    "probe": "drrho.studies.probe.probe:run_probe",
    "probe losses": "drrho.studies.probe.probe:run_probe_losses",
    "advise": "drrho.studies.advise.advise:run_advise",
    "train": "drrho.recipe.arguments.command:run_train",
    "recipes": "drrho.recipe.arguments.command:run_recipes",
    "compare": "drrho.studies.compare.compare:run_compare",
    "scaling fit": "drrho.studies.scaling.fit:run_scaling_fit",
    "scaling efficiency": "drrho.studies.scaling.fit:run_scaling_efficiency",
    "variance": "drrho.studies.report.variance:run_variance",
    "evaluate": "drrho.evaluation.command:run_evaluate",
    "export": "drrho.recipe.export:run_export",
    "report": "drrho.studies.report.write:run_report",
    "curate": "drrho.studies.curate.curate:run_curate",
    "ls": "drrho.studies.listing.ls:run_ls",
    "scenes": "drrho.data.scenes:run_scenes",
}
# Short forms that every command takes: of one option, and of the values of a precision.
SHORT = {"-o": "--output"}
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
HELP = ("--help", "-h", "help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    It is 0, 2 where the command line cannot be understood (an unknown command, option or value), or
    1 where the command fails. An interruption that can be continued has its own.
    """
    warnings.formatwarning = _one_line
    # Charts go to files. What a notebook that started this wants need not be installed here.
    os.environ["MPLBACKEND"] = "agg"
    if {"RANK", "SLURM_PROCID"} & os.environ.keys():
        # Where a process dies, the others say so in one line, and torch's C++ in a hundred.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _called(given)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        # As in `drrho recipes | head`: nobody reads the rest. Python flushes it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    return status


def _called(given: list[str]) -> int:
    if given == ["--version"]:
        print(__version__)
        return 0
    name = next((name for name in (" ".join(given[:2]), *given[:1]) if name in COMMANDS), None)
    if name is None:
        return _without_command(given)
    try:
        text, status = _run(name, _in_full(given[len(name.split()) :]))
    except _user_errors() as error:
        from drrho.runtime.launch import end_with_groups  # noqa: PLC0415  # imports torch

        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            raise  # of the help, which tyro prints
        return end_with_groups(_reported(error))
    # A command that works with several processes has imported this; of others each prints.
    launch = sys.modules.get("drrho.runtime.launch")
    if launch is None or not launch.is_follower():
        print(text)
    return status


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(name: str, arguments: list[str]) -> tuple[str, int]:
    function = _load(COMMANDS[name])
    (parameter,) = (kind for it, kind in get_type_hints(function).items() if it != "return")
    if parameter == list[str]:
        outcome = function(arguments)
    elif hasattr(parameter, "from_arguments"):
        outcome = function(parameter.from_arguments(arguments))
    else:
        import tyro  # noqa: PLC0415  # the losses alone are installed without it

        outcome = function(tyro.cli(parameter, args=arguments, prog=f"drrho {name}"))
    return (outcome, 0) if isinstance(outcome, str) else outcome


def _load(place: str) -> Callable[[Any], str | tuple[str, int]]:
    module, _, function = place.partition(":")
    try:
        importlib.import_module("tyro")
        return getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:  # the losses alone are installed
        raise SystemExit(
            f"drrho: error: {error}; the command line needs: {install_command('clip,report')}"
        ) from error


def _in_full(arguments: Iterable[str]) -> list[str]:
    """The arguments with short forms replaced: `-o FILE`, `--precision bf16`."""
    spelt: list[str] = []
    for argument in arguments:
        option, equals, value = argument.rpartition("=")
        before = option or (spelt[-1] if spelt else "")
        if re.fullmatch(r"--([\w.-]+\.)?precision", before):
            value = PRECISIONS.get(value, value)
        spelt.append(SHORT.get(argument, f"{option}{equals}{value}"))
    return spelt


def _without_command(arguments: list[str]) -> int:
    """Lists the commands, or the commands of a group: on request, or after an unknown name."""
    first, *others = [*arguments, ""]
    names = [name for name in COMMANDS if name.startswith(f"{first} ")] or list(COMMANDS)
    is_group = len(names) < len(COMMANDS)
    if first in HELP or not arguments:
        print(
            f"drrho {__version__}: train a model better under the guidance of a reference model\n\n"
            f"usage: drrho COMMAND ...\n\n{_listing(names)}\n\n"
            "`drrho COMMAND --help` describes a command. -o is short for --output, bf16 and fp16 "
            "for\nprecisions. DRRHO_TRACEBACK=1 shows where an error came from."
        )
        return 0
    if is_group and others[0] in HELP:
        print(f"usage: drrho {first} COMMAND ...\n\n{_listing(names)}")
        return 0
    typed = f"{first} {others[0]}".rstrip() if is_group else first
    meant = None if is_group and typed == first else _nearest(first, others[0])
    if meant in {None, first}:
        remedy = f"there are\n\n{_listing(names)}"
    else:
        remedy = f"did you mean {meant!r}? `drrho --help` lists all"
    print(f"drrho: error: {typed!r} is no command; {remedy}", file=sys.stderr)
    return 2


def _nearest(first: str, second: str) -> str | None:
    """The command or group that is spelt most like two words, if one is."""
    heads = {name.partition(" ")[0] for name in COMMANDS}
    for head in difflib.get_close_matches(first, heads, n=1):
        if not second:
            return head
        return next(iter(difflib.get_close_matches(f"{head} {second}", COMMANDS, 1, 0.8)), head)
    return None


def _listing(names: Iterable[str]) -> str:
    """The commands with the first lines of their docstrings."""
    names = list(names)
    width = max(map(len, names))
    return "\n".join(f"  {name:<{width}}  {_summary(COMMANDS[name])}" for name in names)


def _summary(place: str) -> str:
    """The first line of a function's docstring, from its source: importing takes seconds."""
    module, _, function = place.partition(":")
    path = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_docstring(node) or "").partition("\n")[0].removesuffix(".")
    raise LookupError(f"{place} does not exist")


def _user_errors() -> tuple[type[Exception], ...]:
    """Errors that are reported in one line; anything else keeps its traceback."""
    from drrho.runtime.errors import USER_ERRORS  # noqa: PLC0415  # imports torch
    from drrho.training.interruption import TrainingInterrupted  # noqa: PLC0415

    return (TrainingInterrupted, *USER_ERRORS)


def _reported(error: Exception) -> int:
    """The exit status of an error, which is printed."""
    from drrho.runtime.errors import without_secrets  # noqa: PLC0415  # imports torch

    status = getattr(error, "exit_status", None)
    if status is None and os.environ.get("DRRHO_TRACEBACK"):
        traceback.print_exc()
    message = without_secrets(str(error))
    print(f"drrho: {'error: ' if status is None else ''}{message}", file=sys.stderr)
    from drrho.runtime.errors import UsageError  # noqa: PLC0415  # imports torch

    if isinstance(error, UsageError):
        return 2
    return 1 if status is None else status


def _one_line(message: Warning | str, *_place: object, **_line: object) -> str:
    """A warning without the line of our code that gave it."""
    return f"drrho: warning: {message}\n"
