"""The rules of docs/architecture.md, executed: its table of rooms is read, not repeated, here."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "drrho"
MODULES = sorted(SOURCE.rglob("*.py"))
LONGEST_MODULE = 500  # lines
PURE_ROOMS = {"risk", "contrastive", "selection"}
IMPURE_LIBRARIES = {
    *("asyncio", "io", "logging", "multiprocessing", "os", "pathlib", "random"),
    *("shutil", "socket", "subprocess", "sys", "tempfile", "threading", "time"),
}
# Engines built on process groups that do not hand one to the caller.
DISTRIBUTED_ENGINES = ("torch.distributed.checkpoint", "torch.distributed.fsdp")


def table_of_rooms():
    """{room: (rooms it may import, extras that install it)}, from docs/architecture.md."""
    rows = re.findall(
        r"^\| `(\w+)` \|[^|]*\| ([^|]*) \| `pip install drrho(?:\[([\w,]+)\])?` \|$",
        (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    rooms = {room for room, _, _ in rows}
    table = {}
    for room, may_import, extras in rows:
        named = set(re.findall(r"`(\w+)`", may_import))
        all_but = may_import.startswith("every room but")
        table[room] = (rooms - named if all_but else named, set(extras.split(",")) - {""})
    return table


ROOMS = table_of_rooms()


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def syntax(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_names(path):
    """Dotted names of everything imported anywhere in the module, inside functions too."""
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def each_module(test):
    names = [str(path.relative_to(SOURCE)) for path in MODULES]
    return pytest.mark.parametrize("path", MODULES, ids=names)(test)


def test_the_table_names_every_room_and_no_other():
    existing = {room_of(path) for path in MODULES} - {"__init__", "__main__"}
    assert existing == set(ROOMS)


def test_the_arrows_have_no_cycle():
    def reach(room, above):
        assert room not in above, f"{room} imports itself through {' -> '.join(above)}"
        for imported in ROOMS[room][0] - {room}:
            reach(imported, (*above, room))

    for room in ROOMS:
        reach(room, ())


@each_module
def test_imports_follow_the_arrows(path):
    allowed = {"__init__": set(), "__main__": {"cli"}} | {
        room: may_import | {room} for room, (may_import, _) in ROOMS.items()
    }
    imported = {
        name.split(".")[1]
        for name in imported_names(path)
        if name.startswith("drrho.") and name != "drrho.__version__"
    }
    assert imported <= allowed[room_of(path)]


@each_module
def test_a_room_imports_only_what_its_installation_brings(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    _, extras = ROOMS.get(room_of(path), (set(), set()))
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    installed = {normalised(re.match(r"[\w.-]+", line)[0]) for line in requirements}
    providers = packages_distributions()
    for library in {name.split(".")[0] for name in imported_names(path)}:
        if library == "drrho" or library in sys.stdlib_module_names:
            continue
        provided_by = {normalised(name) for name in providers.get(library, [library])}
        assert provided_by & installed, f"{library} is not installed with this room"


def normalised(distribution):
    return re.sub(r"[-_.]+", "-", distribution).lower()


@each_module
def test_mathematics_is_pure(path):
    if room_of(path) in PURE_ROOMS:
        assert not {name.split(".")[0] for name in imported_names(path)} & IMPURE_LIBRARIES
        calls = {ast.unparse(n.func) for n in ast.walk(syntax(path)) if isinstance(n, ast.Call)}
        assert not calls & {"open", "print", "input"}


@each_module
def test_only_distributed_names_a_process_group(path):
    if room_of(path) == "distributed":
        return
    attributes = {ast.unparse(n) for n in ast.walk(syntax(path)) if isinstance(n, ast.Attribute)}
    for name in {*imported_names(path), *attributes}:
        if name == "torch.distributed" or name.startswith("torch.distributed."):
            assert name.startswith(DISTRIBUTED_ENGINES), f"{name} belongs in distributed.py"


@each_module
def test_imports_are_absolute(path):
    relative = [n for n in ast.walk(syntax(path)) if isinstance(n, ast.ImportFrom) and n.level]
    assert not relative


@each_module
def test_modules_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE
