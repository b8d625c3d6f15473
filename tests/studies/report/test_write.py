"""The page about runs: what it holds, what it says is missing, and how it looks in a browser."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from drrho.cli import main
from drrho.contrastive.objectives.global_risk import FastCLIP
from drrho.recipe.folder import read_run, stages_of
from drrho.recipe.train import train_recipe
from drrho.studies.report.make_gallery import GalleryConfig
from drrho.studies.report.write import ReportConfig, write_report
from drrho.training.log import MetricsLog

SHOWN = GalleryConfig(pairs=24, shown=3, anchors=2, negatives=2)


@pytest.fixture(scope="module")
def runs(steered_recipe, plain_recipe, tmp_path_factory) -> Path:
    """A folder like a comparison's: a steered run, one without, results and a scaling law."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = replace(plain_recipe, objective=FastCLIP())
    train_recipe(replace(recipe, output=str(folder / "fastclip-seed0")))
    train_recipe(replace(steered_recipe, output=str(folder / "drrho_clip-seed0")))
    scores = {"mrr": 0.5, "image_to_text/R@1": 0.3}
    results = {
        "reference": scores,
        "methods": {"drrho_clip": scores | {"mrr_interval": [0.4, 0.6]}},
        "differences": [],
    }
    (folder / "results.json").write_text(json.dumps(results))
    law = {"scale": 1.0, "exponent": 0.5}
    points = [{"compute": 1.0, "error": 1.0}, {"compute": 4.0, "error": 0.5}]
    scaling = {"methods": {"clip": {"law": law, "points": points}}}
    (folder / "scaling.json").write_text(json.dumps(scaling))
    return folder


@pytest.fixture(scope="module")
def page(runs, reference) -> Path:
    config = ReportConfig(
        runs=(str(runs),),
        output=str(runs / "report.html"),
        reference_model=f"run:{reference.parent / 'run'}",
        gallery=SHOWN,
        device="cpu",
    )
    return write_report(config)


def test_the_page_is_complete_and_small(page):
    html = page.read_text()
    assert len(html) < 3_000_000
    fetched = re.findall(r'(?:src|href)="([^"#][^"]*)"', html) + re.findall(
        r"url\(([^#)][^)]*)", html
    )
    assert all(address.startswith("data:") for address in fetched)
    assert "@import" not in html
    for section in (
        "result",
        "alerts",
        "curves",
        "scaling",
        "gallery",
        "weights",
        "settings",
        "origin",
    ):
        assert f'<h2 id="{section}">' in html
    # Of the steered run: before training, step 4 and the end; the other has no reference.
    assert "before training" in html
    assert "step 4<" in html
    assert "step 6, the end" in html
    assert "fastclip-seed0: no gallery" in html


def test_a_reference_trained_on_these_shards_is_an_alert(page):
    """The tests' reference is."""
    assert "Warning: reference contaminated, DRRho-CLIP" in page.read_text()
    assert "2 of the shards were also trained on by it" in page.read_text()


def test_stages_are_those_that_were_kept(runs):
    stages = stages_of(read_run(runs / "drrho_clip-seed0"))
    assert [stage.step for stage in stages] == [0, 4, 6]
    assert [stage.temperature for stage in stages] == pytest.approx([0.07] * 3)


def test_replicates_and_results_without_runs_have_a_page(runs, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(runs / "drrho_clip-seed0", study / "replicate-0" / "drrho_clip-seed0")
    shutil.copytree(runs / "drrho_clip-seed0", study / "replicate-10" / "drrho_clip-seed10")
    output = str(tmp_path / "r.html")
    html = write_report(
        ReportConfig(runs=(str(study),), output=output, galleries=False)
    ).read_text()
    assert "2 runs." in html
    assert html.count('<li><span class="swatch s3"></span>DRRho-CLIP</li>') == 1
    (tmp_path / "told").mkdir()
    shutil.copy(runs / "results.json", tmp_path / "told")
    html = write_report(ReportConfig(runs=(str(tmp_path / "told"),), output=output)).read_text()
    assert '<p class="headline">DRRho-CLIP 0.500</p>' in html


def test_training_pairs_lead_the_gallery(page):
    html = page.read_text()
    kinds = [html.index(f"<h4>{kind}</h4>") for kind in ("Learnable", "Mismatched", "Redundant")]
    assert kinds == sorted(kinds)
    assert kinds[-1] < html.index("DRRho-CLIP: negatives")
    assert 'data-kind="mismatched"' in html


def test_an_unfinished_run_whose_data_moved_still_has_a_page(runs, tmp_path):
    run = tmp_path / "half"
    shutil.copytree(runs / "drrho_clip-seed0", run)
    (run / "results.json").unlink()
    shutil.rmtree(run / "model")
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps(recipe | {"data": str(tmp_path / "gone.json")}))
    config = ReportConfig(runs=(str(run),), output=str(tmp_path / "r.html"), device="cpu")
    html = write_report(config).read_text()
    assert "half: no gallery: manifest" in html
    assert "it is not finished" in html
    assert html.count("<svg") >= 6


