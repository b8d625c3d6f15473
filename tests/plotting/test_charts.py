"""Charts refuse what they cannot draw; that they draw is seen in tests/experiments."""

import pytest
from matplotlib.figure import Figure

from drrho.plotting.axes import draw_axes
from drrho.plotting.chart import Chart, Series, row_with_interval
from drrho.plotting.palette import places
from drrho.plotting.png import LOOK, draw_png, legend_columns


def chart(**changed):
    series = Series(**{"name": "a", "x": [1, 2], "y": [3, 4]} | changed)
    return Chart(title="T", x_label="x", y_label="y", series=[series], x_scale="log")


def test_a_file_of_one_page_is_written(tmp_path):
    draw_png([chart(), chart(half_width=[0.1, 0.2])], tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("changed", [{"y": [1]}, {"half_width": [1]}])
def test_lengths_that_differ_are_named(tmp_path, changed):
    with pytest.raises(ValueError, match="'a' of 'T'"):
        draw_png([chart(**changed)], tmp_path / "a.png")


def test_no_chart_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one chart"):
        draw_png([], tmp_path / "a.png")


def test_a_method_has_its_colour_in_every_picture_where_it_is_free():
    assert places(["clip", "fastclip", "drrho_clip"]) == {"clip": 0, "fastclip": 1, "drrho_clip": 2}
    assert places(["mine", "drrho_clip"]) == {"mine": 0, "drrho_clip": 2}
    assert places(["a/drrho_clip-seed0", "drrho_clip-seed1"])["a/drrho_clip-seed0"] == 2
    many = places(["clip", "openclip", *map(str, range(20))])
    assert len(set(many.values())) == 22


def test_a_legend_has_as_many_columns_as_fit():
    assert legend_columns(["CLIP", "FastCLIP", "DRRho-CLIP"], width=9.6) == 3
    many = ["DRRho-CLIP, weaker reference"] * 16
    assert legend_columns(many, width=9.6) == 3
    assert legend_columns(["a name that is longer than the picture is wide"], width=1.0) == 1


def test_the_outermost_mark_is_not_clipped():
    axes = Figure().subplots()
    rows = [row_with_interval(place, 10.0, 0.0, 10.0, colour=0) for place in range(2)]
    drawn = Chart(title="", x_label="x", y_label="", series=rows, x_range=(0, None))
    draw_axes(axes, drawn, LOOK)
    assert axes.get_xlim() == (0, pytest.approx(10.5))
