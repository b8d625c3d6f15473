"""Charts refuse what they cannot draw; that they draw is seen in tests/experiments."""

import pytest

from drrho.plotting.png import Chart, Series, draw_charts


def chart(**changed):
    series = Series(**{"name": "a", "x": [1, 2], "y": [3, 4]} | changed)
    return Chart(title="T", x_label="x", y_label="y", series=[series], x_scale="log")


def test_a_file_of_one_page_is_written(tmp_path):
    draw_charts([chart(), chart(half_width=[0.1, 0.2])], tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("changed", [{"y": [1]}, {"half_width": [1]}])
def test_lengths_that_differ_are_named(tmp_path, changed):
    with pytest.raises(ValueError, match="'a' of 'T'"):
        draw_charts([chart(**changed)], tmp_path / "a.png")


def test_no_chart_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one chart"):
        draw_charts([], tmp_path / "a.png")
