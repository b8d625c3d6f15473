"""Selection in training: a super-batch is embedded, and a part of it is trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from drrho.contrastive.memory.temperature import Learned, PerSample, Temperature
from drrho.contrastive.objectives.objective import ContrastiveObjective, Objective
from drrho.contrastive.objectives.siglip import SigLIP
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.selection.jest import JestConfig, Score, select_jointly
from drrho.contrastive.selection.rho import RhoConfig, select_by_excess
from drrho.contrastive.selection.super_batch import Kind, Loss, ModelPairs
from drrho.runtime.randomness import derived_seed

NUM_CHUNKS = {"contrastive": 16, "published": 2}  # of the JEST paper; of DRRho-CLIP's code


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Selection of the batch from a super-batch of `loading.batch_size` pairs.

    Attributes:
        batch_size: pairs of a super-batch to train on; as published, a fifth of it.
        num_chunks: number of draws that make up a batch of JEST; None means 16, or 2 with the
            published score, and at most one for each pair of a batch.
        selection: rule of selection: "sample" is JEST, "top_k" JEST top-k; "rho_top_k" takes the
            pairs with the largest scores in the super-batch, which is its CVaR.
        score: score of JEST for a softmax loss: "contrastive", the loss in a batch with the pairs
            drawn before, or "published", computed and drawn as by the code of the papers.
        kind: what a score is made of: "excess", learner minus reference (learnability); "loss", the
            learner's; "irreducible", the reference's alone.
        reference_temperature: temperature that the reference was trained with, in units of cosine
            similarity (1 / logit_scale); for all kinds but "loss".
        reference_bias: bias of the reference; only where the method is "siglip".
    """

    batch_size: int
    num_chunks: int | None = None
    selection: Literal["sample", "top_k", "rho_top_k"] = "sample"
    score: Score = "contrastive"
    kind: Kind = "excess"
    reference_temperature: float | None = None
    reference_bias: float | None = None

    def __post_init__(self):
        if self.selection == "rho_top_k" and self.num_chunks is not None:
            raise ValueError(
                f"selection.num_chunks = {self.num_chunks} has no effect on selection "
                "'rho_top_k', which selects at once; leave it out"
            )
        if self.selection == "rho_top_k" and self.score == "published":
            raise ValueError(
                "selection.score = 'published' has no effect on selection 'rho_top_k', whose score "
                "is the excess loss; leave it out"
            )
        for name, value in (
            ("reference_temperature", self.reference_temperature),
            ("reference_bias", self.reference_bias),
        ):
            if value is not None and not self.needs_reference:
                raise ValueError(f"selection.{name} = {value} has no effect on kind 'loss'")
        if self.needs_reference and self.reference_temperature is None:
            raise ValueError(
                f"selection.kind = {self.kind!r} needs selection.reference_temperature, the one "
                "that the reference was trained with (a CLIP's is 1 / logit_scale)"
            )

    @property
    def needs_reference(self) -> bool:
        return self.kind != "loss"

    def draw(self, objective: Objective) -> JestConfig | RhoConfig:
        """Build the configuration of the selection for this objective.

        Raises:
            ValueError: the objective has no single temperature, or numbers do not fit.
        """
        tau = objective.temperature
        if isinstance(tau, PerSample) or (isinstance(tau, Learned) and tau.per_direction):
            raise ValueError(
                f"objective.temperature = {tau} does not fit selection, which scores all pairs at "
                "one temperature; take Constant or Learned, the same for both directions"
            )
        loss: Loss = "sigmoid" if isinstance(objective, SigLIP) else "softmax"
        if self.selection == "rho_top_k":
            return RhoConfig(batch_size=self.batch_size, kind=self.kind, loss=loss)
        return JestConfig(
            batch_size=self.batch_size,
            num_chunks=(
                min(NUM_CHUNKS[self.score], self.batch_size)
                if self.num_chunks is None
                else self.num_chunks
            ),
            selection=self.selection,
            score=self.score,
            kind=self.kind,
            loss=loss,
        )


@dataclass(frozen=True, kw_only=True)
class Selector:
    """Selector of the pairs of a super-batch to train on."""

    config: Selection
    module: nn.Module
    loss: ContrastiveObjective
    seed: int

    @torch.no_grad()
    def __call__(
        self,
        embed: Callable[[], PairEmbeddings],
        reference: PairEmbeddings | None,
        *,
        step: int,
    ) -> torch.Tensor:
        """Select rows of the super-batch, in ascending order.

        Args:
            embed: function that embeds the super-batch by the target; called in evaluation mode,
                so that scoring moves no batch statistics.
            reference: embeddings of the super-batch by the reference.
            step: steps already taken; with the seed it decides what is drawn.
        """
        temperature, bias = self.loss.temperature, self.loss.bias
        assert isinstance(temperature, Temperature)
        learner = None
        if self.config.kind != "irreducible":
            training = self.module.training
            self.module.eval()
            try:
                learner = ModelPairs(embed(), temperature(), bias)
            finally:
                self.module.train(training)
        seen = None
        if reference is not None and self.config.needs_reference:
            assert self.config.reference_temperature is not None
            seen = ModelPairs(
                reference, self.config.reference_temperature, self.config.reference_bias
            )
        config = self.config.draw(self.loss.config)
        if isinstance(config, RhoConfig):
            return select_by_excess(learner, seen, config=config).own
        generator = torch.Generator(temperature().device)
        generator.manual_seed(derived_seed("selection", self.seed, step))
        return select_jointly(learner, seen, config=config, generator=generator).own
