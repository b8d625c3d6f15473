"""A contrastive objective with all that it remembers: one module for every one of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drrho.contrastive.diagnostics import contrastive_diagnostics
from drrho.contrastive.exact import clip_anchor_losses
from drrho.contrastive.memory.sample_table import SampleBatch
from drrho.contrastive.memory.temperature import (
    Learned,
    PerSample,
    SampleTemperatures,
    Temperature,
    warn_if_unreachable,
)
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import (
    Distillation,
    Teacher,
    distillation_anchor_losses,
    tiled_distillation_anchor_losses,
)
from drrho.contrastive.objectives.gist import GIST, gist_anchor_losses
from drrho.contrastive.objectives.global_risk import (
    DRRhoCLIP,
    FastCLIP,
    GlobalContrastiveLoss,
    GlobalRisk,
)
from drrho.contrastive.objectives.siglip import (
    SigLIP,
    siglip_anchor_losses,
    tiled_siglip_anchor_losses,
)
from drrho.contrastive.pairs import PairEmbeddings, check_unit_length, pair_partition
from drrho.contrastive.tiles.implementation import (
    Implementation,
    as_tiling,
    check_implementation,
    check_processes,
    log_gap_means,
)
from drrho.contrastive.tiles.strip import wide_dtype
from drrho.contrastive.tiles.tiling import Tiling
from drrho.runtime.distributed import Partition, ProcessGroup

Objective = CLIP | SigLIP | FastCLIP | DRRhoCLIP | GIST | Distillation


class ObjectiveValue(NamedTuple):
    """A differentiable loss and, on request, the metrics that explain it."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]


def check_passes(tiling: Tiling, config: Objective) -> None:
    """Raise ValueError where joint passes have no teachers to take along."""
    if tiling.passes == "joint" and config.num_teachers == 0:
        raise ValueError(
            f"tiling.passes = 'joint' has no effect on objective.method = {config.method!r}, which "
            "imitates no teachers; leave it out"
        )


