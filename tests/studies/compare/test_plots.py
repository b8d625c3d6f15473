"""Curves are drawn for what there is."""

import pytest
from PIL import Image

from drrho.studies.compare.plots import draw_curves


def test_curves_are_drawn_for_the_metrics_there_are(tmp_path):
    rows = [
        {"step": s, "samples": s * 10, "loss_variance": 0.1 / s, "evaluation/mrr": None}
        for s in (1, 2, 3)
    ]
    runs = {"clip": [rows, rows[:2]], "empty": [[]]}
    draw_curves(runs, tmp_path / "c.png", levels={"reference": 0.5})
    with Image.open(tmp_path / "c.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=10**6)}
    assert (0, 114, 178) in colours  # the line of the first run
    with pytest.raises(ValueError, match="at least one run"):
        draw_curves({}, tmp_path / "none.png")
