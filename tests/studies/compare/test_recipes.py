"""The studies are fair as written; the committed summary is that of the committed results."""

import sys
from pathlib import Path

import pytest

from drrho.recipe.recipe import load_recipe
from drrho.studies.compare.results import read_results
from drrho.studies.compare.spec import Comparison

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "experiments"))
import comparison_summary as summary  # noqa: E402

STUDIES = ("scenes-0", "scenes-30", "scenes-60", "emoji-pictograms", "openstax-figures")
RESULTS = ROOT / "docs" / "results" / "comparison"


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_loads_and_gives_all_methods_the_same_effort(study, monkeypatch):
    monkeypatch.setenv("DRRHO_STUDY", study)
    recipe = load_recipe(ROOT / "recipes" / "comparison.py", Comparison)
    assert {len(recipe.settings(method)) for method in recipe.methods} == {3}
    loaded = {
        it.loading.batch_size * it.training.steps
        for method in recipe.methods
        for it in recipe.settings(method)
    }
    assert len(loaded) == 1
    assert len(recipe.seeds) == (3 if study == "openstax-figures" else 5)
    assert recipe.output.endswith(study)


def test_an_unknown_study_is_named(monkeypatch):
    monkeypatch.setenv("DRRHO_STUDY", "cifar")
    with pytest.raises(ValueError, match="'cifar' is no study"):
        load_recipe(ROOT / "recipes" / "comparison.py", Comparison)


def test_the_committed_summary_is_that_of_the_committed_results(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["", *(str(RESULTS / it) for it in STUDIES), "--output", str(tmp_path)]
    )
    summary.main()
    assert (tmp_path / "summary.md").read_text() == (RESULTS / "summary.md").read_text()
    assert (tmp_path / "summary.png").stat().st_size > 10_000


def test_bold_is_an_interval_above_zero():
    results = read_results(RESULTS / "scenes-30" / "results.json")
    for method in set(results.methods) - {"openclip"}:
        row = summary.difference(results, method)
        assert row is not None
        bold = summary.cell(results, method).startswith("**")
        assert bold == (row.interval[0] > 0)
