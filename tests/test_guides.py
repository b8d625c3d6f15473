"""The guides name what exists: messages, fields, options and commands."""

import ast
import csv
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from drrho.cli import main
from drrho.recipe.named.finetune import FineTuningScale
from drrho.recipe.named.published import Scale
from drrho.recipe.recipe import Recipe

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs" / "guides"


@pytest.fixture(scope="module")
def messages():
    """Every text in the code, with `...` for what is put in."""
    found = set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (it.value if isinstance(it, ast.Constant) else "..." for it in node.values)
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def quoted_messages():
    text = (GUIDES / "troubleshooting.md").read_text("utf-8")
    return [it[1:-1] for it in re.findall(r"^### (`.+`)$", text, flags=re.MULTILINE)]


def test_messages_of_the_troubleshooting_page_are_raised(messages):
    quoted = quoted_messages()
    assert len(quoted) >= 30
    assert len(set(quoted)) == len(quoted)
    missing = [it for it in quoted if not any(it in message for message in messages)]
    assert not missing, "\n".join(missing)


def test_a_message_that_is_not_raised_would_be_found(messages):
    assert not any("shard ... has gone fishing" in message for message in messages)


def tables():
    """Rows of the migration tables: (option there, field here, difference)."""
    text = (GUIDES / "migrating.md").read_text("utf-8")
    rows = re.findall(r"^\| (`--.*?) \| (.*?) ?\| (.*?) ?\|$", text, flags=re.MULTILINE)
    assert len(rows) > 50
    return rows


def exists(config, name):
    """Whether a dotted name is a field of a recipe, through optional parts too."""
    first, _, rest = name.partition(".")
    part = get_type_hints(config).get(first)
    if part is None or not rest:
        return part is not None
    return any(is_dataclass(it) and exists(it, rest) for it in (part, *get_args(part)))


def test_fields_of_the_migration_tables_exist():
    named = [name for row in tables() for name in re.findall(r"`([\w.]+)`", row[1])]
    assert len(named) > 30
    missing = [name for name in named if not exists(Recipe, name)]
    assert not missing
    assert not exists(Recipe, "training.optimizer.momentum")


def test_every_flag_of_the_published_code_has_a_row():
    """The list is of Optimization-AI/DRRho-CLIP, which has all of Optimization-AI/fast_clip too."""
    with (ROOT / "tests" / "fixtures" / "published_flags.csv").open(newline="") as file:
        flags = [row["flag"] for row in csv.DictReader(file)]
    assert len(flags) == 132
    named = [flag for row in tables() for flag in re.findall(r"`(--[\w-]+)[^`]*`", row[0])]
    assert not set(flags) - set(named)


def test_options_of_open_clip_exist():
    params = pytest.importorskip("open_clip_train.params", reason="open_clip has no trainer here")
    text = (GUIDES / "migrating.md").read_text("utf-8")
    section = text.partition("## From open_clip")[2].partition("## From the published")[0]
    cells = re.findall(r"^\| (`--.*?) \|", section, flags=re.MULTILINE)
    options = {it for cell in cells for it in re.findall(r"`--([\w-]+)`", cell)}
    known = {name.replace("_", "-") for name in vars(params.parse_args([]))}
    assert not options - known
    assert not known - options - {"default"}, "an option that open_clip has and the guide lacks"


SCALES = (Scale, FineTuningScale)
# Of `drrho train`, beside the fields of a recipe that its help lists.
OF_TRAIN = {
    *("dry-run", "extend"),
    *(f"scale.{it.name.replace('_', '-')}" for kind in SCALES for it in fields(kind)),
}


def commands_of_pages():
    """The `drrho ...` lines of shell blocks, continuation lines joined."""
    for page in sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]):
        text = page.read_text("utf-8")
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.search(r"(?:^|-m )drrho ([a-z]\w*(?: [a-z]+\b)?)(.*)$", line.strip())
                if command:
                    yield page.name, *command.groups()


def test_options_of_commands_in_the_pages_exist(capsys):
    """Not run, as they need data: every option is one that the command's help lists."""
    checked, unknown = 0, []
    helps = {}
    for page, command, rest in commands_of_pages():
        words = command.split()
        if words[0] not in {"reference", "probe", "scaling"}:
            words = words[:1]
        if words == ["reference", "import"]:
            words.append(rest.split()[0])  # each format has options of its own
        if words[0] in {"train", "compare"} or words == ["probe"]:
            target = re.search(r"\S+", command.removeprefix(words[0]) + rest)
            recipe = "" if target is None else target.group()
            if words[0] != "train" or recipe.endswith(".py"):
                continue  # what a user's own file allows
            words = ["train", recipe]
        key = tuple(words)
        if key not in helps:
            with pytest.raises(SystemExit):
                raise SystemExit(main([*words, "--help"]))
            helps[key] = capsys.readouterr().out
        for option in re.findall(r"(?<=\s)--([a-z][\w.-]*)", rest):
            checked += 1
            listed = f"--{option.replace('_', '-')}" in helps[key]
            of_train = option in OF_TRAIN or exists(Recipe, option.replace("-", "_"))
            if not listed and not (words[0] == "train" and of_train):
                unknown.append(f"{page}: drrho {' '.join(words)} --{option}")
    assert checked > 20
    assert not unknown, "\n".join(unknown)