def test_what_is_no_run_is_refused(tmp_path, runs, capsys):
    assert main(["report", str(tmp_path / "none"), "-o", str(tmp_path / "r.html")]) == 1
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / "recipe.json").write_text("{")
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 1
    assert "recipe.json is no JSON" in capsys.readouterr().err
    (tmp_path / "recipe.json").write_text("{}")
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 1
    assert "damaged: recipe has no 'output'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="at least one run"):
        ReportConfig(runs=())
    with pytest.raises(ValueError, match="no effect with galleries = False"):
        ReportConfig(runs=("a",), galleries=False, gallery=SHOWN)
    with pytest.raises(ValueError, match=r"gallery\.pairs must be at least 1"):
        GalleryConfig(pairs=0)


def test_the_temperature_of_a_stage_is_the_one_logged_by_then(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "drrho_clip-seed0", run)
    (run / "metrics.jsonl").unlink()
    with MetricsLog(run, start_step=0) as log:
        for step in (2, 4):
            metrics = {"temperature_image": 0.1 * step, "temperature_text": 0.3 * step}
            log.write(metrics, step=step, samples=step, seconds=1.0)
    found = read_run(run)
    assert [found.temperature_at(step) for step in (0, 3, 9)] == pytest.approx([0.07, 0.4, 0.8])


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no Chromium; `make browser` installs Debian's")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        # As root, which CI is, Chromium has no sandbox; the page is our own.
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, page):
    """The page, of whose console and requests nothing may be heard but itself."""
    tab = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    heard, fetched = [], []
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on("request", lambda request: fetched.append(request.url))
    tab.goto(page.as_uri())
    yield tab
    assert heard == []
    assert [url for url in fetched if not url.startswith("data:")] == [page.as_uri()]
    tab.close()


def test_everything_is_there_on_a_phone_in_dark_mode(opened):
    charts = opened.locator("svg.chart")
    assert charts.count() >= 8
    for chart in charts.all():
        box = chart.bounding_box()
        assert 200 < box["width"] <= 390
        assert box["height"] > 100
    images = opened.locator("[data-card=pair]:visible img.sample")
    assert images.count() > 0
    assert opened.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    paper = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(20, 22, 26)"
    # The lines and words of the charts have the page's colours.
    word = opened.locator("svg.chart text").first
    assert word.evaluate("t => getComputedStyle(t).fill") not in ("rgb(0, 0, 0)", paper)


def shown(opened):
    return opened.locator("[data-card=pair]:visible").evaluate_all(
        "cards => cards.map(c => [c.dataset.stage, c.dataset.change, c.dataset.anchor])"
    )


def choose(opened, label):
    opened.get_by_role("radio", name=label, exact=True).check()


def test_filters_choose_the_pairs(opened):
    assert {tuple(card[:2]) for card in shown(opened)} == {("2", "raised")}
    choose(opened, "counts less")
    choose(opened, "before training")
    assert {tuple(card[:2]) for card in shown(opened)} == {("0", "lowered")}
    both = len(shown(opened))
    choose(opened, "caption")
    of_captions = shown(opened)
    assert {card[2] for card in of_captions} <= {"text"}
    choose(opened, "image")
    assert len(shown(opened)) + len(of_captions) == both
    assert opened.locator("[role=status]").inner_text() == (
        f"{len(shown(opened))} pairs shown." if shown(opened) else "No pair fits these choices."
    )


def test_the_keyboard_reaches_filters_and_anchors(opened):
    opened.locator("input[data-filter=change]").first.focus()
    opened.keyboard.press("ArrowRight")
    assert {card[1] for card in shown(opened)} == {"lowered"}
    anchors = opened.locator("[data-card=anchor]:visible")
    assert anchors.count() == 1
    before = anchors.first.get_attribute("data-sample")
    opened.get_by_label("Pair", exact=True).select_option(index=1)
    assert anchors.count() == 1
    assert anchors.first.get_attribute("data-sample") != before


def test_nothing_that_axe_finds_is_in_the_way_of_anyone(opened):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed"
    )
    found = axe.Axe().run(opened).response["violations"]
    opened.emulate_media(color_scheme="light")
    contrast = {"runOnly": ["color-contrast"]}
    found += axe.Axe().run(opened, options=contrast).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found] == []


def test_without_scripts_all_pairs_are_there(browser, page):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.locator("[data-card=pair]:visible").count() > 4
    context.close()
