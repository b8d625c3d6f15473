"""Every reader of files, with random damage: an error of ours or the right value; see `damage.py`.

An hour of it: `make damage`.
"""

import csv
import json
import shutil
import time
import warnings
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from drrho.data.examples import evaluation_batches
from drrho.data.indexing import index_shards
from drrho.data.manifest import Manifest
from drrho.encoding.encoder import load
from drrho.models.build import Model
from drrho.models.seen import training_data_of
from drrho.models.towers.joined import (
    HEADS_FILE,
    MRR,
    FittedHead,
    JoinedCard,
    load_heads,
    read_joined_card,
)
from drrho.recipe.export import load_checkpoint_model
from drrho.recipe.folder import read_run, stages_of
from drrho.reference.formats.clip_retrieval import ClipRetrieval
from drrho.reference.formats.datacomp import DataComp
from drrho.reference.losses.store import LossStore
from drrho.reference.losses.table import read_loss_table
from drrho.reference.losses.writer import LossWriter
from drrho.reference.reader import open_reference
from drrho.runtime.records import read_record, write_record
from drrho.studies.advise.results import AdviceResults
from drrho.studies.compare.results import read_results
from drrho.studies.compare.runs import failure, read_precompute_cost
from drrho.studies.compare.scores import open_tests, read_scores, score
from drrho.studies.probe.results import ProbeResults
from drrho.studies.report.alerts import find_alerts
from drrho.studies.report.charts import draw_scaling
from drrho.studies.report.summary import summarise_run
from drrho.studies.scaling.points import read_runs
from drrho.studies.scaling.results import ScalingResults
from drrho.training.checkpoint import latest_checkpoint, read_latest_values
from tests.damage import Reader, budget, check, damages

FIXTURES = Path(__file__).parent / "fixtures" / "baseline"
EXAMPLES = 25  # damages of each reader in an ordinary run


def manifest_of(folder):
    return Manifest.load(folder / "train" / "manifest.json")


def pixels(image):
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float()


def samples_of(manifest):
    """Everything that a reader of samples gives, with the pictures' checksums."""
    batches = evaluation_batches(manifest, pixels, batch_size=1)
    return [
        (batch.sample_ids.tolist(), batch.captions, zlib.crc32(batch.images.numpy().tobytes()))
        for batch in batches
    ]


def index_and_read(name):
    def read(folder):
        manifest = index_shards(folder / "tables" / name)
        return manifest.num_samples, samples_of(manifest)

    return read


def stored_pairs(folder):
    manifest = manifest_of(folder)
    store = open_reference(folder / "embeddings", manifest)
    return [part.tolist() for part in store.gather(manifest.usable_ids())]


def losses_of(folder):
    store = LossStore.open(folder / "losses", manifest_of(folder), reference="small")
    return repr(store.gather(torch.arange(40)).tolist())


def checkpoint_of(folder):
    values = read_latest_values(folder / "run" / "checkpoints")
    path = latest_checkpoint(folder / "run" / "checkpoints")
    state = load_checkpoint_model(folder / "run", path).module.state_dict()
    return values and values[1], {name: tensor.tolist() for name, tensor in state.items()}


def run_of(folder):
    """A run as the report reads it."""
    run = read_run(folder / "run")
    stages_of(run)
    return summarise_run("run", run), find_alerts(run), run.temperature_at(run.step)


def model_of(folder):
    model = load(folder / "run", device="cpu")
    return model.encode_text(["a lemon"]).tolist()


def joined_of(folder):
    card = read_joined_card(folder / "joined")
    heads = load_heads(folder / "joined" / HEADS_FILE, card)
    return card, {name: value.shape for name, value in heads.items()}


def points_of(name):
    def read(folder):
        runs = read_runs([str(folder / name)])
        return [(run.compute(), run.error("mrr"), run.seed) for run in runs]

    return read


def comparison_of(folder):
    results = read_results(folder / "results.json")
    return f"{results}", read_runs([str(folder / "results.json")])


def scores_of(folder):
    tests = open_tests({"test": str(folder / "test" / "manifest.json")})
    found = read_scores(folder / "scores", tests)
    if found is None:
        return None
    mean = found.reciprocal_ranks["test"].mean()
    return found.metrics["test"]["mrr"] + float(mean), found.gflop and found.gflop.total


