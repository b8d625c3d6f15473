"""Views: the same crop and caption wherever a sample is met."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.data.tar_files import pair

from drrho.data.reading.shards import RawSample
from drrho.data.views import View, Views

WIDTH, HEIGHT = 60, 40


def sample(number=0):
    return RawSample(key=f"{number:06d}", row=number, fields=pair(number))


@pytest.fixture(scope="module")
def ramp():
    """An image whose pixels say where they are: red across, green down."""
    across, down = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    pixels = np.stack([across * 4, down * 6, np.zeros_like(down)], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def box_of(view_of_ramp):
    """Left, top, width and height of the crop, as its pixels say."""
    pixels = np.asarray(view_of_ramp).astype(float)
    left, right = (pixels[:, edge, 0].mean() / 4 for edge in (0, -1))
    top, bottom = (pixels[edge, :, 1].mean() / 6 for edge in (0, -1))
    return left, top, right - left + 1, bottom - top + 1


def test_a_view_follows_from_seed_number_and_contents(ramp):
    views = Views(count=3, seed=7, scale=(0.2, 0.6))
    first = np.asarray(views.view(0).image(ramp, sample()))
    assert np.array_equal(first, views.view(0).image(ramp, replace(sample(), row=5)))
    others = [
        views.view(1).image(ramp, sample()),
        views.view(0).image(ramp, sample(1)),
        replace(views, seed=8).view(0).image(ramp, sample()),
    ]
    assert not any(np.array_equal(first, other) for other in others)


def test_more_views_leave_those_before_as_they_are():
    assert Views(count=2).view(1) == Views(count=9).view(1)


def test_crops_have_the_area_and_the_shape_that_are_asked_for(ramp):
    low, high = 0.3, 0.5
    views = Views(count=300, scale=(low, high))
    boxes = np.array([box_of(views.view(n).image(ramp, sample())) for n in range(views.count)])
    left, top, width, height = boxes.T
    # A pixel of rounding at each side; interpolation blurs the edges by less than one.
    area = width * height / (WIDTH * HEIGHT)
    assert area.min() > low - 0.06
    assert area.max() < high + 0.06
    assert left.min() > -1
    assert top.min() > -1
    assert (left + width).max() < WIDTH + 1
    assert (top + height).max() < HEIGHT + 1
    assert abs(np.median(np.log(width / height))) < 0.06, "as often wide as high"
    assert np.ptp(left) > 20, "all over the image"


def test_a_view_is_square(ramp):
    for number in range(20):
        image = Views(count=20, scale=(0.1, 1.0)).view(number).image(ramp, sample())
        assert image.width == image.height


def test_a_single_pixel_has_views():
    pixel = Image.new("RGB", (1, 1))
    assert Views(count=1, scale=(0.01, 0.02)).view(0).image(pixel, sample()).size == (1, 1)


def test_captions_are_the_first_or_drawn_by_view():
    captions = ["a", "b", "c"]
    first = Views(count=50)
    assert {first.view(n).caption(captions, sample()) for n in range(50)} == {"a"}
    drawn = Views(count=50, captions="random")
    assert {drawn.view(n).caption(captions, sample()) for n in range(50)} == set(captions)
    assert drawn.view(3).caption(captions, sample()) == drawn.view(3).caption(captions, sample())


def test_every_view_is_drawn_about_as_often():
    views = Views(count=4)
    drawn = [views.drawn(0, epoch, i).number for epoch in range(4) for i in range(250)]
    counts = np.bincount(drawn, minlength=4)
    assert counts.min() > 200
    assert counts.max() < 300


def test_the_identity_says_all():
    view = Views(count=2, seed=3, scale=(0.5, 0.75), captions="random").view(1)
    assert View.of_identity({"architecture": "small"} | view.identity) == view
    assert View.of_identity({"architecture": "small"}) is None


@pytest.mark.parametrize(
    "fields", [{"count": 0}, {"count": 1, "seed": -1}, {"count": 1, "scale": (0.0, 1.0)}]
)
def test_out_of_range(fields):
    with pytest.raises(ValueError, match="views"):
        Views(**fields)
    with pytest.raises(IndexError, match="2 views"):
        Views(count=2).view(2)
