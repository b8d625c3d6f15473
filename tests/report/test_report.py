"""Tables and words say what the numbers say; curves are drawn for what there is."""

import pytest
from PIL import Image

from drrho.report.comparison import comparison_table, explain
from drrho.report.curves import draw_curves
from drrho.report.table import markdown_table


def scores(mrr):
    return {
        "mrr": mrr,
        "image_to_text/R@1": mrr / 2,
        "zero_shot/shape/top1": 0.5,
        "zero_shot/shape/mean_per_class_recall": 0.4,
        "images": 100.0,
        "samples_seen": 5000,
        "seconds": 12.3,
    }


RESULTS = {
    "setup": {"seeds": [0], "reference_data": "clean.json", "train": "noisy.json"},
    "reference": scores(0.7),
    "methods": {
        "clip": scores(0.2) | {"mrr_interval": [0.15, 0.25]},
        "drrho_clip": scores(0.6) | {"mrr_interval": [0.55, 0.65]},
    },
    "differences": [],
}


def difference(low, high):
    return {
        "method": "drrho_clip",
        "minus": "clip",
        "mrr": (low + high) / 2,
        "interval": [low, high],
    }


def test_the_table_has_a_row_for_each_model_and_aligned_columns():
    lines = comparison_table(RESULTS).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "reference",
        "CLIP",
        "DRRho-CLIP",
    ]
    assert [cell.strip() for cell in lines[-1].split("|")[2:4]] == ["0.600", "0.550-0.650"]
    assert "i>t R@1" in lines[0]
    assert "mean_per_class" not in lines[0]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.3, "DRRho-CLIP is ahead of CLIP by 0.200"),
        (-0.3, -0.1, "DRRho-CLIP is behind CLIP by 0.200"),
        (-0.1, 0.2, "cannot be told apart"),
    ],
)
def test_words_follow_the_interval(low, high, verdict):
    text = explain(RESULTS | {"differences": [difference(low, high)]})
    assert verdict in text
    assert f"{low:+.3f} to {high:+.3f}" in text
    assert "not how far another seed could" in text
    assert "(5,000 samples each)" in text


def test_words_say_when_the_methods_saw_different_numbers_of_samples():
    fewer = RESULTS["methods"] | {
        "drrho_clip": RESULTS["methods"]["drrho_clip"] | {"samples_seen": 4990}
    }
    assert "(4,990 or 5,000 samples each)" in explain(RESULTS | {"methods": fewer})


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="2 cells, got 1"):
        markdown_table(["a", "b"], [["1"]])


def test_curves_are_drawn_for_the_metrics_there_are(tmp_path):
    rows = [
        {"step": s, "samples": s * 10, "loss_variance": 0.1 / s, "evaluation/mrr": None}
        for s in (1, 2, 3)
    ]
    draw_curves({"clip": rows, "empty": []}, tmp_path / "c.png", levels={"reference": 0.5})
    with Image.open(tmp_path / "c.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=10**6)}
    assert (0, 114, 178) in colours  # the line of the first run
    with pytest.raises(ValueError, match="at least one run"):
        draw_curves({}, tmp_path / "none.png")


def test_words_list_the_seeds_where_there_are_several():
    methods = {
        name: method | {"runs": [{"mrr": 0.1}, {"mrr": 0.3}]}
        for name, method in RESULTS["methods"].items()
    }
    setup = RESULTS["setup"] | {"seeds": [0, 1]}
    text = explain(RESULTS | {"methods": methods, "setup": setup})
    assert "MRR by seed: CLIP 0.100, 0.300; DRRho-CLIP 0.100, 0.300." in text
    assert "mean over 2 seeds" in text
