"""The primaries of the examples: one family, of which what was not run finds nothing."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import examples_summary as summary  # noqa: E402


def write(folder, accuracies):
    folder.mkdir()
    results = {name: [{"accuracy": one} for one in values] for name, values in accuracies.items()}
    (folder / "results.json").write_text(json.dumps(results))


def test_holm_s_family_is_all_six_primaries_run_or_not(tmp_path):
    noise = (0.003, -0.002, 0.001, 0.0, -0.001, 0.002, -0.003, 0.001)
    write(
        tmp_path / "digits",
        {
            "plain": [0.90] * 8,
            "DRRho, KL": [0.95 + it for it in noise],
            "union": [0.95] * 8,
            "union, DRRho": [0.93 + it for it in noise],
        },
    )
    found = summary.primaries(tmp_path)
    summary.main([str(tmp_path)])
    rows = (tmp_path / "summary.md").read_text().splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[-1] for row in cells] == ["holds", "refuted", *["not yet run"] * 4]
    # The smaller of the two that were run, of six; printed with two digits.
    smaller = min(it.test.p for it in found[:2] if it.test is not None)
    assert min(float(row[-2]) for row in cells[:2]) == pytest.approx(6 * smaller, rel=0.05)


def test_few_seeds_give_no_verdict(tmp_path):
    write(tmp_path / "digits", {"plain": [0.9] * 7, "DRRho, KL": [0.95, 0.96] + [0.95] * 5})
    assert summary.primaries(tmp_path)[0].test is None
    assert "holds" not in summary.table(summary.primaries(tmp_path))


def test_the_committed_summary_is_that_of_the_committed_results():
    folder = ROOT / "docs" / "results" / "examples"
    assert f"{summary.table(summary.primaries(folder))}\n" == (folder / "summary.md").read_text()
