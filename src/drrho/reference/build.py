"""Commands on stored references: precompute, verify, summarise losses."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from tyro.conf import Positional

from drrho.data.indexing import open_manifest, open_manifest_together
from drrho.data.manifest import Manifest
from drrho.data.views import View, Views
from drrho.encoding.encoder import EmbeddingModel, Precision
from drrho.models.build import Model, build_model, find_model
from drrho.models.program import trusting
from drrho.models.seen import training_data_of
from drrho.plotting.table import in_brackets, markdown_table
from drrho.reference.judgement import judge_reference
from drrho.reference.losses.summary import summarise_losses
from drrho.reference.precompute import PrecomputeReport, precompute_views
from drrho.reference.reader import open_reference, view_folder
from drrho.reference.store import REFERENCE_CARDS
from drrho.reference.verify import Verification, verify
from drrho.runtime.distributed import Processes
from drrho.runtime.files import expand_paths
from drrho.runtime.launch import Device, require_shared, resolve_device, together
from drrho.runtime.locks import exclusive


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """Store a reference model's embeddings of every pair, one file per shard; restartable.

    Attributes:
        data: data set: a manifest, or what `drrho index` takes.
        model: reference model: an open_clip architecture, local-dir:PATH, hf-hub:OWNER/NAME,
            transformers:PATH, or the folder of a finished run or of a joined model.
        output: folder to write; an interrupted one is completed.
        pretrained: open_clip tag or checkpoint file, where the model is an open_clip architecture.
        precision: floating-point type of the forward pass, bf16 for short; embeddings are stored in
            float16 in any case.
        batch_size: pairs encoded at once.
        workers: worker processes that decode images; 0 decodes in the main process.
        views: number of augmented views of every sample to store, each in a folder of its own, for
            training with loading.views; more can be added later. None stores the unchanged samples.
        views_seed: random seed of the views; None means 0.
        views_scale: smallest and largest share of the image's area in a view; None means 0.9 and 1.
        trust: run the program that the folder of a model names; needed for runs of
            "python:FILE.py".
        views_captions: caption of a view of a sample that has several: the "first" (None), or a
            "random" one for each view.
        device: device to compute on; "auto" takes the GPU if there is one.
    """

    data: str
    model: str
    output: str
    pretrained: str | None = None
    precision: Precision = "float32"
    batch_size: int = 256
    workers: int = 0
    views: int | None = None
    views_seed: int | None = None
    views_scale: tuple[float, float] | None = None
    views_captions: Literal["first", "random"] | None = None
    device: Device = "auto"
    trust: bool = False

    def __post_init__(self):
        expand_paths(self, "data")
        find_model(self.model, pretrained=self.pretrained).require_trained()
        self.chosen_views()

    def chosen_views(self) -> Views | None:
        """Collect the options of the views to store; None without views."""
        fields = {name: getattr(self, f"views_{name}") for name in ("seed", "scale", "captions")}
        given = {name: value for name, value in fields.items() if value is not None}
        if self.views is not None:
            return Views(count=self.views, **given)
        for name, value in given.items():
            raise ValueError(f"views_{name} = {value!r} has no effect without views")
        return None


@dataclass(frozen=True, kw_only=True)
class LossesConfig:
    """Summarise stored losses: number, mean, spread, and correlations between references.

    Attributes:
        folder: folder that `LossWriter` wrote to, with a folder for each reference.
    """

    folder: Positional[str]

    def __post_init__(self) -> None:
        expand_paths(self, "folder", outputs=())


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check stored embeddings: every row, and some samples encoded again.

    Attributes:
        folder: folder of the stored embeddings.
        data: data set that was embedded: a manifest, or what `drrho index` takes.
        model: reference model, as `drrho reference precompute` takes it, to encode samples again;
            None encodes nothing.
        pretrained: open_clip tag or checkpoint file, where the model is an open_clip architecture.
        precision: floating-point type of the forward pass when the embeddings were computed.
        samples: number of samples to encode again.
        seed: random seed of the choice of samples to encode again.
        device: device to compute on; "auto" takes the GPU if there is one.
        trust: run the program that the folder of a model names; needed for runs of
            "python:FILE.py".
    """

    folder: Positional[str]
    data: str
    model: str | None = None
    pretrained: str | None = None
    precision: Precision = "float32"
    samples: int = 64
    seed: int = 0
    device: Device = "auto"
    trust: bool = False

    def __post_init__(self):
        expand_paths(self, "folder", "data", outputs=())
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        if self.model is None and self.pretrained is not None:
            raise ValueError(f"pretrained = {self.pretrained!r} has no effect without model")


