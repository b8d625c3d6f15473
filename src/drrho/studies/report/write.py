"""`drrho report`: one HTML page about finished and unfinished runs."""

import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tyro.conf import Positional

from drrho import __version__
from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.manifest import Manifest
from drrho.data.reading.storage import local_path
from drrho.encoding.encoder import EmbeddingModel
from drrho.encoding.pairs import embed_pairs
from drrho.evaluation.metrics.bootstrap import bootstrap_interval
from drrho.evaluation.metrics.retrieval import (
    reciprocal_rank_of_images,
    retrieval_ranks,
)
from drrho.evaluation.sets import open_evaluation_set
from drrho.models.build import Model, build_model
from drrho.models.program import trusting
from drrho.recipe.document import RECIPE_FILE
from drrho.recipe.folder import RunFolder, find_runs, read_run
from drrho.reference.pairs import drawn_ids
from drrho.reference.reader import Reference
from drrho.runtime.errors import CheckpointError
from drrho.runtime.files import expand_paths, require_no_folder, write_atomically
from drrho.runtime.launch import Device, resolve_device
from drrho.runtime.records import read_record
from drrho.studies.compare.results import Metrics, Results, find_results
from drrho.studies.report.advice import find_advice
from drrho.studies.report.alerts import ReferenceCheck, find_alerts
from drrho.studies.report.content import REPLICATE, Report, ReportedRun, study_of
from drrho.studies.report.gallery import Gallery
from drrho.studies.report.make_gallery import GalleryConfig, make_gallery
from drrho.studies.report.page import render
from drrho.studies.scaling.results import LAWS_FILE, ScalingResults

MOST_GALLERIES = 3  # a page is to open on a phone
# What keeps a part from the page, which then says so.
PART_ERRORS = (OSError, ValueError, IndexError, CheckpointError, ModuleNotFoundError)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write one page about runs: curves, comparisons, weights of pairs, alerts.

    Attributes:
        runs: folders of runs, finished or not, or of comparisons with all their runs.
        output: HTML file to write.
        reference: folder of stored embeddings of the training data, where it has moved; also for
            runs that were trained without a reference.
        reference_model: model that computed the reference embeddings, as `drrho reference
            precompute` takes it, to find training pairs that it has memorised; found
            automatically in a comparison's folder.
        data: training data, where they have moved: a manifest, or what `drrho index` takes.
        gallery: number of pairs that are examined and shown.
        galleries: examine and show pairs.
        device: device to compute on; "auto" takes the GPU if there is one.
        trust: run the programs that the runs' folders name, and fetch the models and data that
            their recipes name; needed to show the pairs of runs of "python:FILE.py".
    """

    runs: Positional[tuple[str, ...]]
    output: str = "report.html"
    reference: str | None = None
    reference_model: str | None = None
    data: str | None = None
    gallery: GalleryConfig = field(default_factory=GalleryConfig)
    galleries: bool = True
    device: Device = "auto"
    trust: bool = False

    def __post_init__(self):
        expand_paths(self, "runs", "reference", "data")
        if not self.runs:
            raise ValueError("report needs at least one run")
        require_no_folder("output", self.output)
        if not self.galleries and self.gallery != GalleryConfig():
            raise ValueError("gallery has no effect with galleries = False; leave it out")


def write_report(config: ReportConfig, *, conclusion: str = "") -> Path:
    """Writes the page and returns where it is.

    What a run's folder lacks (the model of an unfinished run, data that moved) is left out of the
    page, which says so.

    Args:
        conclusion: sentence that the page begins with.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: a file of a run is damaged.
    """
    folders = [Path(path).expanduser() for path in config.runs]
    found = {folder.resolve().name: find_results(folder) for folder in folders}
    compared = {name: results for name, results in found.items() if results is not None}
    runs = [read_run(path) for path in _runs_of(folders)]
    names, with_galleries = _names(runs), _with_galleries(runs, config)
    laws = [p for f in folders for p in (f / LAWS_FILE, *sorted(f.glob(f"*/{LAWS_FILE}")))]
    with trusting(everything=config.trust):
        reported = [_reported(run, names[run.path], config, with_galleries) for run in runs]
    report = Report(
        title=" and ".join(folder.resolve().name for folder in folders),
        runs=reported,
        comparisons=compared,
        chance={name: _chance(results) for name, results in compared.items()},
        command=_command(config),
        conclusion=conclusion,
        written=f"{datetime.now().astimezone():%Y-%m-%d %H:%M}",
        scaling={
            path.parent.resolve().name: read_record(path, ScalingResults)
            for path in laws
            if path.is_file()
        },
        advice=find_advice(folders),
        version=__version__,
    )
    output = Path(config.output).expanduser()
    write_atomically(output, render(report).encode())
    return output


def _runs_of(folders: Sequence[Path]) -> list[Path]:
    """The runs of all folders and their replicates; a comparison may have results without runs."""
    found: list[Path] = []
    for folder in folders:
        replicates = sorted(folder.glob(f"{REPLICATE}*"), key=_number)
        places = [folder, *replicates] if find_results(folder) is not None else replicates
        inside = [file.parent for it in places for file in sorted(it.glob(f"*/{RECIPE_FILE}"))]
        found += inside if places else find_runs([folder])
    return list(dict.fromkeys(found))


def _number(replicate: Path) -> tuple[int, str]:
    number = replicate.name.removeprefix(REPLICATE)
    return (int(number) if number.isdecimal() else 0, number)


def _chance(results: Results) -> dict[str, Metrics]:
    """What guessing reaches on the test sets that are on this machine; nothing of others."""
    found = {}
    for name, source in results.setup.test.items():
        if local_path(source) is None:
            continue
        with suppress(*PART_ERRORS):
            tasks = open_evaluation_set(source).tasks
            found[name] = {f"zero_shot/{it.name}/top1": 1 / len(it.class_names) for it in tasks}
    return found


def _command(config: ReportConfig) -> str:
    """The command that writes this page again."""
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name in ("reference", "reference_model", "data")
        if (value := getattr(config, name)) is not None
    ]
    command = ["drrho", "report", *config.runs, "--output", config.output, *options]
    return shlex.join([*command, *([] if config.galleries else ["--no-galleries"])])


def _names(runs: list[RunFolder]) -> dict[Path, str]:
    """The folders' names, with the names of the folders above where two are alike."""
    short = [run.path.resolve().name for run in runs]
    counts = Counter(short)
    return {
        run.path: name if counts[name] == 1 else f"{run.path.resolve().parent.name}/{name}"
        for run, name in zip(runs, short, strict=True)
    }


