"""What a run needs on disk, in memory, on the wire and in time: to ten billion samples, 1,024 GPUs.

    python benchmarks/sizing.py > benchmarks/sizing.md

Sizes follow from the formats; the tests hold them to what is written. Communication counts what
one process receives in a step beyond the gradients of the model, which any training exchanges.
The time of a step is a model on paper: its counts of operations and bytes are tested, its speeds
are figures of others, named in the table, and it has never met a GPU.
"""

import argparse
import math
from dataclasses import dataclass, replace
from typing import Literal

from drrho.reference.precompute import stored_bytes

SAMPLES = [10**6, 10**7, 10**8, 10**9, 10**10]
PROCESSES = [1, 8, 64, 256, 1024]
# Bytes of a sample in `train.rows-*`: where it starts, its length, its checksum; the kinds of its
# files, and the length of each: of an image, a caption and metadata.
ROWS = 8 + 4 + 4 + 1 + 3 * 4
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


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Speeds of a GPU, its node of eight and the network.

    Attributes:
        peak, share: dense FLOP/s in bfloat16, and the share of them that the towers reach.
        single: FLOP/s in float32, which the loss's products take.
        memory: bytes/s of the GPU's memory.
        link: bytes/s of a GPU to its node in one direction.
        network: bytes/s of a node's eight network cards in one direction.
    """

    name: str
    peak: float
    share: float
    single: float
    memory: float
    link: float
    network: float


A100 = Machine(
    name="A100, 15 % of peak",
    peak=312e12,
    share=0.154,
    single=19.5e12,
    memory=2.0e12,
    link=300e9,
    network=8 * 25e9,
)
H100_SLOW = Machine(
    name="H100, 15 % of peak",
    peak=989e12,
    share=0.154,
    single=66.9e12,
    memory=3.35e12,
    link=450e9,
    network=8 * 50e9,
)
H100 = replace(H100_SLOW, name="H100, 40 % of peak", share=0.4)
MACHINES = (A100, H100_SLOW, H100)
NODE = 8
# Of the links' and the network's speed, and of float32's, what is reached.
LINK_SHARE, SINGLE_SHARE = 0.85, 0.8
# Seconds of NCCL's own model (src/graph/tuning.cc): start of a collective, a hop within a node and
# a hop between nodes, and the share of the links' speed, of its protocols LL, LL128 and Simple.
START = 7e-6
RING = ((0.6e-6, 2.7e-6, 0.25), (1.9e-6, 4.0e-6, 0.9), (3.4e-6, 14e-6, 1.0))
TREE = ((0.6e-6, 5.0e-6, 0.25), (1.25e-6, 8.5e-6, 0.9), (4.0e-6, 14e-6, 1.0))
# ViT-B/16 with its text tower: FLOP of the forward pass of a pair, and parameters.
FORWARD, PARAMETERS = 41.09e9, 149.6e6
BUCKET = 25e6  # bytes of gradients that DistributedDataParallel sends last, after the backward pass
# Of a tile, forward and backward: kernels, seconds to launch one, and bytes moved for an entry.
KERNELS, LAUNCH, MOVED = 35, 4e-6, 176
TILE = 4096
PAIRS = 64  # of each GPU
READ, DECODED = 50e3, 250  # bytes of a pair in its shard; pairs/s that a core reads and decodes

Kind = Literal["gather", "scatter", "reduce"]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Ways of computing the loss on many GPUs.

    Attributes:
        reference_early: what is known before the towers run (the reference's texts, the ids) is
            gathered meanwhile.
        two_levels: gathers go between the nodes, each GPU with those of its place in other nodes,
            by NCCL's PAT (a logarithm of hops), and then within the node.
        one_tile: a strip is one tile where it has few enough entries.
        text_first: the text tower runs before the image tower, which hides the texts' gather and
            the exchange of their gradient.
    """

    name: str
    reference_early: bool = False
    two_levels: bool = False
    one_tile: bool = False
    text_first: bool = False


AS_IT_IS = Scheme(name="as it is")
EARLY = replace(AS_IT_IS, name="reference gathered early", reference_early=True)
WIDE = replace(EARLY, name="and wide tiles", one_tile=True)
TWO_LEVELS = replace(WIDE, name="and gathers in two levels", two_levels=True)
SCHEMES = (
    AS_IT_IS,
    EARLY,
    WIDE,
    TWO_LEVELS,
    replace(TWO_LEVELS, name="and the text tower first", text_first=True),
)


