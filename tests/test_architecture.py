"""The rules of docs/architecture.md, executed: its table of rooms is read, not repeated, here."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "drrho"
MODULES = sorted(SOURCE.rglob("*.py"))
LONGEST_MODULE = 500  # lines
MOST_MODULES = 14  # side by side
DISTRIBUTED = ("runtime/distributed.py", "runtime/launch.py", "runtime/meeting.py")
PURE_ROOMS = {"risk", "contrastive"}
IMPURE_LIBRARIES = {
    *("asyncio", "io", "logging", "multiprocessing", "os", "pathlib", "random"),
    *("shutil", "socket", "subprocess", "sys", "tempfile", "threading", "time"),
}
# PyTorch for CUDA brings it; a module that imports it must do without.
FROM_CUDA = {"triton"}
# Imported where it is asked for, with an error that says how to install it.
ON_REQUEST = {"datasets", "pyarrow", "trackio", "transformers", "wandb"}
# A module that needs more than its room, and may be imported only by rooms that bring it.
NEEDS_EXTRA = {
    "runtime/progress.py": "clip",
    "runtime/locks.py": "clip",
    "plotting/png.py": "report",
    "plotting/axes.py": "report",
    "plotting/svg.py": "report",
}
# Engines built on process groups that do not hand one to the caller.
DISTRIBUTED_ENGINES = tuple(
    f"torch.distributed.{name}" for name in ("checkpoint", "fsdp", "tensor")
)


def table_of_rooms():
    """{room: (rooms it may import, extras that install it)}, from docs/architecture.md."""
    rows = re.findall(
        r"^\| `([\w.]+)` \|[^|]*\| ([^|]*) \| (?:none|`([\w,]+)`) \|$",
        (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    rooms = {room for room, _, _ in rows}
    table = {}
    for room, may_import, extras in rows:
        named = set(re.findall(r"`([\w.]+)`", may_import))
        all_but = may_import.startswith("every room but")
        if may_import.endswith("and what `recipe` may import"):
            named |= table["recipe"][0]
        table[room] = (rooms - named if all_but else named, set(extras.split(",")) - {""})
    return table


ROOMS = table_of_rooms()


def room_at(parts):
    """The room of a module, given its place as `("studies", "probe", "probe")`: of two levels
    among the studies.
    """
    return ".".join(parts[:2] if parts[0] == "studies" else parts[:1])


def module_of_study(name):
    """`studies.compare.results` of an imported name: the table may name one module of a study."""
    return ".".join(name.split(".")[1:4])


def room_of(path):
    return room_at(path.relative_to(SOURCE).with_suffix("").parts)


def syntax(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_names(path):
    """Dotted names of everything imported anywhere in the module, inside functions too."""
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def assert_none(found):
    """`found` is (module, what is wrong with it) pairs."""
    lines = [f"src/drrho/{path.relative_to(SOURCE)}: {what}" for path, what in found]
    assert not lines, "\n".join(lines)


def test_the_table_names_every_room_and_no_other():
    assert MODULES
    assert {room_of(path) for path in MODULES} - {
        "__init__",
        "__main__",
        "studies.__init__",
    } == set(ROOMS)


def test_the_arrows_have_no_cycle():
    def follow(room, path):
        assert room not in path, f"{' -> '.join(path)} -> {room}"
        for imported in {room_at(name.split(".")) for name in ROOMS[room][0]} - {room}:
            follow(imported, (*path, room))

    for room in ROOMS:
        follow(room, ())


def test_imports_follow_the_arrows():
    allowed = {"__init__": set(ROOMS), "studies.__init__": set(), "__main__": {"cli"}} | {
        room: may_import | {room} for room, (may_import, _) in ROOMS.items()
    }
    assert_none(
        (path, f"may not import {name}")
        for path in MODULES
        for name in imported_names(path)
        if name.startswith("drrho.") and name != "drrho.__version__"
        if not {room_at(name.split(".")[1:]), module_of_study(name)} & allowed[room_of(path)]
    )


def test_a_room_imports_only_what_its_installation_brings():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    providers = packages_distributions()

    def is_installed(library, path):
        if library in {"drrho", *FROM_CUDA, *ON_REQUEST} or library in sys.stdlib_module_names:
            return True
        extras = extras_of(path)
        requirements = project["dependencies"] + [
            line for extra in extras for line in project["optional-dependencies"][extra]
        ]
        names = {canonical(re.match(r"[\w.-]+", line)[0]) for line in requirements}
        return not names.isdisjoint(map(canonical, providers.get(library, [library])))

    assert_none(
        (path, f"{name} is not installed with {room_of(path)}")
        for path in MODULES
        for name in imported_names(path)
        if not is_installed(name.split(".")[0], path)
    )


def extras_of(path):
    room = room_of(path)
    more = NEEDS_EXTRA.get(path.relative_to(SOURCE).as_posix())
    return (ROOMS[room][1] if room in ROOMS else set()) | ({more} if more else set())


def test_a_module_that_needs_an_extra_is_imported_where_it_is_installed():
    dotted = {f"drrho.{name[:-3].replace('/', '.')}": extra for name, extra in NEEDS_EXTRA.items()}
    assert_none(
        (path, f"imports {name} and has not {dotted[module]}")
        for path in MODULES
        for name in imported_names(path)
        for module in dotted
        if f"{name}.".startswith(f"{module}.") and dotted[module] not in extras_of(path)
    )


def canonical(distribution):
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_mathematics_is_pure():
    pure = [path for path in MODULES if room_of(path) in PURE_ROOMS]
    assert_none(
        (path, f"may not import {name}")
        for path in pure
        for name in imported_names(path)
        if name.split(".")[0] in IMPURE_LIBRARIES
    )
    assert_none(
        (path, f"may not call {ast.unparse(node.func)}")
        for path in pure
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"open", "print", "input"}
    )


def test_only_distributed_names_a_process_group():
    def names(path):
        yield from imported_names(path)
        for node in ast.walk(syntax(path)):
            if isinstance(node, ast.Attribute):
                yield ast.unparse(node)

    assert_none(
        (path, f"{name} belongs into {DISTRIBUTED}")
        for path in MODULES
        if not str(path).endswith(DISTRIBUTED)
        for name in names(path)
        if f"{name}.".startswith("torch.distributed.") and not name.startswith(DISTRIBUTED_ENGINES)
    )


def test_imports_are_absolute():
    assert_none(
        (path, f"line {node.lineno} is a relative import")
        for path in MODULES
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    )


def test_text_is_utf_8_whatever_the_locale():
    def opens_text(node):
        mode = [it.value for it in node.args[1:2] if isinstance(it, ast.Constant)]
        name = ast.unparse(node.func)
        text = name.endswith((".read_text", ".write_text")) or (
            name == "open" and "b" not in str(mode or "r")
        )
        return text and not any(it.arg == "encoding" for it in node.keywords)

    assert_none(
        (path, f"line {node.lineno} needs encoding=")
        for path in MODULES
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.Call) and opens_text(node)
    )


def test_modules_are_short():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert_none(
        (path, f"{length} lines") for path, length in lengths.items() if length > LONGEST_MODULE
    )


def test_no_room_is_crowded():
    for folder in {path.parent for path in MODULES}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES, f"{folder} has {len(modules)} modules"
