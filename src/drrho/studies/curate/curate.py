"""`drrho curate`: rank pairs by a run and its reference, write a table and a filtered manifest."""

import csv
import importlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tyro.conf import Positional

from drrho.data.indexing import open_manifest
from drrho.data.loading import evaluation_batches
from drrho.data.manifest import CURATED, Manifest
from drrho.encoding.encoder import EmbeddingModel
from drrho.encoding.pairs import embed_pairs
from drrho.models.build import load_model
from drrho.models.program import trusting
from drrho.plotting.table import in_brackets
from drrho.recipe.folder import RunFolder, read_run
from drrho.reference.pairs import drawn_ids
from drrho.reference.reader import Reference
from drrho.runtime.files import write_atomically
from drrho.runtime.launch import Device, resolve_device
from drrho.runtime.progress import Progress
from drrho.runtime.records import write_record
from drrho.studies.curate.pair_quality import (
    PairScores,
    mismatched_share,
    nearest_earlier,
    pair_scores,
)

Label = Literal["mismatched", "redundant", "learned", "learnable"]
Dropped = Literal["mismatched", "redundant", "learned"]
TILE = 1024
SUMMARY_FILE = "summary.json"
COLUMNS = (
    *("sample_id", "shard", "row", "label"),
    *("mismatched_rank", "learnable_rank", "repeats"),
    *("target_similarity", "reference_similarity"),
    *("target_loss", "reference_loss", "excess_loss", "log_rank"),
)


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """Rank the pairs of a data set: mismatched, redundant, learned, learnable; drop some of them.

    Attributes:
        run: folder of a finished run that was trained with a reference.
        output: folder for the table of pairs, `summary.json` and the filtered `manifest.json`.
        data: data set to rank: a manifest, or what `drrho index` takes; by default the run's.
        reference: folder of stored embeddings of the data set; by default the run's.
        drop: labels of the pairs that the filtered manifest leaves out.
        keep: share of the remaining pairs to keep, those with the largest excess loss; None keeps
            all.
        mismatched_share: share of mismatched pairs in the data set; None estimates it.
        duplicate_similarity: smallest cosine of images and of captions, by the reference, at which
            a pair repeats an earlier one; None skips the search for duplicates, which compares
            every pair with every other.
        negatives: number of pairs, drawn at random, that every pair is compared with.
        format: file format of the table.
        batch_size: pairs encoded at once.
        workers: worker processes that decode images; 0 decodes in the main process.
        seed: random seed of the choice of negatives.
        device: device to compute on; "auto" takes the GPU if there is one.
        trust: run the program that the run's folder names; needed for runs of "python:FILE.py".
    """

    run: Positional[str] = field(kw_only=False)
    output: str
    data: str | None = None
    reference: str | None = None
    drop: tuple[Dropped, ...] = ("mismatched", "redundant")
    keep: float | None = None
    mismatched_share: float | None = None
    duplicate_similarity: float | None = 0.99
    negatives: int = 1024
    format: Literal["csv", "parquet"] = "csv"
    batch_size: int = 256
    workers: int = 0
    seed: int = 0
    device: Device = "auto"
    trust: bool = False

    def __post_init__(self):
        for name in ("keep", "mismatched_share", "duplicate_similarity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if self.keep == 0:
            raise ValueError("keep = 0 would leave no pair")
        if self.negatives < 2 or self.batch_size < 2:
            raise ValueError(
                f"negatives and batch_size must be at least 2, got {self.negatives} and "
                f"{self.batch_size}"
            )
        if self.duplicate_similarity is None and self.drop.count("redundant"):
            raise ValueError(
                "drop = 'redundant' has no effect with duplicate_similarity = None; leave it out"
            )


class Quality(NamedTuple):
    """Scores of the readable pairs with embeddings of the reference, in the order of their ids."""

    sample_ids: Int64[Tensor, " pairs"]
    scores: PairScores

    @property
    def excess_loss(self) -> Float[Tensor, " pairs"]:
        return self.scores.loss[:, 2]


@dataclass(frozen=True, kw_only=True)
class CurationSummary:
    """Contents of `summary.json`; `labels` and `left_out` count pairs by label and by reason."""

    version: ClassVar = 1
    pairs: int
    labels: Mapping[str, int]
    mismatched_share: float
    kept: int
    left_out: Mapping[str, int]
    run: str
    reference: Mapping[str, Any]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Curation:
    """The written files, and the summary of their contents."""

    table: Path
    manifest: Path
    summary: CurationSummary


def curate(config: CurateConfig) -> Curation:
    """Ranks all pairs, and writes the table, the summary and the filtered manifest.

    Raises:
        FileNotFoundError: there is no run or no finished model, or a shard is missing.
        ValueError: run, data and reference do not fit each other, or no pair would be left.
        ModuleNotFoundError: a parquet file is asked for, and pyarrow is not installed.
    """
    run = read_run(Path(config.run).expanduser())
    if config.reference is None and run.recipe.reference is None:
        raise ValueError(
            f"{config.run} was trained without a reference; give stored embeddings as --reference"
        )
    if config.format == "parquet":
        _pyarrow()  # before the work, not after it
    manifest = open_manifest(run.recipe.data if config.data is None else config.data)
    store = run.open_reference(manifest, config.reference)
    assert store is not None
    with trusting(everything=config.trust):
        model = load_model(run.path / "model")
    encoder = EmbeddingModel.frozen(model, device=resolve_device(config.device))
    quality = score_pairs(encoder, manifest, store, run=run, config=config)
    repeats = torch.full_like(quality.sample_ids, -1)
    if config.duplicate_similarity is not None:
        repeats = find_repeats(store, quality.sample_ids, similarity=config.duplicate_similarity)
    share = config.mismatched_share
    if share is None:
        share = mismatched_share(quality.scores.rank, quality.scores.chance_rank)
    labels = label_pairs(quality, repeats, share=share)
    kept = _kept(quality, labels, config)
    output = Path(config.output).expanduser()
    table = output / f"pairs.{config.format}"
    _write_table(table, _rows(manifest, quality, repeats, labels))
    reasons = _reasons(manifest, quality, labels, kept)
    filtered = output / "manifest.json"
    manifest.without(reasons).save(filtered)
    summary = CurationSummary(
        pairs=manifest.num_samples,
        labels=dict(Counter(labels)),
        mismatched_share=share,
        kept=int(kept.sum()),
        left_out=dict(Counter(reasons.values())),
        run=str(run.path),
        reference=store.identity,
        seed=config.seed,
    )
    write_record(output / SUMMARY_FILE, summary)
    return Curation(table=table, manifest=filtered, summary=summary)


def score_pairs(
    encoder: EmbeddingModel,
    manifest: Manifest,
    store: Reference,
    *,
    run: RunFolder,
    config: CurateConfig,
) -> Quality:
    """Scores every pair against the same negatives, in one pass; see `pair_scores`."""
    generator = torch.Generator().manual_seed(config.seed)
    drawn = drawn_ids(manifest, store, count=config.negatives, generator=generator)
    others = embed_pairs(
        encoder, manifest, drawn, batch_size=config.batch_size, description="negatives"
    )
    negatives = (others.target, store.gather(others.sample_ids).pairs)
    batches = evaluation_batches(
        manifest,
        encoder.transform,
        batch_size=config.batch_size,
        workers=config.workers,
        parts=("caption",),
    )
    sample_ids, parts = [], []
    with Progress("pairs", total=manifest.num_samples, unit="pairs") as progress:
        for batch in batches:
            progress.advance(len(batch.sample_ids))
            present = store.gather(batch.sample_ids).present
            if not present.any():
                continue
            ids = batch.sample_ids[present]
            scores = pair_scores(
                encoder.encode_pairs(batch.images, batch.first_captions).take(present),
                store.gather(ids).pairs,
                negatives=negatives,
                same=ids[:, None] == others.sample_ids,
                temperature=run.temperature_at(run.step),
            )
            sample_ids.append(ids)
            parts.append(scores)
    if not parts:
        raise ValueError("no pair could be read that the reference has embeddings of")
    scores = PairScores(*(torch.cat(column) for column in zip(*parts, strict=True)))
    return Quality(torch.cat(sample_ids), scores)


def find_repeats(
    store: Reference, sample_ids: Int64[Tensor, " pairs"], *, similarity: float
) -> Int64[Tensor, " pairs"]:
    """Finds the first earlier pair that each pair repeats, or -1; all against all, in tiles."""
    found = torch.full_like(sample_ids, -1)
    starts = range(0, len(sample_ids), TILE)
    with Progress("repetitions", total=len(starts), unit="tiles of rows") as progress:
        for top in starts:
            ids = sample_ids[top : top + TILE]
            pairs = store.gather(ids).pairs
            for left in range(0, top + 1, TILE):
                earlier_ids = sample_ids[left : left + TILE]
                earlier = store.gather(earlier_ids).pairs
                place = nearest_earlier(pairs, earlier, similarity=similarity)
                # On the diagonal the first that is alike is the pair itself if none before it is.
                new = (place >= 0) & (earlier_ids[place.clamp_min(0)] < ids)
                new &= found[top : top + TILE] < 0
                found[top : top + TILE][new] = earlier_ids[place[new]]
            progress.advance(1)
    return found


def label_pairs(quality: Quality, repeats: Int64[Tensor, " pairs"], *, share: float) -> list[Label]:
    """Labels each pair by the first that fits of mismatched, redundant, learned, learnable.

    The `share` of the pairs that rank lowest is mismatched; learned is what the target does at
    least as well as the reference.
    """
    ranks = _ranks(quality.scores.rank)
    columns = (
        (ranks <= round(share * len(ranks))).tolist(),
        repeats.tolist(),
        quality.excess_loss.tolist(),
    )

    def label(is_mismatched: bool, repeated: int, excess: float) -> Label:
        if is_mismatched:
            return "mismatched"
        if repeated >= 0:
            return "redundant"
        return "learnable" if excess > 0 else "learned"

    return [label(*pair) for pair in zip(*columns, strict=True)]


def _kept(quality: Quality, labels: list[Label], config: CurateConfig) -> Tensor:
    kept = torch.tensor([label not in config.drop for label in labels])
    if config.keep is not None:
        ranks = _ranks(quality.excess_loss.where(kept, -torch.inf))
        kept = ranks <= round(config.keep * int(kept.sum()))
    if not kept.any():
        raise ValueError("no pair would be left; drop less, or keep more")
    return kept


def _reasons(
    manifest: Manifest, quality: Quality, labels: list[Label], kept: Tensor
) -> dict[int, str]:
    """Reasons for leaving samples out, by id; pairs without scores are left out too."""
    reasons = dict.fromkeys(manifest.usable_ids().tolist(), f"{CURATED}not scored")
    for sample_id, label, keep in zip(
        quality.sample_ids.tolist(), labels, kept.tolist(), strict=True
    ):
        if keep:
            del reasons[sample_id]
        else:
            reasons[sample_id] = f"{CURATED}{label}"
    return reasons


def _rows(
    manifest: Manifest, quality: Quality, repeats: Tensor, labels: list[Label]
) -> list[tuple]:
    """Rows of the table, in the order of the ids."""
    scores = quality.scores
    columns = (
        quality.sample_ids.tolist(),
        labels,
        _ranks(scores.rank).tolist(),
        _ranks(quality.excess_loss).tolist(),
        repeats.tolist(),
        torch.cat([scores.similarity, scores.loss, scores.rank[:, None]], dim=1).tolist(),
    )
    rows = []
    for sample_id, label, *ranks, repeated, numbers in zip(*columns, strict=True):
        shard, row = manifest.locate(sample_id)
        place = (sample_id, Path(manifest.shards[shard].url).name, row)
        rounded = (round(number, 6) for number in numbers)
        rows.append((*place, label, *ranks, repeated if repeated >= 0 else None, *rounded))
    return rows


def _ranks(values: Tensor) -> Int64[Tensor, " pairs"]:
    """Ranks from 1, that of the largest value."""
    order = values.argsort(descending=True, stable=True)
    return torch.empty_like(order).scatter(0, order, torch.arange(1, len(order) + 1))


def _write_table(path: Path, rows: list[tuple]) -> None:
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
        write_atomically(path, text.getvalue().encode())
        return
    pyarrow, parquet = _pyarrow()
    columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    write_atomically(path, buffer.getvalue())


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; parquet files need: pip install 'drrho[tables]'", name=error.name
        ) from error


def run_curate(config: CurateConfig) -> str:
    """Rank the pairs of a data set, and leave some out of its manifest."""
    found = curate(config)
    labels = found.summary.labels
    return (
        f"{found.table}: {in_brackets(labels).strip(' ()')}\n"
        f"{found.manifest}: {found.summary.kept:,} of {found.summary.pairs:,} pairs kept; "
        f"train on it with --data {found.manifest}"
    )
