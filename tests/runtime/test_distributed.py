"""What processes tell each other: the same on every one, in the order of the processes."""

import pytest
import torch
import torch.distributed as dist
from tests.processes import run

from drrho.runtime.distributed import Partition, Processes, equal_partition, partition

SIZES = [3, 0, 2]
ROWS = torch.arange(10.0).view(5, 2)


def fails_on_the_second(processes):
    if processes.rank == 1:
        raise ValueError("no such file")
    return processes.rank


def error_of(call):
    try:
        return call()
    except ValueError as error:
        return str(error)


def of_objects(processes):
    tensor = torch.full((2,), float(processes.rank))
    processes.broadcast(iter([tensor]))
    processes.barrier()
    return {
        "first": processes.is_first,
        "broadcast": processes.broadcast_object({"from": processes.rank}),
        "on first": processes.on_first(lambda: processes.rank),
        "on first, error": error_of(
            lambda: processes.on_first(lambda: fails_on_the_second(Processes(1)))
        ),
        "on each": processes.on_each(lambda: 10 * processes.rank),
        "on each, error": error_of(
            lambda: processes.on_each(lambda: fails_on_the_second(processes))
        ),
        "gathered": processes.all_gather_object(processes.rank),
        "largest": processes.all_reduce_max(7 - processes.rank),
        "same": error_of(lambda: processes.require_same(seed=0, rate=0.1 + processes.rank)),
        "tensor": tensor.tolist(),
    }


def of_rows(pairs):
    own = pairs.own(ROWS)
    weights = torch.ones(3, requires_grad=True)
    pairs.average_grad(weights).sum().backward()
    return {
        "rank": pairs.rank,
        "processes": pairs.num_processes,
        "rows": pairs.num_rows,
        "start": pairs.start,
        "own": own.tolist(),
        "gathered": pairs.all_gather(own).tolist(),
        "scattered": pairs.reduce_scatter((1 + pairs.rank) * ROWS).tolist(),
        "sum": pairs.all_reduce(torch.tensor([pairs.rank, 1])).tolist(),
        "largest": pairs.all_reduce_max(torch.tensor([pairs.rank, -pairs.rank])).tolist(),
        "log sum exp": pairs.log_sum_exp(torch.tensor([float(pairs.rank)])).item(),
        "mean": pairs.mean(own.T).item(),
        "gradient": weights.grad.tolist(),
    }


def member(rank):
    processes = Processes(rank, len(SIZES), dist.new_group(), dist.new_group())
    pairs = partition(SIZES[rank], group=None, device=torch.device("cpu"))
    even = equal_partition(5, group=None)
    return of_objects(processes), of_rows(pairs), (even.sizes, even.rank, even.start)


@pytest.fixture(scope="module")
def members():
    return run(member, world=len(SIZES))


def test_objects(members):
    for rank, (found, _, _) in enumerate(members):
        assert found["first"] == (rank == 0)
        assert found["broadcast"] == {"from": 0}
        assert found["on first"] == 0
        assert found["on first, error"] == "no such file"
        assert found["on each"] == 10 * rank
        assert "no such file" in found["on each, error"]
        assert ("on process 1" in found["on each, error"]) == (rank != 1)
        assert found["gathered"] == [0, 1, 2]
        assert found["largest"] == 7
        assert "rate" in found["same"]
        assert "seed" not in found["same"]
        assert found["tensor"] == [0, 0]


def test_rows(members):
    start = 0
    for rank, (_, found, _) in enumerate(members):
        own = ROWS[start : start + SIZES[rank]]
        assert (found["rank"], found["processes"], found["rows"]) == (rank, 3, 5)
        assert found["start"] == start
        assert found["own"] == own.tolist()
        assert found["gathered"] == ROWS.tolist()
        assert found["scattered"] == (6 * own).tolist()
        assert found["sum"] == [3, 3]
        assert found["largest"] == [2, 0]
        assert found["log sum exp"] == pytest.approx(torch.arange(3.0).logsumexp(0).item())
        assert found["mean"] == pytest.approx(ROWS.mean().item())
        assert found["gradient"] == [1, 1, 1]
        start += SIZES[rank]


def test_equal_shares(members):
    """Blocks of two, the last the shorter."""
    assert [it for *_, it in members] == [([2, 2, 1], 0, 0), ([2, 2, 1], 1, 2), ([2, 2, 1], 2, 4)]


@pytest.mark.parametrize("kind", [torch.Tensor, torch.nn.Parameter], ids=["tensor", "parameter"])
def test_the_own_rows_of_a_tensor_of_all_are_cut_out(kind):
    """As a checkpoint of one process is read by several."""
    whole = torch.arange(10.0).view(2, 5)
    whole = torch.nn.Parameter(whole) if kind is torch.nn.Parameter else whole
    shares = [Partition(SIZES, rank, None).to_local(whole).tolist() for rank in range(3)]
    assert shares == [[[0, 1, 2], [5, 6, 7]], [[], []], [[3, 4], [8, 9]]]


def test_alone_it_is_the_same_without_a_group():
    found = of_objects(Processes())
    assert found["broadcast"] == {"from": 0}
    assert found["gathered"] == [0]
    assert found["largest"] == 7
    assert found["on each"] == 0
    pairs = partition(5, group=None, device=torch.device("cpu"))
    rows = of_rows(pairs)
    assert rows["gathered"] == rows["own"] == rows["scattered"] == ROWS.tolist()
    assert rows["mean"] == pytest.approx(ROWS.mean().item())