def loss_collectives(
    batch: int, processes: int, dim: int, dim_ref: int
) -> list[tuple[Kind, int, bool]]:
    """Collectives of a step of DRRho-CLIP: kind, bytes, and whether it can be made early.

    As docs/guides/contrastive.md counts them, which the tests compare with what is sent.
    """
    one = FLOAT * batch
    return [
        ("gather", 8 * processes, True),  # numbers of pairs
        ("gather", 2 * one, True),  # ids
        ("gather", one * dim_ref, True),
        ("gather", one * dim, False),
        ("reduce", one, False),  # sums of columns: largest terms, then sums
        ("reduce", one, False),
        ("gather", 2 * one, False),  # sums for the averages, and the owners' answers
        ("reduce", 2 * one, False),
        ("reduce", FLOAT, False),  # the loss
        ("gather", one, False),  # gradients of the text anchors
        ("scatter", one * dim, False),
    ]


def collective_seconds(
    kind: Kind, num_bytes: float, processes: int, machine: Machine, *, two_levels: bool = False
) -> float:
    """By NCCL's model: the fastest protocol's start, hops and bytes."""
    if processes == 1:
        return 0.0
    nodes = max(1, processes // NODE)
    within = min(processes, NODE)
    across = LINK_SHARE * (machine.link if nodes == 1 else min(machine.link, machine.network))
    if kind == "reduce":
        hops = 2 * (within - 1), 2 * math.ceil(math.log2(nodes))
        moved, protocols = 2 * num_bytes / across, TREE
    elif two_levels and nodes > 1:
        hops = within - 1, math.ceil(math.log2(nodes))
        moved = num_bytes / (LINK_SHARE * machine.network) + num_bytes / (LINK_SHARE * machine.link)
        protocols = RING
    else:
        hops = processes - nodes, nodes - 1
        moved, protocols = num_bytes / across, RING
    return START + min(
        hops[0] * inner + hops[1] * outer + moved / share for inner, outer, share in protocols
    )


def loss_flop(own: int, batch: int, dim: int, dim_ref: int) -> float:
    """FLOP of the products of a strip whose tiles are kept."""
    return 2.0 * own * batch * (3 * dim + dim_ref)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Seconds of a step. The exchange of gradients is what the backward pass does not hide."""

    towers: float
    gradients: float
    products: float
    tiles: float
    collectives: float
    steering: float  # what of the loss a reference adds

    @property
    def loss(self) -> float:
        return self.products + self.tiles + self.collectives

    @property
    def seconds(self) -> float:
        return self.towers + self.gradients + self.loss


def step_of(
    own: int, processes: int, machine: Machine, scheme: Scheme, *, dim: int, dim_ref: int
) -> Step:
    """Model a step of ViT-B/16 with DRRho-CLIP and `own` pairs on each GPU."""
    batch = own * processes
    towers = 3 * FORWARD * own / (machine.peak * machine.share)
    backward = 2 / 3 * towers
    gradient_bytes = FLOAT * PARAMETERS
    exchange = collective_seconds("reduce", gradient_bytes, processes, machine)
    last = collective_seconds("reduce", BUCKET, processes, machine)
    gradients = max(last, exchange - backward) if processes > 1 else 0.0
    entries = own * batch
    width = batch if scheme.one_tile and entries <= TILE**2 else TILE
    num_tiles = math.ceil(own / TILE) * math.ceil(batch / width)
    tiles = max(num_tiles * KERNELS * LAUNCH, entries * MOVED / machine.memory)
    collectives = reference = 0.0
    for kind, num_bytes, early in loss_collectives(batch, processes, dim, dim_ref):
        hidden = scheme.reference_early if early else scheme.text_first
        if hidden and (early or num_bytes == FLOAT * batch * dim):
            continue
        seconds = collective_seconds(
            kind, num_bytes, processes, machine, two_levels=scheme.two_levels
        )
        collectives += seconds
        if num_bytes == FLOAT * batch * dim_ref and early:
            reference = seconds
    speed = SINGLE_SHARE * machine.single
    of_reference = (loss_flop(own, batch, dim, dim_ref) - loss_flop(own, batch, dim, 0)) / speed
    return Step(
        towers=towers,
        gradients=gradients,
        products=loss_flop(own, batch, dim, dim_ref) / speed,
        tiles=tiles,
        collectives=collectives,
        steering=of_reference + reference,
    )


def time_table(own: int, dim: int, dim_ref: int) -> list[str]:
    lines = [
        (
            "| GPU | scheme | K | B | ms a step | towers | gradients | products | tiles "
            "| collectives | steps/s | pairs/s and GPU | loss | steering | efficiency |"
        ),
        "|---|---" + "|---:" * 13 + "|",
    ]
    for machine in MACHINES:
        for scheme in SCHEMES:
            first = step_of(own, NODE, machine, scheme, dim=dim, dim_ref=dim_ref).seconds
            for k in (8, 64, 256, 1024) if scheme is SCHEMES[0] else (1024,):
                step = step_of(own, k, machine, scheme, dim=dim, dim_ref=dim_ref)
                parts = (
                    step.seconds,
                    step.towers,
                    step.gradients,
                    step.products,
                    step.tiles,
                    step.collectives,
                )
                cells = [machine.name, scheme.name, f"{k:,}", f"{own * k:,}"]
                cells += [f"{1e3 * part:.2f}" for part in parts]
                cells += [f"{1 / step.seconds:.1f}", f"{own / step.seconds:,.0f}"]
                cells += [f"{part / step.seconds:.1%}" for part in (step.loss, step.steering)]
                cells.append(f"{first / step.seconds:.3f}")
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def reading_table(own: int, dim: int, dim_ref: int) -> list[str]:
    lines = [
        "| GPU | pairs/s and GPU | cores of each GPU | MB/s of shards | MB/s of stored reference |",
        "|---|---:|---:|---:|---:|",
    ]
    for machine in MACHINES:
        step = step_of(own, NODE, machine, SCHEMES[0], dim=dim, dim_ref=dim_ref)
        rate = own / step.seconds
        reference = rate * 2 * 2 * dim_ref / 1e6
        cells = [f"{rate:,.0f}", f"{rate / DECODED:.0f}", f"{rate * READ / 1e6:.0f}"]
        lines.append(f"| {machine.name} | " + " | ".join([*cells, f"{reference:.1f}"]) + " |")
    return lines


# What is assumed, the figure, and where it is from.
ASSUMPTIONS = (
    (
        "A100",
        (
            "312 TFLOP/s in bfloat16, 19.5 in float32, 2.0 TB/s of memory, NVLink 300 GB/s "
            "each way; 8 x 200 Gb/s a node"
        ),
        "NVIDIA's data sheets of A100 and DGX A100",
    ),
    (
        "H100",
        "989 and 66.9 TFLOP/s, 3.35 TB/s, 450 GB/s each way; 8 x 400 Gb/s a node",
        "NVIDIA's data sheets of H100 SXM and DGX H100",
    ),
    (
        "towers",
        "3 x 41.09 GFLOP a pair; 149.6 M parameters, gradients in float32",
        "open_clip, docs/model_profile.csv",
    ),
    (
        "15 % of peak",
        "ViT-B/16 on 344 A100 with 256 pairs each: 134,240 pairs/s",
        "training logs of arXiv 2212.07143 (huggingface.co/mehdidc/test, trained_models_info.csv)",
    ),
    (
        "40 % of peak",
        "none of CLIP's: what a compiled model with fused attention may reach",
        "assumption; it makes the rest of the step weigh most",
    ),
    (
        "float32 products",
        "80 % of the peak, tiles kept",
        "assumption",
    ),
    (
        "links",
        "85 % of their speed; hops and protocols of NCCL",
        "NCCL, src/graph/tuning.cc",
    ),
    (
        "gradients of the towers",
        "exchanged during the backward pass, but for the last 25 MB",
        "DistributedDataParallel",
    ),
    (
        "tiles",
        "35 kernels of 4 us each, 176 bytes an entry, forward and backward",
        "counted in `log_sums.py`; the launch is an assumption",
    ),
    ("what is gathered early", "hidden by the towers", "assumption"),
    (
        "reading",
        "250 pairs/s of a core, 50 kB a pair; hidden if there are enough cores",
        "`benchmarks/pipeline.md`; assumption",
    ),
)

PLAN = """\
At 64 pairs on each GPU the loss is not free: every text travels to every GPU three times (the
target's, the reference's, the gradient), and NCCL's gathers go around a ring of all GPUs, whose
hops take longer than the bytes of a small one. As it is, 0.95 is reached up to 64 H100 or 256 A100.
The changes of scheme that reach it at 1,024, none of which changes a number beyond its rounding:

1. Gather what is known before the towers run meanwhile: ids and the reference's texts (each process
   could also read them from the store itself).
