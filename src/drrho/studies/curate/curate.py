"""`drrho curate`: rank pairs by a run and its reference, write a table and a filtered manifest."""

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from tyro.conf import Positional

from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.manifest import CURATED, Manifest
from drrho.encoding.encoder import EmbeddingModel
from drrho.models.build import load_model
from drrho.models.program import trusting
from drrho.plotting.table import in_brackets
from drrho.recipe.folder import RunFolder, read_run
from drrho.reference.pairs import drawn_ids
from drrho.reference.reader import Reference, open_reference
from drrho.runtime.checks import require_at_least
from drrho.runtime.files import expand_paths, write_atomically
from drrho.runtime.launch import Device, resolve_device
from drrho.runtime.locks import exclusive
from drrho.runtime.optional import import_optional
from drrho.runtime.records import write_record
from drrho.studies.curate.gallery import GALLERY_FILE, Shown, write_gallery
from drrho.studies.curate.labels import Dropped, Label, label_pairs
from drrho.studies.curate.pair_quality import mismatched_share
from drrho.studies.curate.scores import Quality, Reading, find_repeats, finite_pairs, score_pairs
from drrho.studies.curate.threshold import Judgement, held_out_ranks, judge

PRECISION = 0.95
TABLE_NAME, SUMMARY_FILE, MANIFEST_FILE = "pairs", "summary.json", "manifest.json"
COLUMNS = (
    *("sample_id", "shard", "row", "key", "caption", "label"),
    *("mismatched_rank", "learnable_rank", "repeats"),
    *("target_similarity", "reference_similarity"),
    *("target_loss", "reference_loss", "excess_loss", "log_rank"),
)
NO_HELD_OUT = (
    "How precisely wrong captions are told is measured on held-out pairs whose captions are right: "
    "give them as --held-out, with the reference's stored embeddings of them as "
    "--held-out-reference (a run that names both in its recipe, evaluation.data and "
    "evaluation.references, needs neither), or say --mismatched-share."
)


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """Rank the pairs of a data set: mismatched, redundant, learned, learnable; drop some if asked.

    Attributes:
        run: folder of a finished run that was trained with a reference.
        output: folder for the table of pairs and `summary.json`, and with `drop` or `keep` for the
            filtered `manifest.json`.
        data: data set to rank: a manifest, or what `drrho index` takes; by default the run's.
        reference: folder of stored embeddings of the data set; by default the run's.
        held_out: held-out pairs that resemble the data set and have right captions: a manifest, or
            what `drrho index` takes. They show how precisely wrong captions are found. By default
            the run's evaluation data.
        held_out_reference: folders of the reference's stored embeddings of the held-out pairs; by
            default the run's evaluation.references of the same reference.
        precision: smallest share of wrong captions among the captions called mismatched; no caption
            is called mismatched where the held-out pairs cannot show this share.
        mismatched_share: share of pairs to call mismatched, beginning with the lowest rank, at any
            precision; None uses the precision.
        drop: labels of the pairs that the filtered manifest leaves out.
        keep: share of the remaining pairs that the filtered manifest keeps, those with the largest
            excess loss; None keeps all.
        duplicate_similarity: smallest cosine of images and of captions, by the reference, at which
            a pair repeats an earlier one; None skips the search for duplicates, which compares
            every pair with every other.
        negatives: number of pairs, drawn at random, that every pair is compared with.
        format: file format of the table.
        gallery: number of pairs of each label that gallery.html shows, to look through before they
            are dropped: half of them the clearest, half the most doubtful; 0 writes no page.
        batch_size: pairs encoded at once.
        workers: worker processes that decode images; 0 decodes in the main process.
        seed: random seed of the choice of negatives.
        device: device to compute on; "auto" takes the GPU if there is one.
        trust: run the program that the run's folder names, and fetch the data that its recipe
            names; needed for runs of "python:FILE.py".
    """

    run: Positional[str] = field(kw_only=False)
    output: str
    data: str | None = None
    reference: str | None = None
    held_out: str | None = None
    held_out_reference: tuple[str, ...] = ()
    precision: float = PRECISION
    mismatched_share: float | None = None
    drop: tuple[Dropped, ...] = ()
    keep: float | None = None
    duplicate_similarity: float | None = 0.99
    negatives: int = 1024
    format: Literal["csv", "parquet"] = "csv"
    gallery: int = 48
    batch_size: int = 256
    workers: int = 0
    seed: int = 0
    device: Device = "auto"
    trust: bool = False

    def __post_init__(self):
        expand_paths(self, "run", "data", "reference")
        for name in ("keep", "mismatched_share", "duplicate_similarity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if not 0 < self.precision < 1:
            raise ValueError(f"precision must be between 0 and 1, got {self.precision}")
        require_at_least(0, gallery=self.gallery)
        if self.keep == 0:
            raise ValueError("keep = 0 would leave no pair")
        by_precision = self.held_out, self.held_out_reference, self.precision
        if self.mismatched_share is not None and by_precision != (None, (), PRECISION):
            raise ValueError(
                "held_out, held_out_reference and precision have no effect with mismatched_share; "
                "leave them out"
            )
        if self.negatives < 2 or self.batch_size < 2:
            raise ValueError(
                f"negatives and batch_size must be at least 2, got {self.negatives} and "
                f"{self.batch_size}"
            )
        if self.duplicate_similarity is None and self.drop.count("redundant"):
            raise ValueError(
                "drop = 'redundant' has no effect with duplicate_similarity = None; leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class CurationSummary:
    """Contents of `summary.json`.

    Attributes:
        pairs: number of pairs in the data set.
        labels: label -> number of pairs.
        mismatched_share: share of the ranked pairs that are called mismatched.
        kept: number of pairs that are not left out.
        left_out: reason -> number of pairs; none where no manifest is written.
        run: folder of the run.
        reference: identity of the stored embeddings.
        seed: random seed of the negatives.
        judgement: how well mismatched captions are told; None without held-out pairs.
        wrong_at_most: share of wrong captions, estimated from above: what the reference does not
            know counts as wrong.
        not_finite: number of pairs with embeddings that are not finite, which are not ranked.
    """

    version: ClassVar = 2
    pairs: int
    labels: Mapping[str, int]
    mismatched_share: float
    kept: int
    left_out: Mapping[str, int]
    run: str
    reference: Mapping[str, Any]
    seed: int
    judgement: Judgement | None = None
    wrong_at_most: float | None = None
    not_finite: int = 0


@dataclass(frozen=True, kw_only=True)
class Curation:
    """The written files, and the summary; None for what was not asked for."""

    table: Path
    manifest: Path | None
    gallery: Path | None
    summary: CurationSummary


def curate(config: CurateConfig) -> Curation:
    """Ranks all pairs, writes the table and the summary and, if asked, the filtered manifest.

    Raises:
        FileNotFoundError: there is no run or no finished model, or a shard is missing.
        ValueError: run, data and reference do not fit each other, the output would replace what is
            not curation's, or no pair would be left.
        BlockingIOError: another process writes to the output.
        ModuleNotFoundError: a parquet file is asked for, and pyarrow is not installed.
    """
    run = read_run(Path(config.run).expanduser())
    if config.reference is None and run.recipe.reference is None:
        raise ValueError(
            f"{config.run} was trained without a reference; give stored embeddings as --reference"
        )
    if config.format == "parquet":
        _pyarrow()  # before the work, not after it
    output = Path(config.output).expanduser()
    source = run.recipe.data if config.data is None else config.data
    _require_own(output, source, config)
    with exclusive(output), trusting(everything=config.trust):
        return _curated(run, output, config)


def _require_own(output: Path, source: str, config: CurateConfig) -> None:
    """Raises ValueError where a file that is not an earlier curation's would be replaced."""
    table, manifest = output / f"{TABLE_NAME}.{config.format}", output / MANIFEST_FILE
    curated = (output / SUMMARY_FILE).is_file()
    for path in (table, manifest):
        if path.exists() and (Path(source).expanduser().resolve() == path.resolve()):
            raise ValueError(f"{path} is what is curated; name another folder as output")
    if manifest.exists() and not curated:
        raise ValueError(
            f"{manifest} is no earlier curation's, and would be replaced; name another folder as "
            "output"
        )


def _curated(run: RunFolder, output: Path, config: CurateConfig) -> Curation:
    manifest = run.open_data(config.data)
    store = run.open_reference(manifest, config.reference)
    assert store is not None
    held_out = None
    if config.mismatched_share is None:
        held_out = _held_out(run, store, config)
        if held_out is None and "mismatched" in config.drop:
            raise ValueError(f"drop = 'mismatched' needs to know which captions are. {NO_HELD_OUT}")
    model = load_model(run.path / "model")
    encoder = EmbeddingModel.frozen(model, device=resolve_device(config.device))
    generator = torch.Generator().manual_seed(config.seed)
    quality = score_pairs(
        encoder,
        manifest,
        store,
        drawn=drawn_ids(manifest, store, count=config.negatives, generator=generator),
        temperature=run.temperature_at(run.step),
        reading=Reading(config.batch_size, config.workers),
    )
    repeats = torch.full_like(quality.sample_ids, -1)
    if config.duplicate_similarity is not None:
        repeats = find_repeats(store, quality.sample_ids, similarity=config.duplicate_similarity)
    mismatched, judgement = _mismatched(quality, held_out, config)
    labels = label_pairs(quality, repeats, mismatched)
    kept = _kept(quality, labels, config)
    table = output / f"{TABLE_NAME}.{config.format}"
    _write_table(table, _rows(manifest, quality, repeats, labels))
    filters = bool(config.drop) or config.keep is not None
    reasons = _reasons(manifest, quality, labels, kept) if filters else {}
    summary = CurationSummary(
        pairs=manifest.num_samples,
        labels=dict(Counter(labels)),
        mismatched_share=float(mismatched.double().mean()),
        kept=int(kept.sum()) if filters else len(manifest.usable_ids()),
        left_out=dict(Counter(reasons.values())),
        run=str(run.path),
        reference=store.identity,
        seed=config.seed,
        judgement=judgement,
        wrong_at_most=mismatched_share(quality.scores.rank, quality.scores.chance_rank),
        not_finite=quality.num_not_finite,
    )
    write_record(output / SUMMARY_FILE, summary)  # first: it says whose the manifest is
    if filters:
        manifest.without(reasons).save(output / MANIFEST_FILE)
    page = output / GALLERY_FILE if config.gallery else None
    if page is not None:
        dropped = Shown(config.gallery, config.drop)
        write_gallery(page, manifest, quality, labels, repeats, shown=dropped)
    return Curation(
        table=table,
        manifest=output / MANIFEST_FILE if filters else None,
        gallery=page,
        summary=summary,
    )


def _held_out(run: RunFolder, store: Reference, config: CurateConfig) -> PairEmbeddings | None:
    """The reference's embeddings of held-out pairs; None if there are none."""
    data = run.recipe.evaluation.data if config.held_out is None else config.held_out
    if data is None:
        return None
    manifest = run.open_data(config.held_out, named=data)
    folders = config.held_out_reference
    if not folders:
        own = run.recipe.evaluation.references if data == run.recipe.evaluation.data else ()
        found = {folder: open_reference(folder, manifest) for folder in own}
        folders = [name for name, held in found.items() if held.identity == store.identity][:1]
        if not folders and config.held_out is not None:
            raise ValueError(f"held_out = {data!r} needs held_out_reference: its stored embeddings")
        if not folders:
            return None
    weights = store.weights if len(folders) > 1 else None
    held = open_reference(folders, manifest, weights=weights)
    if held.identity != store.identity:
        raise ValueError(
            f"held_out_reference = {folders} is of another reference than the data set's: "
            f"{held.identity}, not {store.identity}"
        )
    rows = held.gather(manifest.usable_ids())
    pairs = rows.pairs.take(rows.present)
    return pairs.take(finite_pairs(pairs))


def _mismatched(
    quality: Quality, held_out: PairEmbeddings | None, config: CurateConfig
) -> tuple[Bool[Tensor, " pairs"], Judgement | None]:
    ranks = quality.scores.rank
    if config.mismatched_share is not None:
        return _places(ranks) <= round(config.mismatched_share * len(ranks)), None
    if held_out is None:
        return torch.zeros_like(ranks, dtype=torch.bool), None
    generator = torch.Generator().manual_seed(config.seed)
    known = held_out_ranks(held_out, quality.negatives, generator=generator)
    judgement = judge(ranks, known, precision=config.precision)
    threshold = torch.inf if judgement.threshold is None else judgement.threshold
    return ranks >= threshold, judgement


def _kept(quality: Quality, labels: list[Label], config: CurateConfig) -> Tensor:
    kept = torch.tensor([label not in config.drop for label in labels])
    if config.keep is not None:
        ranks = _places(quality.excess_loss.where(kept, -torch.inf))
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
        quality.texts,
        labels,
        _places(scores.rank).tolist(),
        _places(quality.excess_loss).tolist(),
        repeats.tolist(),
        torch.cat([scores.similarity, scores.loss, scores.rank[:, None]], dim=1).tolist(),
    )
    rows = []
    for sample_id, texts, label, *ranks, repeated, numbers in zip(*columns, strict=True):
        shard, row = manifest.locate(sample_id)
        place = (sample_id, Path(manifest.shards[shard].url).name, row, *texts)
        rounded = (round(number, 6) for number in numbers)
        rows.append((*place, label, *ranks, repeated if repeated >= 0 else None, *rounded))
    return rows


def _places(values: Tensor) -> Int64[Tensor, " pairs"]:
    """Places in the order of falling values, from 1."""
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
    return (
        import_optional("pyarrow", user="parquet files", extra="tables"),
        import_optional("pyarrow.parquet", user="parquet files", extra="tables"),
    )


def run_curate(config: CurateConfig) -> str:
    """Rank the pairs of a data set, and leave some out of its manifest on request."""
    found = curate(config)
    summary = found.summary
    lines = [f"{found.table}: {in_brackets(summary.labels).strip(' ()')}"]
    if found.gallery is not None:
        lines.append(f"look through them by label: {found.gallery.resolve().as_uri()}")
    if summary.not_finite:
        lines.append(
            f"{summary.not_finite:,} pairs are not ranked: their embeddings are not finite"
        )
    if config.mismatched_share is None:
        lines.append(str(summary.judgement or f"No caption is called mismatched. {NO_HELD_OUT}"))
    if found.manifest is None:
        lines.append("No manifest was written; --drop or --keep leave pairs out of one.")
    else:
        lines.append(
            f"{found.manifest}: {summary.kept:,} of {summary.pairs:,} pairs kept; train on it with "
            f"--data {found.manifest}"
        )
    return "\n".join(lines)
