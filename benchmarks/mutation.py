"""Changes the mathematics and the bookkeeping one place at a time, and asks whether a test notices.

    python benchmarks/mutation.py                   # 300 changes; goes on where it was stopped
    python benchmarks/mutation.py --again           # runs those that survived once more

A mutant is a copy of the package in which one comparison, number, sign, condition or statement is
another. The tests of its module alone are run on it, the fastest first. Verdicts are kept in
`benchmarks/mutation.json`, with the test that failed, by the mutant and the text of its function:
several sittings add up, and a function that is changed is tried again. The table of survivors,
`benchmarks/mutation.md`, keeps the reason that somebody has written beside each; the command ends
with 1 while a survivor has none.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks" / "mutation.md"
VERDICTS = ROOT / "benchmarks" / "mutation.json"
SOURCE = Path("src", "drrho")
CONTRASTIVE = "tests/contrastive/test_"


def _of_risk(*first: str) -> list[str]:
    """All tests of risks; pytest runs those of a file that is named first once."""
    return [*(f"tests/risk/test_{name}.py" for name in first), "tests/risk"]


# Which tests are a module's own; the first pattern that fits decides. Files named unhooked.py run
# without the suite's import hook, after the others.
TESTS: dict[str, Sequence[str]] = {
    "risk/theory/*.py": ["tests/risk/theory"],
    "risk/chi_square.py": [*_of_risk("chi_square", "reach"), "-k", "ChiSquare or chi_square"],
    "risk/cvar.py": [*_of_risk("cvar"), "-k", "CVaR or cvar"],
    "risk/kl.py": [*_of_risk("kl"), "-k", "KL or kl"],
    "risk/kl_ball.py": [*_of_risk("kl", "reach"), "-k", "KLBall or kl"],
    "risk/kl_cvar.py": [*_of_risk("kl", "cvar"), "-k", "KLCVaR or kl"],
    "risk/*.py": [*_of_risk("excess", "duality", "result"), "tests/risk/unhooked.py"],
    "steering/accumulation.py": ["tests/steering/test_accumulation.py"],
    "steering/selection.py": ["tests/steering/test_selection.py", "tests/steering/unhooked.py"],
    "steering/tokens.py": ["tests/steering/test_tokens.py", "tests/steering/unhooked.py"],
    "steering/*.py": [
        f"tests/steering/test_{it}.py" for it in ("loss", "distributed", "contract", "bias")
    ] + ["tests/steering/unhooked.py"],
    "contrastive/accumulation.py": [CONTRASTIVE + "accumulation.py"],
    "contrastive/diagnostics.py": [CONTRASTIVE + it for it in ("risk.py", "objective.py")],
    "contrastive/exact.py": [CONTRASTIVE + it for it in ("golden.py", "siglip.py", "risk.py")],
    "contrastive/losses.py": [CONTRASTIVE + "losses.py", "tests/contrastive/unhooked.py"],
    "contrastive/memory/sample_table.py": [
        CONTRASTIVE + it for it in ("sample_table.py", "estimator.py", "loss_distributed.py")
    ],
    "contrastive/memory/temperature.py": [
        CONTRASTIVE + it for it in ("golden_fastclip.py", "objective.py", "loss_distributed.py")
    ],
    "contrastive/objectives/distillation.py": [
        CONTRASTIVE + it for it in ("distillation.py", "tiles_distributed.py", "objective.py")
    ] + ["tests/contrastive/unhooked.py"],
    "contrastive/objectives/siglip.py": [
        CONTRASTIVE + it for it in ("siglip.py", "tiles_distributed.py", "objective.py")
    ],
    "contrastive/objectives/*.py": [
        CONTRASTIVE + it
        for it in ("golden.py", "golden_fastclip.py", "losses.py", "sample_table.py",
                   "estimator.py", "implementations.py", "objective.py", "loss_distributed.py")
    ] + ["tests/contrastive/unhooked.py"],
    "contrastive/pairs.py": [CONTRASTIVE + it for it in ("tiles.py", "risk.py", "jest.py")],
    "contrastive/selection/*.py": [
        CONTRASTIVE + it for it in ("rho.py", "jest_distributed.py", "jest.py")
    ] + ["tests/contrastive/unhooked.py"],
    "contrastive/tiles/kernels.py": [CONTRASTIVE + "kernels.py"],
    "contrastive/tiles/*.py": [
        CONTRASTIVE + it
        for it in ("distillation.py", "tiles.py", "tiles_distributed.py", "implementations.py")
    ],
    "data/order.py": ["tests/data/test_order.py"],
    "reference/store.py": ["tests/reference/test_store.py", "tests/reference/test_damage.py"],
    "reference/shard_files.py": [
        f"tests/reference/test_{it}.py" for it in ("store", "damage", "losses")
    ],
    "training/state.py": ["tests/training/test_state.py", "tests/training/test_resume.py"],
    "runtime/distributed.py": [
        "tests/runtime/test_distributed.py", "tests/contrastive/test_tiles_distributed.py",
        "tests/training/test_state.py", "tests/contrastive/test_sample_table.py", "tests/runtime",
    ],
}  # fmt: skip
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
# Imported once, before the forks that run the tests.
PRELOADED = (
    *("torch", "torch.distributed.tensor", "jaxtyping", "beartype", "safetensors.torch"),
    *("numpy", "hypothesis", "hypothesis.strategies", "tyro", "PIL.Image", "pytest", "scipy.stats"),
)


@dataclass(frozen=True)
class Mutant:
    """One change of a module.

    Attributes:
        module: its path under the package.
        place: the function or class that the change is in, and its number there.
        before, after: source text.
        start, end: offsets of the text in the module.
        around: source text of the function that the change is in, or of the statement.
    """

    module: str
    place: str
    before: str
    after: str
    start: int
    end: int
    around: str

    @property
    def key(self) -> str:
        return f"{self.module} {self.place}: {self.before} -> {self.after}"

    def of(self, source: str) -> str:
        return source[: self.start] + self.after + source[self.end :]


def mutants_of(source: str, module: str) -> Iterator[Mutant]:
    """Find every change that can be made to a module, in the order of its text."""
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line.encode()))
    raw, numbers = source.encode(), dict[tuple[str, str, str], int]()

    def visit(node: ast.AST, place: str, around: ast.AST | None) -> Iterator[Mutant]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            place = f"{place}.{node.name}".lstrip(".")
        if not isinstance(around, ast.FunctionDef) and isinstance(node, ast.stmt):
            around = node
        for changed in _changes(node):
            # Positions are in bytes of UTF-8, and the text is cut in characters.
            start, end = (
                len(raw[: lines[line - 1] + column].decode())
                for line, column in (
                    (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset),
                )
            )  # fmt: skip
            before = source[start:end]
            after = changed if isinstance(node, ast.stmt) else f"({changed})"
            same = (place, " ".join(before.split()), after)
            numbers[same] = numbers.get(same, 0) + 1
            number = f" ({numbers[same]})" if numbers[same] > 1 else ""
            place_there = f"{place or 'module'}{number}"
            text = ast.unparse(around or node)
            yield Mutant(module, place_there, before, after, start, end, text)
        for child in _children(node):
            yield from visit(child, place, around)

    yield from visit(ast.parse(source), "", None)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """Go into what is computed: no annotations, no messages of errors, no docstrings."""
    if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr):
        return
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            yield from (it for it in (value if isinstance(value, list) else [value])
                        if isinstance(it, ast.AST))  # fmt: skip


def _changes(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Compare(left, [operator], [right]):
            yield ast.unparse(ast.Compare(left, [COMPARISONS[type(operator)]()], [right]))
        case ast.Compare(left, [first, second], right):  # a < b < c
            yield ast.unparse(ast.Compare(left, [COMPARISONS[type(first)](), second], right))
            yield ast.unparse(ast.Compare(left, [first, COMPARISONS[type(second)]()], right))
        case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
            yield ast.unparse(ast.BinOp(left, OPERATORS[type(operator)](), right))
        case ast.BoolOp(operator, values):
            other = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield ast.unparse(ast.BoolOp(other, values))
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield ast.unparse(operand)
        case ast.Constant(bool() as value):
            yield str(not value)
        case ast.Constant(int() as value):
            yield str(value + 1)
        case ast.Constant(float() as value):
            yield repr(value * 2 if value else 1.0)
        case ast.Expr(ast.Call()) | ast.AugAssign() | ast.Raise():
            yield "pass"


def candidates(tests: dict[str, Sequence[str]] = TESTS) -> list[tuple[Mutant, Sequence[str]]]:
    """Find all mutants of all modules that have tests of their own."""
    found = []
    for path in sorted((ROOT / SOURCE).rglob("*.py")):
        module = path.relative_to(ROOT / SOURCE)
        own = next((it for pattern, it in tests.items() if _fits(module, pattern)), [])
        if own and module.name != "triton.py":  # compiled by Triton from its source
            found += [(it, own) for it in mutants_of(path.read_text(), str(module))]
    return found


def _fits(module: Path, pattern: str) -> bool:
    """Whether a module is the pattern's; `*` goes through folders."""
    folder, _, name = pattern.rpartition("/")
    return str(module) == pattern or (name == "*.py" and str(module).startswith(f"{folder}/"))