def notes_of(folder):
    return failure(folder / "notes"), read_precompute_cost(folder / "notes")


def scaling_of(folder):
    results = read_record(folder / "scaling.json", ScalingResults)
    return draw_scaling(results, "laws").rows


def foreign(source):
    def read(folder):
        found = source(folder / "foreign").open(manifest_of(folder))
        return list(found.keys()), found.table.read([0, 2]).image.tolist()

    return read


READERS = {
    "manifest": Reader(
        lambda folder: (manifest_of(folder).contents_sha256, samples_of(manifest_of(folder))),
        ("train/manifest.json", "train/manifest.rows-*"),
        exact=True,
    ),
    "tar": Reader(lambda folder: samples_of(manifest_of(folder)), ("train/*.tar",)),
    "tar, indexed": Reader(
        lambda folder: index_shards(folder / "train").num_samples, ("train/*.tar",)
    ),
    **{
        f"table.{kind}": Reader(index_and_read(f"table.{kind}"), (f"tables/table.{kind}",))
        for kind in ("csv", "tsv", "jsonl", "parquet")
    },
    "folder": Reader(
        lambda folder: samples_of(index_shards(folder / "pictures")), ("pictures/*/*",)
    ),
    "dataset": Reader(index_and_read("set"), ("tables/set/*",)),
    "reference": Reader(
        stored_pairs, ("embeddings/*.json", "embeddings/*.safetensors"), exact=True
    ),
    "losses": Reader(losses_of, ("losses/small/*.json", "losses/small/*.safetensors"), exact=True),
    "checkpoint": Reader(checkpoint_of, ("run/checkpoints/step-00000006/*",), exact=True),
    "run": Reader(run_of, ("run/recipe.json", "run/results.json", "run/metrics.jsonl")),
    "model": Reader(model_of, ("run/model/*",), exact=False),
    "joined": Reader(joined_of, ("joined/*",)),
    "trained_on": Reader(
        lambda folder: training_data_of(Model(f"run:{folder / 'run'}")), ("run/trained_on.json",)
    ),
    "comparison": Reader(comparison_of, ("results.json",)),
    "scores": Reader(scores_of, ("scores/scores.json", "scores/scores.safetensors")),
    "notes": Reader(notes_of, ("notes/*.json",)),
    "probe": Reader(
        lambda folder: str(read_record(folder / "probe.json", ProbeResults)), ("probe.json",)
    ),
    "advice": Reader(
        lambda folder: str(read_record(folder / "advice.json", AdviceResults)), ("advice.json",)
    ),
    "scaling": Reader(scaling_of, ("scaling.json",)),
    "points.csv": Reader(points_of("points.csv"), ("points.csv",)),
    "points.json": Reader(points_of("points.json"), ("points.json",)),
    **{
        f"losses.{kind}": Reader(
            lambda folder, kind=kind: read_loss_table(folder / f"losses.{kind}"),
            (f"losses.{kind}",),
        )
        for kind in ("csv", "npz")
    },
    "clip-retrieval": Reader(
        foreign(lambda folder: ClipRetrieval(source=str(folder))),
        ("foreign/*_emb/*.npy", "foreign/metadata/*.parquet"),
    ),
    "datacomp": Reader(
        foreign(lambda folder: DataComp(source=str(folder / "pool"), variant="b32")),
        ("foreign/pool/*",),
    ),
}


@pytest.fixture(scope="module")
def valid(scenes, reference, tmp_path_factory):
    """One valid file of each kind."""
    folder = tmp_path_factory.mktemp("valid")
    for name in ("train", "test"):
        shutil.copytree(scenes / name, folder / name)
    shutil.copytree(reference, folder / "embeddings")
    shutil.copytree(reference.parent / "run", folder / "run")
    write_tables(folder / "tables")
    manifest = manifest_of(folder)
    with LossWriter.open(folder / "losses", manifest, reference="small", identity="v1") as writer:
        writer.write(torch.arange(40), torch.arange(40.0))
    for name in ("probe/probe.json", "compare/results.json", "advise/advice.json"):
        shutil.copy(FIXTURES / name, folder / Path(name).name)
    write_joined(folder / "joined")
    write_studies(folder)
    write_foreign(folder / "foreign")
    return folder


