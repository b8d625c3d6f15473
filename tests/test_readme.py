"""The README's Python runs as it stands."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from tools import draw_figure

from drrho.studies.compare.results import read_results
from drrho.studies.compare.statistics import with_tests

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


LOSSES = [block for block in BLOCKS if ".backward()" in block]
USES = [block for block in BLOCKS if "drrho.load(" in block]


def test_there_are_examples():
    assert len(LOSSES) >= 2
    assert len(USES) == 1
    assert len(LOSSES) + len(USES) == len(BLOCKS)


@pytest.mark.parametrize("block", LOSSES, ids=range(len(LOSSES)))
def test_examples_run_and_give_gradients(block):
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    leaves = [names[name] for name in ("image", "text", "losses") if name in names]
    assert leaves
    assert all(leaf.grad.isfinite().all() and leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_the_trained_model_embeds_as_shown(reference, tmp_path, monkeypatch):
    (tmp_path / "runs" / "steered").mkdir(parents=True)
    (tmp_path / "runs" / "steered" / "run").symlink_to(reference.parent / "run")
    Image.new("RGB", (90, 60), "teal").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(USES[0], "README.md", "exec"), names)
    assert names["cosines"].shape == (1, 2)
    assert names["cosines"].abs().max() <= 1 + 1e-6


def test_it_gives_the_test_command_that_is_run():
    ci = (ROOT / ".ci" / "run").read_text()
    assert "\n    make test\n" in README
    assert "\nmake test " in ci


def test_its_table_is_the_committed_result_of_the_demonstration():
    results = json.loads((ROOT / "docs/results/demo/results.json").read_text(encoding="utf-8"))
    rows = {
        cells[0]: cells[1:]
        for line in README.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 8
    }
    expected = results["methods"] | results["references"]
    for name, method in {
        "reference": "reference",
        "CLIP": "clip",
        "FastCLIP": "fastclip",
        "DRRho-CLIP": "drrho_clip",
    }.items():
        scores = expected[method]["tests"]["test"]
        assert rows[name][0] == f"{scores['mrr']:.3f}"
        assert rows[name][2] == f"{scores['image_to_text/R@1']:.3f}"
        assert rows[name][6] == f"{scores['zero_shot/position/top1']:.3f}"
        if method != "reference":
            assert rows[name][1] == "{:.3f}-{:.3f}".format(*scores["mrr_interval"])


def test_its_table_of_real_captions_is_the_committed_results():
    path = ROOT / "docs/results/emoji-pictograms-union/results.json"
    study = json.loads(path.read_text(encoding="utf-8"))
    section = README.partition("<!-- emoji table -->")[2].partition("<!-- end of emoji table -->")[
        0
    ]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    printed = [row[3].strip() for row in rows]
    names = ("clip", "fastclip", "drrho_clip", "fastclip_both_halves", "fastclip_both_halves_840")
    results = [study["references"]["reference"], *(study["methods"][name] for name in names)]
    assert printed == [f"{it['tests']['test']['mrr']:.3f}" for it in results]
    assert all([run["seed"] for run in it["runs"]] == [0, 1, 2] for it in results[1:])
    tested = with_tests(read_results(path))
    paired = {
        (it.method, it.minus): it.paired
        for it in (*tested.differences, *tested.from_references)
        if it.paired is not None
    }
    assert draw_figure.figure() == draw_figure.FIGURE.read_text(encoding="utf-8")
    low, high = paired["fastclip_both_halves", "drrho_clip"].interval
    assert low > 0
    words = " ".join(README.split())
    assert f"difference {low:.3f} to {high:.3f})" in words
    low, high = paired["drrho_clip", "reference"].interval
    assert f"cannot be told apart over three seeds ({low:+.3f} to {high:+.3f})" in words
    assert low < 0 < high
    assert f"p = {paired['drrho_clip', 'fastclip'].holm:.2f} after Holm's" in words
