"""What is remembered per sample: updates, duplicates, size and saved state."""

import math

import pytest
import torch
from torch.testing import assert_close

from drrho.contrastive.memory.sample_table import SampleTable
from drrho.contrastive.objectives.global_risk import AnchorAverages


def test_an_update_reaches_its_samples_and_no_other():
    table = SampleTable(6, initial=1.0)
    ids = torch.tensor([4, 1])
    arriving = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    new = table.update(ids, arriving, lambda before, found: before + 10 * found)
    assert_close(new, torch.tensor([[11.0, 21.0], [31.0, 41.0]]))
    assert_close(table.read(ids), new)
    assert_close(table.read(torch.tensor([0, 2, 3, 5])), torch.ones(2, 4))


def test_what_is_not_finite_is_returned_and_not_remembered():
    table = SampleTable(3, initial=1.0)
    arriving = torch.tensor([[math.nan, 2.0, math.inf], [3.0, -math.inf, 5.0]])
    new = table.update(torch.arange(3), arriving, lambda before, found: before + found)
    assert_close(new, arriving + 1, equal_nan=True)
    expected = torch.tensor([[1.0, 3.0, 1.0], [4.0, -math.inf, 6.0]])
    assert_close(table.read(torch.arange(3)), expected)


def test_a_sample_that_comes_twice_is_updated_once_with_the_mean():
    table = SampleTable(6, initial=1.0)
    ids = torch.tensor([4, 1, 4, 4])
    arriving = torch.tensor([[1.0, 5.0, 2.0, 6.0], [0.0, 1.0, 3.0, 3.0]])
    new = table.update(ids, arriving, lambda before, found: before + found)
    assert_close(new, torch.tensor([[4.0, 6.0, 4.0, 4.0], [3.0, 2.0, 3.0, 3.0]]))


def test_averages_of_a_sample_that_comes_twice_take_the_mean_of_its_sums():
    averages = AnchorAverages(5)
    ids = torch.tensor([2, 0, 2])
    sums = torch.tensor([[0.5, 3.0, 1.5], [2.0, 1.0, 1e-30]])
    first = averages.update(ids, sums.log(), 0.25)
    assert_close(first.exp(), torch.tensor([[1.0, 3.0, 1.0], [1.0, 1.0, 1.0]]))
    second = averages.update(
        torch.tensor([2, 2]), torch.tensor([[4.0, 6.0], [2.0, 2.0]]).log(), 0.25
    )
    assert_close(second.exp(), torch.tensor([[2.0, 2.0], [1.25, 1.25]]))


def test_extreme_logarithms_of_duplicates_neither_overflow_nor_vanish():
    averages = AnchorAverages(3)
    ids = torch.tensor([1, 1, 2, 2])
    logarithms = torch.tensor([[500.0, 500.0, -300.0, -300.0], [400.0, -400.0, 0.0, 0.0]])
    found = averages.update(ids, logarithms, 1.0)
    expected = logarithms.clone()
    expected[1, :2] = 400 - math.log(2)
    assert_close(found, expected)


def test_without_duplicates_the_values_pass_unrounded():
    averages = AnchorAverages(50)
    values = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(averages.update(torch.randperm(50), values, 1.0), values)


def test_eight_bytes_per_sample_are_all_that_is_kept():
    state = AnchorAverages(1000).state_dict()
    assert sum(v.numel() * v.element_size() for v in state.values()) == 8 * 1000


@pytest.mark.parametrize("wrong", [-1, 6])
def test_an_id_outside_the_data_set_is_named(wrong):
    table = SampleTable(6, initial=0.0)
    with pytest.raises(IndexError, match=rf"between 0 and 5.*\[{wrong}\]"):
        table.read(torch.tensor([0, wrong]))
    with pytest.raises(IndexError, match="between 0 and 5"):
        table.update(torch.tensor([wrong]), torch.zeros(2, 1), lambda before, found: found)


def test_state_of_another_data_set_is_refused():
    with pytest.raises(RuntimeError, match="is of 7 samples, and this data set has 6"):
        SampleTable(6, initial=0.0).load_state_dict(SampleTable(7, initial=0.0).state_dict())


def test_a_table_needs_a_sample():
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        SampleTable(0, initial=0.0)