def write_tables(folder):
    folder.mkdir()
    rows = [(f"{i}.jpg", f"a caption, number {i}") for i in range(4)]
    for i, (name, _) in enumerate(rows):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(folder / name)
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        with (folder / f"table.{kind}").open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([("image", "caption"), *rows])
    named = [{"image": image, "caption": caption} for image, caption in rows]
    (folder / "table.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in named))
    table = pa.Table.from_pylist(named)
    pq.write_table(table, folder / "table.parquet")
    datasets.disable_progress_bars()
    pictures = [(folder / name).read_bytes() for name, _ in rows]
    datasets.Dataset(table.set_column(0, "image", [pictures])).save_to_disk(folder / "set")
    for kind in ("png", "jpg", "webp"):
        (folder.parent / "pictures" / kind).mkdir(parents=True)
        Image.new("RGB", (9, 9), (90, 0, 0)).save(folder.parent / "pictures" / kind / f"a.{kind}")
        (folder.parent / "pictures" / kind / "a.txt").write_text("red")


def write_joined(folder):
    head = FittedHead(method="cca", settings="penalty 1", mrr=0.5)
    card = JoinedCard(
        image="timm:a",
        text="transformers:b",
        image_features=4,
        text_features=3,
        embed_dim=2,
        head=head,
        tried=(head,),
        fitted_on=90,
        chosen_on=10,
        judged_on=10,
        held_out=MRR(0.5, 0.4, 0.6, 0.1),
        data=("0" * 64,),
    )
    write_record(folder / "joined.json", card)
    sizes = {"image": 4, "text": 3}
    heads = {f"{side}_head.weight": torch.ones(2, size) for side, size in sizes.items()}
    save_file(heads | {f"{side}_head.bias": torch.ones(2) for side in sizes}, folder / HEADS_FILE)


def write_studies(folder):
    tests = open_tests({"test": str(folder / "test" / "manifest.json")})
    score(Model(name=f"run:{folder / 'run'}"), folder / "scores", tests, batch_size=8, device="cpu")
    (folder / "notes").mkdir()
    (folder / "notes" / "failure.json").write_text('{"reason": "no disk", "diverged": false}')
    (folder / "notes" / "precompute.json").write_text('{"samples": 40, "seconds": 1.5}')
    points = [{"compute": float(c), "error": c**-0.5} for c in (1, 4, 16)]
    law = {"scale": 1.0, "exponent": 0.5, "floor": 0.0}
    method = {"law": law, "points": points, "intervals": {"exponent": [0.4, 0.6]}}
    (folder / "scaling.json").write_text(json.dumps({"format": 1, "methods": {"clip": method}}))
    rows = [{"method": "clip", "seed": 0, **point} for point in points]
    (folder / "points.json").write_text(json.dumps(rows))
    with (folder / "points.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    losses = np.random.default_rng(0).normal(size=(20, 3))
    np.savez(folder / "losses.npz", one=losses[:, 0], two=losses[:, 1])
    np.savetxt(folder / "losses.csv", losses, delimiter=",", header="a,b,c", comments="")


def write_foreign(folder):
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 3, 4)).astype(np.float16)
    for name, array in (("img_emb", image), ("text_emb", text)):
        (folder / name).mkdir(parents=True)
        np.save(folder / name / f"{name}_0.npy", array)
    keys = pa.table({"image_path": list("012"), "caption": list("abc"), "uid": list("xyz")})
    for path in (folder / "metadata" / "metadata_0.parquet", folder / "pool" / "0.parquet"):
        path.parent.mkdir()
        pq.write_table(keys, path)
    np.savez(folder / "pool" / "0.npz", b32_img=image, b32_txt=text)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_an_error_of_ours_or_read_right(valid, name):
    reader = READERS[name]
    paths = [path for pattern in reader.files for path in sorted(valid.glob(pattern))]
    assert paths, reader.files
    right = reader.read(valid)

    @given(st.data())
    @settings(
        max_examples=EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        derandomize=False,
    )
    def damaged(data):
        path = data.draw(st.sampled_from(paths))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(reader, valid, path, data.draw(damages(path)), right=right)

    # The same damages every time in an ordinary run, others and others until the time is over in a
    # long one.
    end, number = time.monotonic() + budget() / len(READERS), 0
    while number == 0 or time.monotonic() < end:
        seed(number)(damaged)()
        number += 1