def verify_reference(config: VerifyConfig) -> Verification:
    """Build the model, if one is given, and check a store; see `drrho.reference.verify`."""
    folder = Path(config.folder).expanduser()
    if view_folder(folder, 0).exists():
        raise ValueError(
            f"{folder} holds a store for each view; verify them one by one, as "
            f"{view_folder(folder, 0)}"
        )
    encoder = None
    if config.model is not None:
        model = find_model(config.model, pretrained=config.pretrained)
        with trusting(everything=config.trust):
            encoder = _encoder(model, config.precision, resolve_device(config.device))
        encoder.view = View.of_identity(REFERENCE_CARDS.load(folder).model)
    return verify(
        folder,
        open_manifest(config.data),
        encoder=encoder,
        num_encoded=config.samples,
        generator=torch.Generator().manual_seed(config.seed),
    )


def precompute_reference(config: PrecomputeConfig) -> PrecomputeReport:
    """Build the model and store its embeddings; see `drrho.reference.precompute`.

    Under torchrun or `srun` all processes call this and share out the shards.
    """
    with together(config.device, config) as (processes, device):
        manifest = open_manifest_together(config.data, processes)
        processes.require_same(data=manifest.contents_sha256)
        require_shared(Path(config.output), processes)
        with exclusive(Path(config.output)) if processes.is_first else nullcontext():
            model = find_model(config.model, pretrained=config.pretrained)
            with trusting(everything=config.trust):
                encoder = _encoder(model, config.precision, device)
            encoder.trained_on = training_data_of(model)
            report = _precomputed(config, encoder, manifest, processes)
            stored = open_reference(config.output, manifest, views=config.chosen_views())
            return replace(report, judgement=judge_reference(stored, manifest))


def _precomputed(
    config: PrecomputeConfig, encoder: EmbeddingModel, manifest: Manifest, processes: Processes
) -> PrecomputeReport:
    """Store every view and add up the reports."""
    views, folder = config.chosen_views(), Path(config.output)
    folders: dict[View | None, Path] = {None: folder}
    if views is not None:
        if REFERENCE_CARDS.exists(folder):
            raise ValueError(
                f"{folder} holds embeddings of samples as they are; choose another folder"
            )
        folders = {views.view(k): view_folder(folder, k) for k in range(views.count)}
    reports = precompute_views(
        encoder,
        manifest,
        folders,
        batch_size=config.batch_size,
        workers=config.workers,
        processes=processes,
    )
    return PrecomputeReport(
        num_samples=sum(report.num_samples for report in reports),
        absent=dict(sum((Counter(report.absent) for report in reports), Counter())),
        shards_found=sum(report.shards_found for report in reports),
    )


def _encoder(model: Model, precision: Precision, device: torch.device) -> EmbeddingModel:
    """Build the reference model, frozen, on its device."""
    model.require_trained()
    return EmbeddingModel.frozen(build_model(model, seed=0), precision=precision, device=device)


def run_precompute(config: PrecomputeConfig) -> str:
    """Store a reference model's embeddings of a data set."""
    report = precompute_reference(config)
    counts = f"{config.output}: {report}; {report.shards_found} shards were there already"
    return counts if report.judgement is None else f"{counts}\n{report.judgement}"


def run_verify(config: VerifyConfig) -> str:
    """Check stored embeddings, and encode some samples again; faults are an error."""
    found = verify_reference(config)
    if found.faults:
        raise ValueError(f"{config.folder} is not in order:\n  " + "\n  ".join(found.faults))
    stored = f"{found.num_stored:,} of {found.num_samples:,} samples{in_brackets(found.absent)}"
    lines = [f"{config.folder}: embeddings of {stored}; all rows are finite and of unit length"]
    if not found.has_checksums:
        lines.append(
            "its files are of version 1, without checksums: small damage is not noticed. A store "
            "that is written anew has them"
        )
    if found.lowest is not None and found.mean is not None:
        sides = zip(("image", "text"), found.lowest, found.mean, strict=True)
        rows = [[name, f"{lowest:.6f}", f"{mean:.6f}"] for name, lowest, mean in sides]
        table = markdown_table([f"cosine of {found.num_encoded}", "lowest", "mean"], rows)
        lines += ["", table]
    return "\n".join(lines)


def run_losses(config: LossesConfig) -> str:
    """Summarise stored losses, and correlate the losses of different references."""
    summaries, correlations = summarise_losses(config.folder)
    header = ["reference", "identity", "samples", "missing", "losses", "of a", "not finite"]
    rows = [
        [
            *(found.reference, found.identity, f"{found.num_samples:,}", f"{found.num_missing:,}"),
            *(f"{found.num_losses:,}", found.unit, f"{found.num_nonfinite:,}"),
            *(f"{found.mean:.4f}", f"{found.standard_deviation:.4f}"),
        ]
        for found in summaries
    ]
    table = markdown_table([*header, "mean", "standard deviation"], rows)
    if not correlations:
        return table
    rows = [
        [" and ".join(pair.references), f"{pair.num_samples:,}", f"{pair.correlation:.4f}"]
        for pair in correlations
    ]
    return f"{table}\n\n{markdown_table(['losses of', 'common samples', 'correlation'], rows)}"
