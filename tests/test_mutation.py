"""The changes that `benchmarks/mutation.py` makes, and the table that it writes."""

import ast
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MUTATION = runpy.run_path(str(ROOT / "benchmarks" / "mutation.py"))
SOURCE = '''"""A constant of 1."""

LIMIT = 2.5


def café(x: int = 3):
    """Never 4."""
    check(x, strict=True)
    if not 0 < x <= LIMIT:
        raise ValueError(f"5 < {x}")
    x += 1
    return -x * "é" if x == 6 and x else x - 7
'''


def test_every_place_is_changed_once_and_neither_words_nor_annotations():
    changes = [(it.before, it.after) for it in MUTATION["mutants_of"](SOURCE, "a.py")]
    assert changes == [
        ("2.5", "(5.0)"),
        ("3", "(4)"),
        ("check(x, strict=True)", "pass"),
        ("True", "(False)"),
        ("not 0 < x <= LIMIT", "(0 < x <= LIMIT)"),
        ("0 < x <= LIMIT", "(0 <= x <= LIMIT)"),
        ("0 < x <= LIMIT", "(0 < x < LIMIT)"),
        ("0", "(1)"),
        ('raise ValueError(f"5 < {x}")', "pass"),
        ("x += 1", "pass"),
        ("1", "(2)"),
        ("x == 6 and x", "(x == 6 or x)"),
        ("x == 6", "(x != 6)"),
        ("6", "(7)"),
        ('-x * "é"', "(-x / 'é')"),
        ("-x", "(x)"),
        ("x - 7", "(x + 7)"),
        ("7", "(8)"),
    ]


def test_every_mutant_is_a_module_with_another_text_and_a_name_of_its_own():
    path = ROOT / "src" / "drrho" / "steering" / "loss_table.py"
    source, names = path.read_text(), set()
    for mutant in MUTATION["mutants_of"](source, "steering/loss_table.py"):
        ast.parse(mutant.of(source))
        assert mutant.of(source) != source
        names.add(MUTATION["shown"](mutant))
    assert len(names) == len(list(MUTATION["mutants_of"](source, "steering/loss_table.py")))


def test_the_tests_that_it_runs_exist():
    for pattern, tests in MUTATION["TESTS"].items():
        assert list((ROOT / "src" / "drrho").glob(pattern)), pattern
        assert all((ROOT / it).exists() for it in tests if it.startswith("tests/")), pattern


def test_reasons_are_kept(tmp_path, monkeypatch):
    table = tmp_path / "mutation.md"
    module = MUTATION["write_table"].__globals__
    monkeypatch.setitem(module, "TABLE", table)
    monkeypatch.setitem(module, "reasons", lambda: MUTATION["reasons"](table))
    results = {"a.py f: 1 -> (2)": "survived", "a.py g: x -> pass": "killed"}
    assert MUTATION["write_table"](results, sampled=5, seed=0, of=9) == 1
    table.write_text(table.read_text().replace("(2)` |  |", "(2)` | only slower |"))
    assert MUTATION["write_table"](results, sampled=5, seed=0, of=9) == 0
    assert "| only slower |" in table.read_text()
    assert "2 of them were run: 1 failed a test" in table.read_text()


def test_verdicts_of_several_sittings_add_up_and_belong_to_the_text_of_the_function(tmp_path):
    def first(source):
        return next(it for it in MUTATION["mutants_of"](source, "a.py") if it.before == "x - 7")

    path = tmp_path / "mutation.json"
    for name in ("b", "a"):
        verdict = MUTATION["Verdict"](name, "hash", "killed", "tests/test_a.py::test_it", 1.5)
        known = MUTATION["read_verdicts"](path)
        MUTATION["write_verdicts"](known | {name: verdict}, path)
    assert list(MUTATION["read_verdicts"](path)) == ["a", "b"]
    assert MUTATION["read_verdicts"](path)["b"] == MUTATION["Verdict"](
        **vars(verdict) | {"mutant": "b"}
    )
    hashed, mutant = MUTATION["hashed"], first(SOURCE)
    assert hashed(first(SOURCE.replace("LIMIT = 2.5", "LIMIT = 3.5"))) == hashed(mutant)
    assert hashed(first(SOURCE.replace("x += 1", "x += 2"))) != hashed(mutant)


@pytest.mark.parametrize(
    ("module", "fits"),
    [("risk/kl.py", True), ("risk/theory/laws.py", True), ("steering/kl.py", False)],
)
def test_a_pattern_goes_through_folders(module, fits):
    assert MUTATION["_fits"](Path(module), "risk/*.py") == fits
