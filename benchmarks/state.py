"""Per-sample state of a large data set: time per step, saving, other numbers of processes.

    python benchmarks/state.py > benchmarks/state.md

Processes on this machine share the averages of `--samples` samples, update them with batches of
random ids, save them with torch.distributed.checkpoint, and other numbers of processes read them
and compare with what was saved. Progress goes to standard error.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from measuring import machine

from drrho.contrastive.objectives.global_risk import AnchorAverages

REPEATS = 15
CHECKED = 100_000


def update_seconds(averages: AnchorAverages, batch: int, rank: int, world: int) -> list[float]:
    """Of reading, averaging and writing `batch` samples of all processes together."""
    generator = torch.Generator().manual_seed(rank)
    own = batch // world
    seconds = []
    for _ in range(REPEATS):
        ids = torch.randint(averages.log_u.num_samples, (own,), generator=generator)
        values = torch.randn(2, own, generator=generator)
        if world > 1:
            dist.barrier()
        start = time.perf_counter()
        averages.update(ids, values, 0.5)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)


def join(rank: int, world: int, folder: str, name: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=world
    )


def checked_ids(num_samples: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1_000 + rank)
    return torch.randint(num_samples, (CHECKED,), generator=generator)


def writer(rank: int, world: int, folder: str, num_samples: int, batches: list[int]) -> None:
    join(rank, world, folder, "writing")
    averages = AnchorAverages(num_samples)
    # Numbers that differ everywhere, so that a wrong row would be seen.
    share = averages.log_u.entries
    share.copy_(torch.rand(share.shape, generator=torch.Generator().manual_seed(rank)))
    report = {"bytes": share.numel() * share.element_size()}
    report["update"] = {batch: update_seconds(averages, batch, rank, world) for batch in batches}
    dist.barrier()
    start = time.perf_counter()
    dcp.save(averages.state_dict(), checkpoint_id=f"{folder}/checkpoint")
    report["save"] = time.perf_counter() - start
    expected = averages.log_u.read(checked_ids(num_samples, rank))
    everyone = [torch.empty_like(expected) for _ in range(world)]
    dist.all_gather(everyone, expected)
    report["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if rank == 0:
        torch.save(everyone, f"{folder}/expected.pt")
        Path(folder, "writer.json").write_text(json.dumps(report))
    dist.destroy_process_group()


def reader(rank: int, world: int, folder: str, num_samples: int, writers: int) -> None:
    join(rank, world, folder, f"reading-{world}")
    averages = AnchorAverages(num_samples)
    state = averages.state_dict()
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=f"{folder}/checkpoint")
    seconds = time.perf_counter() - start
    averages.load_state_dict(state)
    expected = torch.load(f"{folder}/expected.pt")
    for place in range(writers):
        found = averages.log_u.read(checked_ids(num_samples, place))
        if not torch.equal(found, expected[place]):
            raise AssertionError(f"{world} processes read other numbers than {writers} saved")
    if rank == 0:
        Path(folder, f"reader-{world}.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


def size_of(folder: Path) -> tuple[int, int]:
    """Bytes of the shards and of the metadata."""
    metadata = (folder / ".metadata").stat().st_size
    return sum(file.stat().st_size for file in folder.iterdir()) - metadata, metadata


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measured(num_samples: int, processes: int, readers: list[int], batches: list[int]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        say(f"{processes} processes write {num_samples:,} samples")
        mp.spawn(writer, (processes, folder, num_samples, batches), nprocs=processes)
        report = json.loads(Path(folder, "writer.json").read_text())
        shards, metadata = size_of(Path(folder, "checkpoint"))
        share, peak = report["bytes"] / 1e6, report["peak"] / 1e6
        lines = [
            f"## {num_samples:,} samples, {processes} processes",
            "",
            f"A process holds {share:,.0f} MB; with PyTorch and while saving, {peak:,.0f} MB.",
            f"The checkpoint is {shards / 1e9:.2f} GB and {metadata / 1e3:.1f} kB of metadata.",
            "",
            "| batch of all processes | read, average and write, ms | of the slowest in ten, ms |",
            "|---:|---:|---:|",
        ]
        for batch, seconds in report["update"].items():
            median, slow = seconds[len(seconds) // 2], seconds[int(0.9 * len(seconds))]
            lines.append(f"| {int(batch):,} | {1e3 * median:.2f} | {1e3 * slow:.2f} |")
        lines += ["", "| | seconds |", "|---|---:|", f"| saving | {report['save']:.1f} |"]
        for world in readers:
            say(f"{world} processes read it")
            mp.spawn(reader, (world, folder, num_samples, processes), nprocs=world)
            seconds = json.loads(Path(folder, f"reader-{world}.json").read_text())
            lines.append(f"| reading by {world}, every checked entry equal | {seconds:.1f} |")
        return lines


def on_paper(num_samples: int, batch: int) -> list[str]:
    message = f"{8 * batch / 1e3:.0f} kB"
    lines = [
        f"## {num_samples:,} samples, on paper",
        "",
        f"8 bytes a sample: {8 * num_samples / 1e9:.2f} GB in all. A step with a batch of",
        f"{batch:,} gathers its ids ({message}) and two numbers of each pair ({message}), and sums",
        f"the two answers ({message}), whatever the size of the data set.",
        "",
        "| processes | MB of each | entries of a batch that each answers for |",
        "|---:|---:|---:|",
    ]
    for world in (1, 8, 64, 256, 1024):
        share = -(-num_samples // world)
        lines.append(f"| {world:,} | {8 * share / 1e6:,.1f} | {batch / world:,.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=float, default=2e8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--readers", type=int, nargs="*", default=[1, 3])
    parser.add_argument("--batch", type=int, nargs="*", default=[1024, 4096, 32768, 65536])
    parser.add_argument("--paper-samples", type=float, default=1.28e9)
    options = parser.parse_args()
    lines = [
        "# Per-sample state",
        "",
        f"`{' '.join(['python', 'benchmarks/state.py', *sys.argv[1:]])}`. {machine()}",
        "One thread for each process; they speak by gloo.",
        "",
        *measured(int(options.samples), options.processes, options.readers, options.batch),
        "",
        *on_paper(int(options.paper_samples), max(options.batch)),
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