@dataclass(frozen=True)
class Verdict:
    """What the tests said to a mutant.

    Attributes:
        mutant: its name.
        around: hash of the text of its function.
        result: "killed", "survived" or "too slow", which is a kill.
        test: the test that failed; empty if none did.
        seconds: time that it took.
    """

    mutant: str
    around: str
    result: str
    test: str = ""
    seconds: float = 0.0


def read_verdicts(path: Path = VERDICTS) -> dict[str, Verdict]:
    """Read the verdicts of earlier sittings, by mutant."""
    rows = json.loads(path.read_text()) if path.exists() else []
    return {row["mutant"]: Verdict(**row) for row in rows}


def write_verdicts(verdicts: dict[str, Verdict], path: Path = VERDICTS) -> None:
    """Write all verdicts, a line each, so that those of two sittings can be merged."""
    rows = [json.dumps(vars(verdicts[name])) for name in sorted(verdicts)]
    new = path.with_suffix(".new")
    new.write_text("[\n" + ",\n".join(rows) + "\n]\n")
    new.replace(path)


def run(mutant: Mutant, tests: Sequence[str], copy: Path, *, seconds: float) -> Verdict:
    """Run a module's tests on a mutant."""
    start = time.monotonic()
    path = copy / SOURCE / mutant.module
    original = path.read_text()
    # Same size and second as the file before: its bytecode would be taken for the mutant's.
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()
    hooked = [it for it in tests if not it.endswith("unhooked.py")]
    unhooked = [it for it in tests if it.endswith("unhooked.py")]
    path.write_text(mutant.of(original))
    try:
        status = _pytest(hooked, copy, seconds=seconds)
        if status == 0 and unhooked:
            status = _pytest(["--noconftest", *unhooked], copy, seconds=seconds)
    finally:
        path.write_text(original)
    failed = re.findall(
        r"^(?:FAILED|ERROR) (\S+)", (copy / "output").read_text("utf-8", "replace"), re.M
    )
    result = {0: "survived", None: "too slow"}.get(status, "killed")
    taken = round(time.monotonic() - start, 1)
    return Verdict(shown(mutant), hashed(mutant), result, failed[0] if failed else "", taken)


