"""K processes are one process on the concatenated batch, whatever their shares of it."""

import pytest
import torch
from tests.steering import processes
from torch.testing import assert_close

from drrho.risk import KL


@pytest.fixture(scope="module")
def alone():
    return processes.everything(0, 1)


@pytest.fixture(scope="module", params=[2, 4], ids="{} processes".format)
def answers(request, tmp_path_factory):
    return processes.run(request.param, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("case", processes.CASES)
def test_processes_are_one_process(case, alone, answers):
    values, model, state = alone[case]
    for of_process in answers:
        for name in (case, f"{case}, accumulated"):
            their_values, their_model, their_state = of_process["training"][name]
            assert_close(their_values, values, rtol=1e-12, atol=1e-12)
            assert_close(their_model, model, rtol=1e-12, atol=1e-12)
            assert_close(their_state, state, rtol=1e-12, atol=1e-12)


def test_training_moved_the_model(alone):
    for values, model, _ in alone.values():
        assert model["weight"].abs().max() > 0.1
        assert values[-1] != values[0]


@pytest.mark.parametrize("case", processes.CASES)
def test_micro_batches_are_the_batch_in_one_process(case, alone):
    for whole, parts in zip(alone[case], alone[f"{case}, accumulated"], strict=True):
        assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_every_process_raises_what_is_wrong_on_one(answers):
    last = len(answers) - 1
    for of_process in answers:
        assert f"at 1 of {last + 2} samples of process {last}: 1" in of_process["error"]


def test_weights_given_by_one_process_count_and_ids_must_be_given_by_all(answers):
    world = len(answers)
    losses = torch.cat([torch.arange(3.0) + rank for rank in range(world)])
    measure = torch.cat([torch.tensor([1.0, 5.0, 2.0]), torch.ones(3 * (world - 1))])
    expected = KL(temperature=1.0)(losses, base_measure=measure).weights
    assert_close(torch.cat([answer["given on one"][0] for answer in answers]), expected)
    assert all("some have none" in answer["given on one"][1] for answer in answers)


def test_rows_of_any_number_are_gathered_and_summed(answers):
    world = len(answers)
    everyone = torch.cat([answer["rows"] for answer in answers])
    for rank, answer in enumerate(answers):
        shares = answer["partition"]
        assert (shares.sizes, shares.rank) == (list(range(world)), rank)
        assert torch.equal(answer["gathered"], everyone)
        assert torch.equal(answer["own"], answer["rows"])
        assert torch.equal(answer["own of sum"], answer["rows"] * world * (world + 1) // 2)
        assert answer["reduced"] == (world * (world - 1) // 2, world - 1)


def test_a_group_may_be_a_part_of_the_processes(answers):
    assert answers[0]["group"] == answers[1]["group"] == 0.5
