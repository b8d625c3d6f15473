"""Import of embeddings that another program stored: `drrho reference import`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import CascadeSubcommandArgs, OmitArgPrefixes, configure, subcommand

from drrho.data.indexing import open_manifest
from drrho.reference.formats.clip_retrieval import ClipRetrieval
from drrho.reference.formats.datacomp import DataComp
from drrho.reference.formats.drrho_clip import DRRhoClip
from drrho.reference.formats.importing import import_embeddings
from drrho.reference.formats.members import Members
from drrho.reference.precompute import PrecomputeReport
from drrho.runtime.files import expand_paths
from drrho.runtime.locks import exclusive

# A new format is a module with a dataclass of its options, and a line here.
Format = (
    Annotated[DataComp, subcommand("datacomp", prefix_name=False)]
    | Annotated[ClipRetrieval, subcommand("clip-retrieval", prefix_name=False)]
    | Annotated[Members, subcommand("members", prefix_name=False)]
    | Annotated[DRRhoClip, subcommand("drrho-clip", prefix_name=False)]
)


@configure(CascadeSubcommandArgs, OmitArgPrefixes)
@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Convert embeddings that another program stored; samples are matched by key.

    Attributes:
        format: program that stored the embeddings.
        data: data set: a manifest, or what `drrho index` takes.
        output: folder to write.
        model: name of the model that computed the embeddings, recorded as the reference's identity.
    """

    format: Format
    data: str
    output: str
    model: str

    def __post_init__(self) -> None:
        expand_paths(self, "data")


def import_reference(config: ImportConfig) -> PrecomputeReport:
    """Open the source and write the store; see `drrho.reference.formats.importing`."""
    manifest = open_manifest(config.data)
    with exclusive(Path(config.output)):
        source = config.format.open(manifest)
        return import_embeddings(source, manifest, config.output, model=config.model)


def run_import(config: ImportConfig) -> str:
    """Convert embeddings that another program stored."""
    return f"{config.output}: {import_reference(config)}"
