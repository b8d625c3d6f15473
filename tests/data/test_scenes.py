"""Captioned scenes: a function of the seed, with exactly the stated share of wrong captions."""

import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from drrho.data import scenes
from drrho.data.indexing import index_shards
from drrho.data.reading.shards import decode_caption, decode_metadata, read_shard
from drrho.data.scenes import (
    COLOURS,
    PATTERNS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    ScenesConfig,
    describe,
    mismatched_captions,
    render,
    scene_samples,
    write_scenes,
)


def metadata(samples):
    return [json.loads(sample["json"]) for sample in samples]


def test_the_same_configuration_gives_the_same_bytes(tmp_path):
    config = ScenesConfig(num_samples=25, seed=4, mismatch_rate=0.4, samples_per_shard=10)
    first, second = (write_scenes(tmp_path / name, config) for name in "ab")
    assert [path.name for path in first] == [f"scenes-000{i}.tar" for i in range(3)]
    assert [a.read_bytes() for a in first] == [b.read_bytes() for b in second]
    assert (
        first[0].read_bytes()
        != write_scenes(tmp_path / "c", ScenesConfig(num_samples=10, seed=5))[0].read_bytes()
    )


def test_mismatching_moves_captions_and_nothing_else():
    clean, noisy = (
        list(scene_samples(ScenesConfig(num_samples=60, seed=1, mismatch_rate=rate)))
        for rate in (0.0, 0.3)
    )
    assert [s["jpg"] for s in clean] == [s["jpg"] for s in noisy]
    sources = [m["caption_of"] for m in metadata(noisy)]
    assert sorted(sources) == list(range(60))
    assert sum(source != i for i, source in enumerate(sources)) == 18
    assert [s["txt"] for s in noisy] == [clean[source]["txt"] for source in sources]
    assert [m["true_caption"] for m in metadata(noisy)] == [s["txt"] for s in clean]


@pytest.mark.parametrize(("rate", "moved"), [(0.0, 0), (0.2, 2), (0.5, 5), (0.95, 10)])
def test_no_mismatched_sample_keeps_its_caption(rate, moved):
    source = mismatched_captions(10, rate, np.random.default_rng(0))
    assert sorted(source) == list(range(10))
    assert (source != np.arange(10)).sum() == moved


def test_a_caption_says_nothing_that_the_scene_does_not_show():
    generator = np.random.default_rng(0)
    scene = Scene(
        shape="star",
        colour="blue",
        position="top left",
        size="small",
        background="pink",
        pattern="dotted",
    )
    captions = {describe(scene, generator, omission_rate=0.4) for _ in range(300)}
    assert len(captions) > 50
    false_words = [
        *(w for k, words in SHAPES.items() if k != "star" for w in words),
        *(w for k, (_, words) in COLOURS.items() if k != "blue" for w in words),
        *(w for k, words in POSITIONS.items() if k != "top left" for w in words),
        *SIZES["large"][1],
        *(w for k, words in PATTERNS.items() if k != "dotted" for w in words),
    ]
    for caption in captions:
        assert any(word in caption for word in SHAPES["star"])
        told = f" {caption} "
        for word in false_words:
            # "at the top" is part of "at the top left"
            assert f" {word} " not in told.replace("at the top left", "")
    complete = describe(scene, generator, omission_rate=0.0)
    assert "pink" in complete


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shape_is_where_and_as_coloured_as_stated(shape):
    """Against the same scene in the ground's colours: what differs lies in the stated place."""
    scene = {"size": "large", "background": "grey", "pattern": "plain", "shape": shape}
    for position, (row, column) in {"top left": (0, 0), "right": (1, 2)}.items():
        images = {
            colour: np.asarray(
                render(
                    Scene(colour=colour, position=position, **scene),
                    np.random.default_rng(3),
                    noise=0.0,
                ),
                dtype=float,
            )
            for colour in ("red", "blue")
        }
        rows, columns = np.nonzero(np.abs(images["red"] - images["blue"]).max(axis=2) > 40)
        assert len(rows) > 20
        assert abs(rows.mean() - 64 * (2 * row + 1) / 6) < 9
        assert abs(columns.mean() - 64 * (2 * column + 1) / 6) < 9
        red = images["red"][rows, columns].mean(axis=0)
        assert red[0] > 1.5 * max(red[1], red[2])


def test_written_shards_are_read_back(tmp_path):
    config = ScenesConfig(num_samples=7, seed=2, samples_per_shard=4)
    paths = write_scenes(tmp_path, config)
    read = [sample for path in paths for sample in read_shard(str(path))]
    drawn = list(scene_samples(config))
    assert [decode_caption(sample) for sample in read] == [sample["txt"] for sample in drawn]
    assert [decode_metadata(sample)["colour"] in COLOURS for sample in read] == [True] * 7
    assert index_shards(tmp_path).num_samples == 7
    with Image.open(io.BytesIO(drawn[0]["jpg"])) as image:
        assert image.size == (64, 64)


def test_a_complete_set_is_kept_and_another_one_not_mixed_in(tmp_path):
    config = ScenesConfig(num_samples=5, seed=2)
    path = write_scenes(tmp_path / "a", config)[0]
    before = path.stat().st_mtime_ns
    assert write_scenes(tmp_path / "a", config) == [path]
    assert path.stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="another configuration"):
        write_scenes(tmp_path / "a", ScenesConfig(num_samples=5, seed=3))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.tar").touch()
    with pytest.raises(FileExistsError, match="mine.tar"):
        write_scenes(tmp_path / "b", config)


def test_an_interrupted_set_is_completed(tmp_path):
    config = ScenesConfig(num_samples=6, seed=2, samples_per_shard=3)
    whole = [path.read_bytes() for path in write_scenes(tmp_path / "whole", config)]
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "scenes-0000.tar").write_bytes(whole[0][:100])
    assert [path.read_bytes() for path in write_scenes(tmp_path / "cut", config)] == whole


def test_a_shard_that_was_not_finished_leaves_nothing(tmp_path, monkeypatch):
    def failing(config):
        yield from itertools.islice(scene_samples(config), 4)
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "scene_samples", failing)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path, ScenesConfig(num_samples=6, seed=2, samples_per_shard=3))
    assert [path.name for path in tmp_path.iterdir()] == ["scenes-0000.tar"]


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 0},
        {"seed": -1},
        {"mismatch_rate": 1.0},
        {"mismatch_rate": -0.1},
        {"omission_rate": 1.5},
        {"noise": -1.0},
        {"samples_per_shard": 0},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ScenesConfig(**{"num_samples": 5, "seed": 0} | options)