2. A tile of a low strip as wide as its entries allow: 16 times fewer kernels.
3. Gathers in two levels, between nodes and then within them, in place of a ring of 1,024.
4. The text tower first: its embeddings are gathered while the image tower runs, which has 85 % of
   the operations, and their gradient is exchanged while that one goes backward.

What others have measured: 93 % from one to 16 nodes of H100 with CLIP g/14 (NVIDIA NeMo's user
guide, CLIP performance), 87 % and 85 % from 4 to 512 GH200 with CLAP
(github.com/LAION-AI/open-clap-scaling)."""


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
        "It does not depend on the number of samples, nor from K = 2 on much on that of",
        "processes.",
        "",
        "## A step of ViT-B/16 with DRRho-CLIP on 1,024 GPUs, on paper",
        "",
        f"{PAIRS} pairs on each of K GPUs. Steering is what of the loss a reference adds;",
        "efficiency is the time of a step on 8 GPUs over that on K, with the same scheme.",
        "",
        *time_table(PAIRS, options.dim, options.dim_ref),
        "",
        *PLAN.splitlines(),
        "",
        "Reading has to give:",
        "",
        *reading_table(PAIRS, options.dim, options.dim_ref),
        "",
        "Assumptions:",
        "",
        "| what | figure | from |",
        "|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in ASSUMPTIONS),
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
