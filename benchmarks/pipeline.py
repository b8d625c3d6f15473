"""What reading costs: samples per second of the reader beside open_clip's, and of `reference
precompute` beside a bare loop that decodes and encodes.

    python -m venv OTHER
    OTHER/bin/pip install open_clip_torch==3.3.0 webdataset==0.2.86 'numpy<2.4' 'pandas<3'
    python benchmarks/pipeline.py --open-clip OTHER/bin/python > benchmarks/pipeline.md

Both readers decode the same shards, with the same transform, tokenizer, batch size and number of
worker processes, and give normalised float32 images; nothing is cached between visits. With draft
JPEGs are decoded at half their size where the crop needs no more; resized by torch means
`loading.resize`. `--workers 1` and
`--no-precompute` measure a part. open_clip's runs in an environment of its own, as in training.py.
The bare loop has the bytes of every sample in memory before it starts, and stores nothing.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import in_turn, machine
from PIL import Image
from small_clip import write_small_clip

import drrho
from drrho.data.indexing import open_manifest
from drrho.data.loading import Loading, Position, training_batches
from drrho.data.manifest import Manifest
from drrho.data.reading.cache import OpenShards
from drrho.data.reading.shards import decode_caption, decode_image
from drrho.encoding.encoder import EmbeddingModel
from drrho.models.build import Model, build_model
from drrho.models.two_tower import TwoTower
from drrho.reference.precompute import precompute

# The transform of most CLIPs; towers that two cores encode at some tens of samples a second.
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 224, "layers": 4, "width": 192, "patch_size": 32},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 128,
        "heads": 2,
        "layers": 2,
    },
}
SHARDS, SAMPLES_PER_SHARD, PIXELS = 8, 512, 256
SIZES = (224, 112)  # of the crops
BATCH, WARM_UP, BATCHES = 64, 4, 24
# open_clip's own reader, told what its command line would tell it. Prints samples per second.
READ = f"""
import sys, time
from itertools import islice
from types import SimpleNamespace
sys.path.append({str(Path(drrho.__file__).parents[1])!r})
from drrho.runtime.torchvision import import_torchvision
import_torchvision()
import open_clip
from open_clip_train.data import get_wds_dataset
shards, model, workers, batch, warm_up, batches = sys.argv[1:3] + [int(n) for n in sys.argv[3:]]
_, transform, _ = open_clip.create_model_and_transforms(model)
arguments = SimpleNamespace(
    train_data=shards, train_num_samples=batch * (warm_up + batches + workers),
    train_data_upsampling_factors=None, dataset_resampled=False,
    batch_size=batch, workers=workers, world_size=1, seed=0,
)
data = get_wds_dataset(arguments, transform, True, tokenizer=open_clip.get_tokenizer(model))
stream = iter(data.dataloader)
list(islice(stream, warm_up))
start = time.perf_counter()
seen = sum(len(images) for images, _ in islice(stream, batches))
print(seen / (time.perf_counter() - start))
"""


def write_shards(folder: Path) -> None:
    """Photograph-like noise: smooth colours, some texture, a JPEG of about 20 kB."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:04d}.tar", "w") as archive:
            for row in range(SAMPLES_PER_SHARD):
                key = f"{shard:04d}{row:05d}"
                coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                smooth = np.asarray(coarse.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC))
                noisy = smooth + generator.normal(0, 8, smooth.shape)
                content = io.BytesIO()
                image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
                image.save(content, "JPEG", quality=85)
                _add(archive, f"{key}.jpg", content.getvalue())
                _add(archive, f"{key}.txt", f"a photograph with the number {row}".encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def ways(size: int) -> list[dict[str, Any]]:
    """Ways of drrho's to decode and resize, as fields of `Loading`."""
    drafts = (False, True) if size <= PIXELS / 2 else (False,)
    return [{"draft": draft, "resize": by} for draft in drafts for by in ("pillow", "torch")]


def read_by_drrho(model: TwoTower, manifest: Manifest, *, workers: int, **way: Any) -> float:
    batches = training_batches(
        manifest,
        model.train_transform,
        tokenizer=model.tokenizer,
        config=Loading(batch_size=BATCH, workers=workers, cache="off", **way),
        position=Position(seed=0),
    )
    list(islice(batches, WARM_UP))
    start = time.perf_counter()
    seen = sum(len(batch.to("cpu").images) for batch in islice(batches, BATCHES))
    return seen / (time.perf_counter() - start)


def largest_difference(model: TwoTower, manifest: Manifest, **way: Any) -> tuple[int, float]:
    """Largest and mean difference of 8-bit pixels from the exact way, of the same crops."""
    whole, other = (
        training_batches(
            manifest,
            model.train_transform,
            tokenizer=model.tokenizer,
            config=Loading(batch_size=BATCH, cache="off", **fields),
            position=Position(seed=0),
        )
        for fields in ({}, way)
    )
    differences = [
        (one.images.int() - other.images.int()).abs()
        for one, other in islice(zip(whole, other, strict=True), 4)
    ]
    return int(torch.cat(differences).max()), float(torch.cat(differences).float().mean())


def read_by_open_clip(python: str, folder: Path, *, size: int, workers: int) -> float:
    shards = f"{folder}/data/{{0000..{SHARDS - 1:04d}}}.tar"
    numbers = (workers, BATCH, WARM_UP, BATCHES)
    command = [python, "-c", READ, shards, f"local-dir:{folder}/model{size}", *map(str, numbers)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"open_clip's reader failed:\n{done.stderr[-3000:]}")
    return float(done.stdout)


def readers(folder: Path, python: str, *, turns: int, workers: int) -> Iterator[str]:
    """Rows of the first table; ratios are taken within a turn."""
    manifest = open_manifest(str(folder / "data"))
    for size in SIZES:
        model = build_model(Model(name=f"local-dir:{folder}/model{size}"), seed=0)
        rates = np.array(
            [
                [read_by_open_clip(python, folder, size=size, workers=workers)]
                + [read_by_drrho(model, manifest, workers=workers, **way) for way in ways(size)]
                for _ in range(turns)
            ]
        )
        print(f"{time.strftime('%H:%M:%S')} crops of {size}, {workers} workers", file=sys.stderr)
        medians = np.median(rates, axis=0)
        for column, way in enumerate(ways(size), start=1):
            ratios = rates[:, column] / rates[:, 0]
            yield (
                f"| {size} | {'draft' if way['draft'] else 'whole'} | {way['resize']} | {workers} "
                f"| {medians[0]:.0f} | {medians[column]:.0f} | {np.median(ratios):.2f} "
                f"| {ratios.min():.2f} to "
                f"{ratios.max():.2f} |"
            )


def bare_loop(encoder: EmbeddingModel, manifest: Manifest) -> Callable[[], None]:
    """Decodes, transforms, tokenises and encodes what lies in memory."""
    ids = list(range(manifest.num_samples))
    samples = OpenShards(manifest).read(ids)

    def call() -> None:
        for first in range(0, len(samples), BATCH):
            part = samples[first : first + BATCH]
            images = torch.stack([encoder.transform(decode_image(s)) for s in part])
            tokens = encoder.tokenizer([decode_caption(s) for s in part])
            for embeddings in (encoder.encode_pixels(images), encoder.encode_tokens(tokens)):
                embeddings.half()

    return call


def precomputing(folder: Path, *, turns: int) -> str:
    """The row of the second table."""
    manifest = open_manifest(str(folder / "data"))
    manifest = Manifest(shards=manifest.shards[:2])
    model = build_model(Model(name=f"local-dir:{folder}/model{SIZES[0]}"), seed=0)
    encoder = EmbeddingModel.frozen(model, device="cpu")
    bare = bare_loop(encoder, manifest)

    def stored() -> None:
        with tempfile.TemporaryDirectory() as output:
            precompute(encoder, manifest, output, batch_size=BATCH)

    seconds = in_turn([bare, stored], budget=0, fewest=turns)
    rates = manifest.num_samples / np.median(seconds, axis=0)
    ratios = seconds[:, 0] / seconds[:, 1]
    return (
        f"| {rates[0]:.0f} | {rates[1]:.0f} | {np.median(ratios):.3f} | "
        f"{ratios.min():.3f} to {ratios.max():.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--open-clip", required=True, help="Python with open_clip's trainer")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--no-precompute", action="store_true")
    options = parser.parse_args()
    described = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "data")
        for size in SIZES:
            vision = MODEL["vision_cfg"] | {"image_size": size, "patch_size": size // 7}
            write_small_clip(folder / f"model{size}", MODEL | {"vision_cfg": vision})
        rows = [
            row
            for workers in options.workers
            for row in readers(folder, options.open_clip, turns=options.turns, workers=workers)
        ]
        model = build_model(Model(name=f"local-dir:{folder}/model{SIZES[-1]}"), seed=0)
        manifest = open_manifest(str(folder / "data"))
        differences = [
            (way, *largest_difference(model, manifest, **way)) for way in ways(SIZES[-1])[1:]
        ]
        row = "" if options.no_precompute else precomputing(folder, turns=options.turns)
    lines = [
        "# Reading: samples per second",
        "",
        f"`python benchmarks/pipeline.py --turns {options.turns}`. {described}",
        f"{SHARDS} shards of {SAMPLES_PER_SHARD} JPEGs of {PIXELS} pixels; batches of {BATCH}. The",
        "random crops and the tokenizer are open_clip's, in both readers, and both give float32",
        "images; nothing is cached.",
        "",
        "| crop | decoded | resized by | workers | open_clip | drrho | ratio, median | range |",
        "|---:|---|---|---:|---:|---:|---:|---|",
        *rows,
        "",
        "What differs from the same crops, decoded whole and resized by Pillow, on these images of",
        f"smooth colours and noise, in crops of {SIZES[-1]}:",
        "",
        "| decoded | resized by | largest, of 255 | mean |",
        "|---|---|---:|---:|",
        *(
            f"| {'draft' if way['draft'] else 'whole'} | {way['resize']} | {most} | {mean:.3f} |"
            for way, most, mean in differences
        ),
    ]
    if row:
        lines += [
            "",
            "`drrho reference precompute` beside a loop that decodes and encodes the same samples,",
            "which it has in memory, and stores nothing; both in one process:",
            "",
            "| bare loop | precompute | ratio, median | lowest to highest |",
            "|---:|---:|---:|---|",
            row,
        ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
