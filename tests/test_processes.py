"""The harness of the tests with several processes: results come back, failures say where."""

import sys
import time

import pytest
import torch
import torch.distributed as dist

from tests.processes import Process, finish, run


def sum_of_ranks(rank, offset):
    total = torch.tensor(rank + offset)
    dist.all_reduce(total)
    return {"total": total, "rank": rank, "threads": torch.get_num_threads()}


def test_each_process_of_a_group_returns_its_result():
    answers = run(sum_of_ranks, 10, world=3)
    assert [answer["rank"] for answer in answers] == [0, 1, 2]
    assert all(answer["total"] == 33 for answer in answers)
    assert all(answer["threads"] == 1 for answer in answers)


def fails_on_one(rank):
    if rank == 1:
        raise KeyError("the one that failed")
    dist.barrier()


def test_a_failure_is_reported_with_its_traceback_and_the_others_are_ended():
    with pytest.raises(AssertionError, match=r"process 1 of 2(.|\n)*in fails_on_one(.|\n)*KeyErr"):
        run(fails_on_one, world=2)


def hangs(rank):
    time.sleep(3600)


def test_a_process_that_hangs_is_killed_and_says_where_it_was():
    started = time.monotonic()
    with pytest.raises(AssertionError, match=r"hung for 3.0 s(.|\n)*in hangs"):
        run(hangs, world=1, patience=3.0)
    assert time.monotonic() - started < 60


def speaks(status):
    sys.stdout.write("output\n")
    sys.stderr.write("error\n")
    sys.exit(status)


def test_status_and_output_of_each_process_are_kept():
    statuses, outputs, errors = finish([Process(speaks, 0), Process(speaks, 75)])
    assert (statuses, outputs, errors) == ([0, 75], ("output\n",) * 2, ("error\n",) * 2)
