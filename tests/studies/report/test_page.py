"""The parts of the page: charts in the page's colours, tables of any results file, plain words."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.global_risk import DRRhoCLIP
from drrho.data.loading import Loading
from drrho.models.build import Model
from drrho.recipe.document import RunResults
from drrho.recipe.folder import RunFolder
from drrho.recipe.recipe import Recipe
from drrho.runtime.records import read_record
from drrho.studies.compare.results import read_results
from drrho.studies.compare.tables import differences_in_words
from drrho.studies.report.alerts import Alert
from drrho.studies.report.charts import draw_panels, draw_scaling
from drrho.studies.report.content import Report, ReportedRun, group_runs
from drrho.studies.report.outcome import outcomes_of, validation_outcome
from drrho.studies.report.page import factor, grouped_alerts, render
from drrho.studies.report.settings import settings_of
from drrho.studies.report.summary import summarise_run
from drrho.studies.scaling.results import ScalingResults
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer

ROWS = [
    {
        "step": s,
        "samples": 100.0 * s,
        "loss": 1 / s,
        "excess_loss_variance": 0.1 / s,
        "loss_variance": 0.2,
        "evaluation/mrr": s / 10 if s % 2 == 0 else None,
    }
    for s in range(1, 31)
]
RECIPE = Recipe(
    output="run",
    data="data",
    reference="reference",
    loading=Loading(batch_size=8),
    model=Model(name="ViT-B-16"),
    objective=DRRhoCLIP(),
    training=Training(steps=30, optimizer=Optimizer(learning_rate=1e-3)),
)
RESULTS = RunResults(recipe=RECIPE, metrics={}, samples_seen=240, seconds=1.0)


def folder(rows, results=None):
    return RunFolder(path=Path("run"), recipe=RECIPE, rows=rows, results=results)


def test_charts_are_svg_in_the_colours_of_the_page_with_words_and_numbers():
    charts, constants = draw_panels(grouped(("a <run>", ROWS), ("empty", [])))
    titles = ["Quality", "Loss, in units of cosine", "Variance of gaps"]
    assert [chart.title for chart in charts] == titles
    assert constants == ["Variance of gaps, DRRho-CLIP (a <run>), loss: 0.2 throughout"]
    quality = charts[0]
    root = ET.fromstring(quality.svg)
    words = "".join(root.itertext())
    assert "DRRho-CLIP (a <run>) from 0.2 to 3" in words
    assert "mean reciprocal rank" in words  # text, not outlines
    assert "var(--series-3)" in quality.svg  # the colour of DRRho-CLIP
    assert "#000000" not in quality.svg
    assert len(quality.rows) == 12
    assert quality.rows[-1] == ["3,000", "3"]
    ids = re.findall(r'\bid="([^"]+)"', "".join(chart.svg for chart in charts))
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', "".join(c.svg for c in charts)):
        assert target in ids


def grouped(*runs):
    """Groups of runs of these names and logs."""
    return group_runs(
        [
            ReportedRun(
                name=name,
                folder=replace(folder(rows), path=Path("study") / name),
                gallery=None,
                alerts=(),
                missing=(),
            )
            for name, rows in runs
        ]
    )


def test_seeds_of_a_method_are_one_group_with_one_colour_and_one_score():
    two, other = grouped(("drrho_clip-seed0", ROWS), ("drrho_clip-seed1", ROWS[:2]), ("mine", []))
    assert (two.name, two.method, two.place, len(two.runs)) == (
        "DRRho-CLIP (drrho_clip)",
        "drrho_clip",
        2,
        2,
    )
    assert two.validation == pytest.approx((3 + 0.2) / 2)
    assert other.name == "DRRho-CLIP (mine)"
    assert other.validation is None
    charts, _ = draw_panels([two, other])
    assert charts[0].header == ["samples", two.name]
    assert charts[0].rows == [["200", "0.2"]]  # where both have logged one


def test_losses_in_nats_and_in_cosines_share_no_axis():
    (steered,) = grouped(("steered", ROWS))
    clip = replace(RECIPE, objective=CLIP(), reference=None)
    run = replace(steered.runs[0], folder=replace(steered.runs[0].folder, recipe=clip))
    plain = replace(steered, name="CLIP", runs=(run,))
    charts, _ = draw_panels([steered, plain])
    losses = {chart.title: chart.header for chart in charts if chart.title.startswith("Loss")}
    assert losses == {
        "Loss, in units of cosine": ["samples", "DRRho-CLIP"],
        "Loss, in nats": ["samples", "CLIP"],
    }


def test_a_summary_says_what_the_numbers_say():
    words = " ".join(summarise_run("r", folder(ROWS))["sentences"])
    assert "stopped or still running at 30" in words
    assert "went from 0.200 to 3.000, its best" in words
    assert "fell from 0.1" in words
    assert "smaller than the variance of the loss" in words
    assert summarise_run("r", folder([]))["headline"] is None


def test_one_row_is_no_course():
    words = " ".join(summarise_run("r", folder(ROWS[1:2], RESULTS))["sentences"])
    assert "mean reciprocal rank is 0.200; it was evaluated once" in words
    assert "stayed at 0.05; it ended smaller" in words


def scores(mrr, **more):
    return {"mrr": mrr, "image_to_text/R@1": mrr / 2, "zero_shot/shape/top1": 0.5} | more


def written(tmp_path, content):
    (tmp_path / "results.json").write_text(json.dumps(content))
    return read_results(tmp_path / "results.json")


def test_results_of_one_test_set_and_of_several(tmp_path):
    one = {"reference": scores(0.7), "methods": {"clip": scores(0.2, mrr_interval=[0.1, 0.3])}}
    chance = {"test": {"zero_shot/shape/top1": 0.25}}
    (found,) = outcomes_of(written(tmp_path, one), [], chance)
    assert found.headline == "CLIP 0.200"
    assert found.beside == "mean reciprocal rank (MRR) on test; the reference 0.700"
    assert [row.name for row in found.rows] == ["the reference", "CLIP"]
    assert (found.rows[1].interval, found.rows[1].cells) == ((0.1, 0.3), ("0.100", "0.500"))
    assert found.header == ("image to text R@1", "shape")
    assert found.all_cells[-1] == ("guessing", "", "0.250")
    difference = {"test": "b", "method": "clip", "minus": "x", "won": 1, "seeds": [0], "mrr": 0.1}
    several = {
        "setup": {"seeds": [], "test": {"a": "a.json", "b": "b.json"}},
        "references": {"big": {"tests": {"a": scores(0.7)}, "cost": None}},
        "methods": {
            "clip": {"tests": {"a": scores(0.2), "b": scores(0.3)}, "runs": []},
            "new": {"tests": {}, "runs": []},
        },
        "differences": [
            difference | {"test": "a", "interval": [0, 0.2]},
            difference | {"interval": [0.05, 0.2]},
        ],
    }
    results = written(tmp_path, several)
    first, second = outcomes_of(results, [], {})
    assert [row.name for row in first.rows] == ["reference big", "CLIP"]
    assert [row.name for row in second.rows] == ["CLIP"]
    assert [len(outcome.words) for outcome in (first, second)] == [1, 1]
    told_apart = [" is ahead of " in line for line in differences_in_words(results)]
    assert told_apart == [False, True]


def test_a_scaling_law_is_drawn_where_there_is_one(tmp_path):
    document = {
        "methods": {
            "clip": {
                "law": {"scale": 2.0, "exponent": 0.1, "floor": 0.0},
                "intervals": {"exponent": [0.05, 0.15]},
                "points": [{"compute": c, "error": 2 * c**-0.1} for c in (1e3, 1e4, 1e5)],
                "later": "a number of a later version",
            },
        }
    }
    path = tmp_path / "scaling.json"
    path.write_text(json.dumps(document))
    drawn = draw_scaling(read_record(path, ScalingResults), "laws")
    assert drawn.rows == [["CLIP", "3", "0.100", "0.050 to 0.150"]]
    assert "to the power -0.100" in drawn.svg
    path.write_text(json.dumps({"methods": {"odd": {"points": "none"}}}))
    with pytest.raises(ValueError, match=r"methods\.odd has no 'law'"):
        read_record(path, ScalingResults)


def test_a_report_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one run"):
        render(Report(title="t", runs=(), comparisons={}, scaling={}, version="0", chance={}))


def test_what_files_say_is_text_on_the_page(tmp_path):
    evil = "<script>alert(1)</script>"
    recipe = replace(RECIPE, data=f"https://user:word@host/{evil}", reference=evil)
    own = RunFolder(path=Path(evil), recipe=recipe, rows=ROWS, results=None)
    run = ReportedRun(name=evil, folder=own, gallery=None, alerts=(), missing=[evil])
    page = render(
        Report(title=evil, runs=[run], comparisons={}, scaling={}, version=evil, chance={})
    )
    assert evil not in page
    assert page.count("&lt;script&gt;alert(1)") >= 3
    assert "word" not in page


def test_weights_read_as_factors():
    assert [factor(w) for w in (1234.5, 3.14, 0.123, 1e-6)] == ["1,234", "3.1", "0.12", "0.00"]


def test_validation_scores_stand_beside_guessing_among_as_many_pairs():
    rows = [{"step": 1, "samples": 9, "evaluation/mrr": 0.5, "evaluation/images": 4.0}]
    found = validation_outcome(grouped(("mine", rows)))
    assert found is not None
    assert found.headline == "DRRho-CLIP 0.500"
    assert found.beside == (
        "mean reciprocal rank (MRR) on validation, 4 pairs; guessing "
        f"{(1 + 1 / 2 + 1 / 3 + 1 / 4) / 4:.3f}"
    )
    assert found.rows[0].note == "not finished"
    assert validation_outcome(grouped(("mine", ROWS[:1]))) is None


def test_settings_are_those_that_differ():
    one, other = grouped(("one", ROWS), ("two", ROWS))
    longer = replace(RECIPE, training=replace(RECIPE.training, steps=60))
    run = replace(other.runs[0], folder=replace(other.runs[0].folder, recipe=longer))
    found = settings_of([one, replace(other, runs=(run,))])
    assert found.differing == (("training.steps", "30", "60"),)
    assert ("loading.batch_size", "8") in found.common


def test_an_alert_of_several_seeds_is_one():
    alert = Alert("quality fell", "text", "remedy")
    note = Alert("samples left out", "text", "remedy", "note")
    (group,) = grouped(("clip-seed0", ROWS), ("clip-seed1", ROWS))
    first, second = (
        replace(run, alerts=alerts)
        for run, alerts in zip(group.runs, ((note,), (alert, note)), strict=True)
    )
    found = grouped_alerts([replace(group, runs=(first, second))])
    assert [(it.alert.name, it.runs) for it in found] == [
        ("quality fell", "1 of 2 runs"),
        ("samples left out", "2 of 2 runs"),
    ]
