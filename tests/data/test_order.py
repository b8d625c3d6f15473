"""The order of an epoch: complete, shuffled, within a window of shards, and a pure function."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drrho.data.loading import epoch_order, steps_per_epoch
from drrho.data.manifest import Manifest, Shard


def manifest_of(shards):
    """A manifest of shards given by a list of booleans each: which rows are usable."""
    return Manifest(
        shards=tuple(
            Shard(
                url=f"{position}.tar",
                num_samples=len(usable),
                keys_sha256="",
                content_sha256="",
                unusable={row: "no image" for row, good in enumerate(usable) if not good},
            )
            for position, usable in enumerate(shards)
        )
    )


manifests = st.lists(st.lists(st.booleans(), max_size=8), min_size=1, max_size=7).map(manifest_of)
windows = st.integers(1, 9)
numbers = st.integers(0, 2**40)


@given(manifests, numbers, numbers, windows)
def test_every_usable_sample_comes_once_and_no_other(manifest, seed, epoch, window):
    order = epoch_order(manifest, seed=seed, epoch=epoch, shuffle_window=window)
    assert order.sort().values.tolist() == manifest.usable_ids().tolist()


@given(manifests, numbers, windows)
def test_a_window_of_shards_is_finished_before_the_next_is_opened(manifest, seed, window):
    order = epoch_order(manifest, seed=seed, epoch=0, shuffle_window=window).tolist()
    shards = [manifest.locate(sample_id)[0] for sample_id in order]
    last = {shard: position for position, shard in enumerate(shards)}
    for position in range(len(shards)):
        seen = set(shards[: position + 1])
        assert sum(last[shard] > position for shard in seen) <= window


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    manifest = manifest_of([[True] * 20] * 5)

    def order(seed, epoch):
        return epoch_order(manifest, seed=seed, epoch=epoch, shuffle_window=2).tolist()

    before = torch.get_rng_state()
    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len(set(map(tuple, orders))) == len(orders)
    torch.manual_seed(99)
    assert order(1, 2) == orders[-1]
    torch.set_rng_state(before)
    assert order(1, 2) == orders[-1]
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_of_a_window_are_mixed_and_shards_change_company():
    manifest = manifest_of([[True] * 50] * 6)
    order = epoch_order(manifest, seed=0, epoch=0, shuffle_window=3)
    first_window = {manifest.locate(sample_id)[0] for sample_id in order[:150].tolist()}
    assert len(first_window) == 3
    assert {manifest.locate(sample_id)[0] for sample_id in order[:20].tolist()} == first_window
    others = epoch_order(manifest, seed=0, epoch=1, shuffle_window=3)
    assert {manifest.locate(sample_id)[0] for sample_id in others[:150].tolist()} != first_window


@pytest.mark.parametrize(
    ("weight", "visits"), [(0.29, 29), (0.57, 57), (1.15, 115), (0.994, 99), (0.996, 100)]
)
def test_a_weight_is_rounded_to_whole_visits(weight, visits):
    """0.29 * 100 is 28.999999999999996 in binary."""
    first, second = manifest_of([[True] * 100, [True] * 100]).shards
    manifest = Manifest(shards=(replace(first, weight=weight), second))
    order = epoch_order(manifest, seed=0, epoch=0, shuffle_window=2)
    assert int((order < 100).sum()) == visits
    assert steps_per_epoch(manifest, batch_size=1) == 100 + visits


def test_an_epoch_has_as_many_steps_as_full_batches():
    manifest = manifest_of([[True, False, True], [True] * 8])
    assert [steps_per_epoch(manifest, batch_size=size) for size in (1, 3, 5, 10)] == [10, 3, 2, 1]


def test_a_batch_larger_than_the_set_is_an_error():
    with pytest.raises(ValueError, match="usable samples, 2 of 3.*got 3"):
        steps_per_epoch(manifest_of([[True, False, True]]), batch_size=3)
    with pytest.raises(ValueError, match="at least 1"):
        steps_per_epoch(manifest_of([[True]]), batch_size=0)
    with pytest.raises(ValueError, match="shuffle_window"):
        epoch_order(manifest_of([[True]]), seed=0, epoch=0, shuffle_window=0)
