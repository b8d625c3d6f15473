"""What a run needs on disk, in memory and on the wire: from a million samples to ten billion.

    python benchmarks/sizing.py > benchmarks/sizing.md

Sizes follow from the formats; the tests hold them to what is written. Communication counts what
one process receives in a step beyond the gradients of the model, which any training exchanges.
"""

import argparse

from drrho.reference.precompute import stored_bytes

SAMPLES = [10**6, 10**7, 10**8, 10**9, 10**10]
PROCESSES = [1, 8, 64, 256, 1024]
# Bytes of a sample in `train.rows-*`: where it starts, its length, its checksum.
ROWS = 8 + 4 + 4
# Of a pair of averages.
STATE = 2 * 4
# Of a shard of 10,000 samples in `train.json`, and its share of them.
JSON = 560 / 10_000
FLOAT = 4


def readable(num_bytes: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def received(batch: int, processes: int, dim: int, dim_ref: int) -> float:
    """Bytes that a process receives of a batch: embeddings and the texts' gradient, the two
    reductions of column sums, and the samples' averages.

    As counted in docs/guides/contrastive.md, with the ids and averages of docs/mathematics.md.
    """
    if processes == 1:
        return 0.0
    embeddings = 2 * batch * dim + batch * dim_ref
    sums = 5 * batch
    state = 2 * batch + 2 * batch + 2 * batch  # ids of 8 bytes, what arrives, what is answered
    return FLOAT * (embeddings + sums + state)


def disk_table(dim: int) -> list[str]:
    lines = [
        "| samples | index | reference, float16 | averages in a checkpoint |",
        "|---:|---:|---:|---:|",
    ]
    for n in SAMPLES:
        cells = [n * (ROWS + JSON), stored_bytes(n, dim), n * STATE]
        lines.append(f"| {n:,} | " + " | ".join(map(readable, cells)) + " |")
    return lines


def memory_table() -> list[str]:
    header = "| samples | " + " | ".join(f"K = {k:,}" for k in PROCESSES) + " |"
    lines = [header, "|---:" * (len(PROCESSES) + 1) + "|"]
    for n in SAMPLES:
        cells = [readable(n * STATE / k) for k in PROCESSES]
        lines.append(f"| {n:,} | " + " | ".join(cells) + " |")
    return lines


def wire_table(dim: int, dim_ref: int) -> list[str]:
    batches = [4_096, 16_384, 65_536]
    header = "| K | " + " | ".join(f"B = {b:,}" for b in batches) + " |"
    lines = [header, "|---:" * (len(batches) + 1) + "|"]
    for k in PROCESSES:
        cells = [readable(received(b, k, dim, dim_ref)) for b in batches]
        lines.append(f"| {k:,} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=512, help="of the target's embeddings")
    parser.add_argument("--dim-ref", type=int, default=512, help="of the reference's")
    options = parser.parse_args()
    lines = [
        "# Sizes",
        "",
        f"`python benchmarks/sizing.py`; d = {options.dim}, of the reference {options.dim_ref}.",
        "",
        "## On disk",
        "",
        *disk_table(options.dim_ref),
        "",
        "Index and reference are mapped into memory: what is not used of them takes none.",
        "",
        "## Averages in the memory of each of K processes",
        "",
        *memory_table(),
        "",
        "Individual temperatures take twice as much again.",
        "",
        "## What a process receives in a step for the loss",
        "",
        *wire_table(options.dim, options.dim_ref),
        "",
        "It does not depend on the number of samples, nor from K = 2 on much on that of processes.",
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