def _with_galleries(runs: list[RunFolder], config: ReportConfig) -> list[Path]:
    """Chooses the runs that get a gallery: steered ones, and the first seed of each method."""
    if not config.galleries:
        return []
    steered = [r for r in runs if config.reference is not None or r.recipe.reference]
    first = {
        (study_of(run), run.recipe.objective.method): run.path for run in reversed(steered or runs)
    }
    chosen = set(first.values())
    return [run.path for run in runs if run.path in chosen][:MOST_GALLERIES]


def _reported(
    run: RunFolder, name: str, config: ReportConfig, with_galleries: list[Path]
) -> ReportedRun:
    device = resolve_device(config.device)
    found: Gallery | None = None
    check: ReferenceCheck | None = None
    missing = []
    if not run.rows:
        missing.append("no curves: its log has no row yet.")
    if run.results is None:
        missing.append("it is not finished; what is shown is of the steps so far.")
    if run.path in with_galleries:
        try:
            manifest = run.open_data(config.data)
            store = run.open_reference(manifest, config.reference)
            found = make_gallery(run, manifest, store, config=config.gallery, device=device)
        except PART_ERRORS as error:
            missing.append(f"no gallery: {error}")
        else:
            if store is not None:
                check = _check_reference(run, manifest, store, config, device, missing)
    elif config.galleries:
        missing.append("no gallery: it is made of steered runs, one for each method.")
    return ReportedRun(
        name=name,
        folder=run,
        gallery=found,
        alerts=find_alerts(run, reference=check),
        missing=missing,
    )


def _check_reference(
    run: RunFolder,
    manifest: Manifest,
    store: Reference,
    config: ReportConfig,
    device: torch.device,
    missing: list[str],
) -> ReferenceCheck:
    """Measures retrieval by the reference on training pairs, and held-out ones if possible."""
    generator = torch.Generator().manual_seed(config.gallery.seed)
    ids = drawn_ids(manifest, store, count=config.gallery.pairs, generator=generator)
    train = store.gather(ids).pairs
    alone = ReferenceCheck(train=float(_reciprocal_ranks(train).mean()), num_pairs=len(ids))
    model, held_out_data = _reference_model(run, config), run.recipe.evaluation.data
    if model is None or held_out_data is None:
        return alone
    try:
        held_out = run.open_data(named=held_out_data)
        encoder = EmbeddingModel.frozen(build_model(Model(name=model), seed=0), device=device)
        others = drawn_ids(held_out, None, count=len(ids), generator=generator)
        embedded = embed_pairs(
            encoder,
            held_out,
            others,
            batch_size=config.gallery.batch_size,
            description="held-out pairs by the reference",
        )
    except PART_ERRORS as error:
        missing.append(f"the reference was not looked at on held-out pairs: {error}")
        return alone
    # Equally many of both, since a rank is one among so many.
    count = min(len(ids), len(embedded.sample_ids))
    rows = torch.randperm(len(ids), generator=generator)[:count]
    train_ranks = _reciprocal_ranks(train.take(rows))
    ranks = _reciprocal_ranks(embedded.target.take(slice(count)))
    return ReferenceCheck(
        train=float(train_ranks.mean()),
        held_out=float(ranks.mean()),
        # The samples are independent; pairing them at random keeps the variance of both.
        interval=bootstrap_interval(
            train_ranks - ranks, generator=torch.Generator().manual_seed(0)
        ),
        common_shards=_common_shards(manifest, model),
        num_pairs=count,
    )


def _reciprocal_ranks(pairs: PairEmbeddings) -> Float[Tensor, " pairs"]:
    """Reciprocal rank of each pair's partner among all, the mean of both directions."""
    place = torch.arange(len(pairs.image)).expand(2, -1)
    ranks = retrieval_ranks(pairs.image, pairs.text, place)
    return reciprocal_rank_of_images(ranks, place)


def _reference_model(run: RunFolder, config: ReportConfig) -> str | None:
    if config.reference_model is not None:
        return config.reference_model
    stored = run.recipe.reference
    if not isinstance(stored, str):
        return None
    beside = Path(stored).parent / "run"  # where `drrho compare` trains what it stores
    return f"run:{beside}" if (beside / "model").is_dir() else None


def _common_shards(manifest: Manifest, model: str) -> int | None:
    """Shards of the data that the reference, a run's model, was trained on as well."""
    if not model.startswith("run:"):
        return None
    try:
        run = read_run(Path(model.removeprefix("run:")).expanduser())
        own = {shard.contents for shard in run.open_data().shards}
    except PART_ERRORS:
        return None
    return sum(shard.contents in own for shard in manifest.shards)


def run_report(config: ReportConfig) -> str:
    """Write one HTML page about runs: curves, comparisons and pairs."""
    return f"The page is {write_report(config).resolve().as_uri()}"