def _pytest(arguments: Sequence[str], copy: Path, *, seconds: float) -> int | None:
    """Run pytest in a fork, which has the heavy imports already; None if it takes too long."""
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open(copy / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        sys.path.insert(0, str(copy / "src"))
        import pytest  # noqa: PLC0415

        status = 1
        try:
            options = ["-x", "-rfE", "-p", "no:cacheprovider", "-p", "no:xdist"]
            options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
            status = int(pytest.main([*options, *arguments]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        return None
    finally:  # also where this process is told to end
        _end_group(child)


def _end_group(leader: int) -> None:
    """End a fork and the processes that its tests have started."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def reasons(table: Path = TABLE) -> dict[str, str]:
    """Read the reasons beside the survivors of an earlier table."""
    rows = [line.split(" | ") for line in table.read_text().splitlines()] if table.exists() else []
    rows = [[cell.strip("| ") for cell in row] for row in rows if row[0].startswith("| `")]
    return {row[0].strip("`"): row[1] for row in rows if len(row) == 2 and row[1]}


def write_table(results: dict[str, str], *, sampled: int, seed: int, of: int) -> int:
    """Write the table of survivors with their reasons; returns how many have none."""
    known = reasons()
    survivors = sorted(key for key, result in results.items() if result == "survived")
    counts = {name: list(results.values()).count(name) for name in ("killed", "too slow")}
    lines = [
        "# Mutants that no test notices",
        "",
        "Written by `python benchmarks/mutation.py`; the reasons are written by hand, and kept.",
        "",
        (
            f"Of {of:,} possible mutants {sampled} were drawn with seed {seed}, and {len(results)} "
            f"of them were run: {counts['killed']} failed a test, {counts['too slow']} took too "
            f"long, and {len(survivors)} survived."
        ),
        "",
        "| mutant | why no test can or should notice |",
        "|---|---|",
        *(f"| `{key}` | {known.get(key, '')} |" for key in survivors),
    ]
    TABLE.write_text("\n".join(lines) + "\n")
    return sum(key not in known for key in survivors)


def shown(mutant: Mutant) -> str:
    """The mutant's name on one line, as it stands in the table."""
    return " ".join(mutant.key.split()).replace("|", "or").replace("`", "'")


def hashed(mutant: Mutant) -> str:
    """The hash of the text around a mutant, by which a verdict is known to be of today's code."""
    return hashlib.sha256(mutant.around.encode()).hexdigest()[:16]


def _draw(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=300, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--only", default="", help="only modules whose path begins so")
    parser.add_argument("--seconds", type=float, default=900.0, help="limit for one mutant")
    parser.add_argument("--again", action="store_true", help="run survivors once more")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="in seconds")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    everything = candidates()
    # By a hash of their names: changes elsewhere in the package leave the draw as it is.
    drawn = sorted(everything, key=lambda it: _draw(f"{options.seed} {shown(it[0])}"))
    drawn = drawn[: options.mutants]
    verdicts = read_verdicts()
    results: dict[str, str] = {}
    start = time.monotonic()
    for name in PRELOADED:
        __import__(name)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
        os.chdir(ROOT)
        os.environ["PYTHONPATH"] = str(copy / "src")
        passing: set[str] = set()
        for number, (mutant, tests) in enumerate(drawn, start=1):
            name = shown(mutant)
            found = verdicts.get(name)
            if found is not None and found.around != hashed(mutant):
                found = None
            again = options.again and found is not None and found.result == "survived"
            late = time.monotonic() - start > options.stop_after
            if (found is None or again) and not late and mutant.module.startswith(options.only):
                if str(tests) not in passing:
                    same = replace(mutant, after=mutant.before)
                    sys.dont_write_bytecode = False
                    if run(same, tests, copy, seconds=options.seconds).result != "survived":
                        parser.error(f"the package as it is fails {', '.join(tests)}")
                    passing.add(str(tests))
                sys.dont_write_bytecode = True  # nor do the processes that tests start
                os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
                found = run(mutant, tests, copy, seconds=options.seconds)
                verdicts[name] = found
                write_verdicts(verdicts)
                print(f"{number}/{len(drawn)} {found.result}: {name}", file=sys.stderr, flush=True)
            if found is not None:
                results[name] = found.result
    unexplained = write_table(results, sampled=len(drawn), seed=options.seed, of=len(everything))
    print(f"{unexplained} survivors without a reason", file=sys.stderr)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
