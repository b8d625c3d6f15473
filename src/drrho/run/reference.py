"""Naming a reference model -> its stored embeddings of a data set; naming losses -> a summary."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from tyro.conf import Positional

from drrho.files import exclusive
from drrho.models.build import ModelConfig, build_model
from drrho.reference.encoder import Precision, ReferenceEncoder
from drrho.reference.precompute import PrecomputeReport, precompute
from drrho.run.processes import open_manifest_together, together
from drrho.run.recipe import Device


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """Store a reference model's embeddings of every pair, one file per shard; restartable.

    Attributes:
        data: a manifest, or what `drrho index` takes.
        model: an open_clip architecture, local-dir:PATH, hf-hub:OWNER/NAME, or run:PATH, the
            model of a finished run.
        output: folder to write; an interrupted one is completed.
        pretrained: open_clip tag or checkpoint file of an architecture.
        precision: of the forward pass; embeddings are stored in float16 in any case.
        batch_size: pairs encoded at once.
        workers: processes that decode.
        device: where to compute.
    """

    data: str
    model: str
    output: str
    pretrained: str | None = None
    precision: Precision = "float32"
    batch_size: int = 256
    workers: int = 0
    device: Device = "auto"

    def __post_init__(self):
        self._model.require_trained()

    @property
    def _model(self) -> ModelConfig:
        return ModelConfig(name=self.model, pretrained=self.pretrained)

    def encoder(self, device: torch.device) -> ReferenceEncoder:
        """The reference model, frozen, on its device."""
        return ReferenceEncoder(
            build_model(self._model, seed=0), precision=self.precision, device=device
        )


@dataclass(frozen=True, kw_only=True)
class LossesConfig:
    """Summarise the stored losses of references: how many, mean and spread, correlations.

    Attributes:
        folder: what `LossWriter` wrote to, with a folder for each reference.
    """

    folder: Positional[str]


def precompute_reference(config: PrecomputeConfig) -> PrecomputeReport:
    """Builds the model and stores its embeddings; see `drrho.reference.precompute`.

    Under torchrun or `srun` all processes call this and share out the shards.
    """
    with together(config.device) as (processes, device):
        manifest = open_manifest_together(config.data, processes)
        with exclusive(Path(config.output)) if processes.is_first else nullcontext():
            return precompute(
                config.encoder(device),
                manifest,
                Path(config.output),
                batch_size=config.batch_size,
                workers=config.workers,
                processes=processes,
            )
