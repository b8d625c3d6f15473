"""Naming what another program stored -> a store that training reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from drrho.data.indexing import open_manifest
from drrho.data.manifest import Manifest
from drrho.plotting.table import in_brackets
from drrho.reference.formats.clip_retrieval import ClipRetrievalSource
from drrho.reference.formats.datacomp import DataCompSource, Variant
from drrho.reference.formats.drrho_clip import DRRhoClipSource
from drrho.reference.formats.importing import import_embeddings
from drrho.reference.formats.members import MemberRows, MembersSource
from drrho.reference.formats.source import Source
from drrho.reference.precompute import PrecomputeReport
from drrho.runtime.files import exclusive

Format = Literal["datacomp", "clip-retrieval", "members", "drrho-clip"]
# Options that one format has, and no other.
OWN_OPTIONS = {
    "variant": {"datacomp"},
    "key_field": {"clip-retrieval", "members"},
    "image_row": {"members"},
    "text_row": {"members"},
    "samples_per_file": {"drrho-clip"},
}


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Convert embeddings that another program stored; samples are matched by key.

    Attributes:
        format: format of the source: "datacomp" (metadata with npz), "clip-retrieval" (its output
            folder), "members" (KEY.npz in tar files, as DataCompDR), "drrho-clip" (the published
            code's .pt files).
        source: folder of the stored embeddings; for "members" the tar files.
        data: data set: a manifest, or what `drrho index` takes.
        output: folder to write.
        model: name of the model that computed the embeddings, recorded as the reference's identity.
        variant: CLIP model of the "datacomp" format: "b32" or "l14".
        key_field: field of the samples' json to match by, instead of their keys.
        image_row: row of the image embeddings to take in the "members" format, an augmentation
            each; by default the first.
        text_row: row of the text embeddings to take in the "members" format, a caption each; by
            default the first, the real one.
        samples_per_file: samples in a file of the "drrho-clip" format, its --num_samples_per_shard;
            by default 10,000.
    """

    format: Positional[Format]
    source: Positional[str]
    data: str
    output: str
    model: str
    variant: Variant | None = None
    key_field: str | None = None
    image_row: int | None = None
    text_row: int | None = None
    samples_per_file: int | None = None

    def __post_init__(self):
        for name, formats in OWN_OPTIONS.items():
            if getattr(self, name) is not None and self.format not in formats:
                raise ValueError(f"{name} has no effect on format {self.format!r}; leave it out")
        if self.format == "datacomp" and self.variant is None:
            raise ValueError("format 'datacomp' has two models; say --variant b32 or --variant l14")


def import_reference(config: ImportConfig) -> PrecomputeReport:
    """Opens the source and writes the store; see `drrho.reference.formats.importing`."""
    manifest = open_manifest(config.data)
    with exclusive(Path(config.output)):
        return import_embeddings(
            _open(config, manifest), manifest, config.output, model=config.model
        )


def _open(config: ImportConfig, manifest: Manifest) -> Source:
    folder = Path(config.source).expanduser()
    match config.format:
        case "datacomp":
            assert config.variant is not None
            return DataCompSource.open(folder, variant=config.variant)
        case "clip-retrieval":
            return ClipRetrievalSource.open(folder, key_field=config.key_field)
        case "members":
            rows = MemberRows(image=config.image_row or 0, text=config.text_row or 0)
            return MembersSource.open(
                config.source, manifest, rows=rows, key_field=config.key_field
            )
        case "drrho-clip":
            return DRRhoClipSource.open(folder, samples_per_file=config.samples_per_file or 10_000)


def run_import(config: ImportConfig) -> str:
    """Convert embeddings that another program stored."""
    report = import_reference(config)
    return (
        f"{config.output}: embeddings of {report.num_encoded:,} of {report.num_samples:,} samples"
        f"{in_brackets(report.absent)}"
    )