class ContrastiveObjective(nn.Module):
    """An objective with temperature, bias and per-sample averages.

    On K processes the batch consists of all their pairs, and every process returns the same loss.
    Gradients of the model have to be averaged over processes, as DistributedDataParallel does;
    gradients of temperature and bias are averaged here. Do not wrap this module: that would
    overwrite every process's share of the per-sample state with the first one's.

    Args:
        config: what is minimised.
        num_samples: size of the data set, for what is remembered per sample; None remembers no
            averages.
        group: whose pairs belong together; None is the default group, or this process alone
            without one.
        impl: of the sums over negatives: "exact" is plain code with B x B matrices, in one process;
            "tiles", which is what "auto" means, works everywhere, and a `Tiling` says how much
            memory they may take and, of a distillation, by which passes they are computed;
            "triton", kernels for a GPU that have only ever run in Triton's interpreter, is not for
            SigLIP and GIST.
    """

    def __init__(
        self,
        config: Objective,
        *,
        num_samples: int | None,
        group: ProcessGroup | None = None,
        impl: Implementation = "auto",
    ):
        super().__init__()
        check_implementation(impl)
        if impl == "triton" and isinstance(config, SigLIP | GIST):
            name = type(config).__name__
            raise ValueError(f"impl='triton' has no kernels for {name}; take impl='tiles'")
        check_passes(as_tiling(impl), config)
        self.config = config
        self.group = group
        self.impl: Implementation = impl
        tau = config.temperature
        if isinstance(tau, PerSample):
            if num_samples is None:
                raise ValueError(
                    "a temperature of each sample needs num_samples, the size of the data set"
                )
            self.temperature = SampleTemperatures(tau, num_samples=num_samples, group=group)
        else:
            self.temperature = Temperature(tau)
        self.bias, self.estimator = None, None
        if isinstance(config, SigLIP):
            self.bias = nn.Parameter(torch.tensor(config.initial_bias))
        if isinstance(config, GlobalRisk):
            self.estimator = GlobalContrastiveLoss(
                num_samples,
                epsilon=config.epsilon,
                rho=config.rho or 0.0,
                times_temperature=config.times_temperature,
                group=group,
                impl=impl,
            )
        self._checked_radius = self._checked_lengths = False

    def forward(
        self,
        target: PairEmbeddings,
        reference: PairEmbeddings | None = None,
        *,
        sample_ids: Int[Tensor, " batch"] | None = None,
        gamma: float = 1.0,
        teachers: Sequence[PairEmbeddings] = (),
        diagnose: bool = False,
    ) -> ObjectiveValue:
        """Compute the loss of one batch; updates what is remembered of its samples.

        Args:
            target: unit embeddings (B, d) of the model in training; of this process's pairs, as
                all that follows.
            reference: the reference's embeddings, for `DRRhoCLIP`; the guide's for `GIST`; None for
                the others. A row of zeros is a pair without them, which keeps its plain loss.
            sample_ids: position of each pair in the data set; None where nothing is remembered of
                them: with gamma 1 and one temperature for all.
            gamma: weight of this batch in the averages of `FastCLIP` and `DRRhoCLIP`, in (0, 1].
            teachers: embeddings by the models whose probabilities are imitated, as many as the
                config has temperatures of teachers. A reference may be one of them.
            diagnose: also compute `contrastive_diagnostics`.

        Raises:
            ValueError: reference, teachers or sample_ids are missing, or have no effect on the
                objective; or embeddings have not unit length.
        """
        self._require_models(reference, teachers)
        self._check_lengths(target, reference, teachers)
        pairs = pair_partition(target, group=self.group)
        check_processes(self.impl, pairs)
        self._check_radius(pairs)
        reference = self._scaled(reference, target)
        batch = None
        if sample_ids is not None and self.estimator is not None:
            batch = self.estimator.locate(sample_ids.to(target.image.device), pairs)
        if isinstance(self.temperature, SampleTemperatures):
            if batch is None:
                raise ValueError("a temperature of each sample needs sample_ids")
            tau = self.temperature(batch, dtype=wide_dtype(target.image))
        else:
            tau = pairs.average_grad(self.temperature())
        loss = self._loss(target, reference, tau=tau, batch=batch, gamma=gamma, pairs=pairs)
        if teachers:
            distilled = self._distilled(target, teachers, tau=tau, pairs=pairs)
            loss = distilled if loss is None else loss + distilled
        assert loss is not None
        if not diagnose:
            return ObjectiveValue(loss, {})
        return ObjectiveValue(loss, self._metrics(target, reference, tau.detach(), pairs))

    def _loss(
        self,
        target: PairEmbeddings,
        reference: PairEmbeddings | None,
        *,
        tau: Tensor,
        batch: SampleBatch | None,
        gamma: float,
        pairs: Partition,
    ) -> Tensor | None:
        """Compute the objective's loss without distillation; None where that is all."""
        if self.bias is not None:
            bias = pairs.average_grad(self.bias)
            if self.impl == "exact":
                losses = siglip_anchor_losses(target, temperature=tau, bias=bias)
            else:
                losses = tiled_siglip_anchor_losses(
                    target, temperature=tau, bias=bias, pairs=pairs, tiling=as_tiling(self.impl)
                )
            return pairs.mean(losses)
        if self.estimator is not None:
            return self.estimator.estimate(
                target,
                reference,
                temperature=tau,
                sample_ids=batch,
                gamma=gamma,
                pairs=pairs,
                of_each_anchor=isinstance(self.temperature, SampleTemperatures),
            )
        if isinstance(self.config, Distillation):
            return None
        if isinstance(self.config, GIST):
            assert reference is not None
            in_blocks = self.impl != "exact"
            losses = gist_anchor_losses(
                target, reference, self.config, temperature=tau, pairs=pairs, in_blocks=in_blocks
            )
            return pairs.mean(losses)
        log_means = log_gap_means(target, temperature=tau, pairs=pairs, impl=self.impl)
        return pairs.mean(clip_anchor_losses(log_means, num_pairs=pairs.num_rows))

    def _distilled(
        self,
        target: PairEmbeddings,
        teachers: Sequence[PairEmbeddings],
        *,
        tau: Tensor,
        pairs: Partition,
    ) -> Tensor:
        config = self.config.distillation
        assert config is not None
        frozen = [Teacher(*t) for t in zip(teachers, config.teacher_temperatures, strict=True)]
        if self.impl == "exact":
            losses = distillation_anchor_losses(target, frozen, temperature=tau)
        else:
            losses = tiled_distillation_anchor_losses(
                target, frozen, temperature=tau, pairs=pairs, impl=self.impl
            )
        weight: float | Tensor = config.weight
        if self.estimator is not None and self.estimator.times_temperature:
            weight = weight * tau.detach()
        return pairs.mean(weight * losses)

    def _scaled(
        self, reference: PairEmbeddings | None, target: PairEmbeddings
    ) -> PairEmbeddings | None:
        """Multiply the reference's similarities by `reference_scale`."""
        scale = self.config.reference_scale if isinstance(self.config, DRRhoCLIP) else 1
        if reference is None or scale == 1:
            return reference
        return PairEmbeddings(scale * reference.image.to(wide_dtype(target.image)), reference.text)

    def _metrics(
        self,
        target: PairEmbeddings,
        reference: PairEmbeddings | None,
        tau: Tensor,
        pairs: Partition,
    ) -> dict[str, Tensor]:
        floor = None if self.estimator is None else self.estimator.epsilon
        epsilon = 1 / (pairs.num_rows - 1) if floor is None else floor
        metrics = contrastive_diagnostics(
            target, reference, temperature=tau, epsilon=epsilon, pairs=pairs
        )
        match self.config.temperature:
            case Learned(per_direction=True):
                return metrics | {"temperature_image": tau[0, 0], "temperature_text": tau[1, 0]}
            case PerSample():
                mean = pairs.mean(tau)
                deviation = pairs.mean((tau - mean).square()).sqrt()
                return metrics | {"temperature": mean, "temperature_deviation": deviation}
            case _:
                return metrics | {"temperature": tau}

    def _require_models(
        self, reference: PairEmbeddings | None, teachers: Sequence[PairEmbeddings]
    ) -> None:
        if self.config.needs_reference != (reference is not None):
            raise ValueError(
                "DRRhoCLIP needs reference embeddings, GIST a guide's, and the other "
                "objectives take none; "
                f"got {'none' if reference is None else 'some'} for {self.config.method!r}"
            )
        if len(teachers) != self.config.num_teachers:
            raise ValueError(
                f"the objective has temperatures of {self.config.num_teachers} teachers, "
                f"got embeddings of {len(teachers)}"
            )

    def _check_lengths(
        self,
        target: PairEmbeddings,
        reference: PairEmbeddings | None,
        teachers: Sequence[PairEmbeddings],
    ) -> None:
        """Look at the lengths of embeddings: on a GPU, which is waited for, at the first's only."""
        if torch.compiler.is_compiling() or (self._checked_lengths and target.image.is_cuda):
            return
        check_unit_length("target", target)
        if reference is not None:
            check_unit_length("reference", reference, or_absent=True)
        for number, teacher in enumerate(teachers):
            check_unit_length(f"teacher {number}", teacher)
        self._checked_lengths = True

    def _check_radius(self, pairs: Partition) -> None:
        if self._checked_radius:
            return
        self._checked_radius = True
        if isinstance(self.config, GlobalRisk) and self.config.rho is not None:
            warn_if_unreachable(self.config.rho, num_pairs=pairs.num_rows)
