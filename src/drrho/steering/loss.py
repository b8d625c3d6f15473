"""The DRRho loss for any training loop: losses of a mini-batch in, a loss to differentiate out."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor, nn

from drrho.risk import RiskMeasure, effective_sample_size, excess_loss
from drrho.risk.samples import normalised
from drrho.runtime.checks import require_choice
from drrho.runtime.distributed import Partition, ProcessGroup, partition
from drrho.steering.base import Estimate, Estimator, ExcessLosses
from drrho.steering.batch import BatchEstimator

OfNonfinite = Literal["raise", "drop"]
OfMissing = Literal["raise", "drop", "plain"]
POSITIONS_SHOWN = 8


class Losses(NamedTuple):
    """Losses of a mini-batch or micro-batch, with their reference losses, mask, ids and weights.

    All have one shape, (batch,), (batch, tokens) or another: every element is a sample.

    Attributes:
        losses: the target model's; any floating type.
        reference_losses: the reference model's on the same samples, NaN where missing. None is
            no reference: ordinary distributionally robust optimisation.
        mask: True where a sample counts. The others, such as padding, may hold anything.
        index: ids of the samples, for estimators that remember by sample.
        sample_weight: the base measure, not negative; only ratios matter. None: all alike.
    """

    losses: Float[Tensor, "*shape"]
    reference_losses: Float[Tensor, "*shape"] | None = None
    mask: Bool[Tensor, "*shape"] | None = None
    index: Int64[Tensor, "*shape"] | None = None
    sample_weight: Shaped[Tensor, "*shape"] | None = None


class SteeredLoss(NamedTuple):
    """Objective of a batch and numbers to log. Only `loss` carries a gradient.

    Numbers are for the whole batch: all processes and all micro-batches together.

    Attributes:
        loss: the objective, in units of loss (of a micro-batch: its equal share). Its gradient,
            averaged over the processes as DistributedDataParallel and FSDP do, is the sum of
            weights times the gradients of the losses.
        weights: factors of the samples' gradients, in the shape of the losses; zero if unused.
        effective_sample_size: of the weights, in samples; without meaning for multi-level Monte
            Carlo, some of whose weights are negative.
        dual: the risk's dual variable (see `drrho.risk.Risk`), as the estimator sees it.
        weight_sum: sum of all weights, by the estimator one or about one on average. Far from it,
            the estimator does not keep up with the losses.
        num_used: samples in the risk.
        num_missing_reference: samples whose reference loss is NaN.
        num_nonfinite: samples dropped because a loss is not finite, or a weight negative or not
            finite.
    """

    loss: Float[Tensor, ""]
    weights: Float[Tensor, "*shape"]
    effective_sample_size: Float64[Tensor, ""]
    dual: Float64[Tensor, ""] | None
    weight_sum: Float64[Tensor, ""]
    num_used: Int64[Tensor, ""]
    num_missing_reference: Int64[Tensor, ""]
    num_nonfinite: Int64[Tensor, ""]


class Weighed(NamedTuple):
    """Micro-batch whose weights are known; `steer` makes its loss."""

    summary: SteeredLoss  # its loss is without a gradient
    gradient_scale: int  # number of processes, over which gradients will be averaged

    def steer(self, losses: Float[Tensor, "*shape"]) -> SteeredLoss:
        """Make the loss to differentiate, from the losses that were weighed, with their graph."""
        weights = self.summary.weights
        if losses.shape != weights.shape:
            raise ValueError(
                f"losses have shape {tuple(losses.shape)}, but those that were weighed had "
                f"{tuple(weights.shape)}"
            )
        # Where the weight is zero a loss may be infinite, and infinity minus itself is NaN.
        counted = torch.where(weights != 0, losses.to(weights.dtype), 0.0)
        gradient = self.gradient_scale * (weights * (counted - counted.detach())).sum()
        return self.summary._replace(loss=self.summary.loss + gradient)


class DRRhoLoss(nn.Module):
    """The DRRho risk of a data set, estimated and differentiated batch by batch.

        loss = DRRhoLoss(KL(temperature=1.0), MovingAverage(rate=0.1))
        result = loss(losses, reference_losses)     # one of each for every sample
        result.loss.backward()

    The excess losses of all processes are gathered (a few floats a sample), every process finds
    the same weights, and each differentiates its own samples' losses. So K processes do what one
    would do with the concatenated batch, whatever the sizes of their shares, zero included.

    One call is one step of the optimiser: it updates the estimator, once. For a batch in several
    micro-batches see `drrho.steering.accumulation.accumulate_gradients`. What is remembered is in
    `state_dict()`; save and load it with the model, and move it to the losses' device. It computes
    in float64: on a device without (Apple's MPS), keep it on the CPU and pass `losses.cpu()`.

    Args:
        risk: one of `drrho.risk`.
        estimator: estimator of the data set's risk from batches; None is `BatchEstimator()`.
        process_group: the processes whose batches belong together, which all make each call. None
            is the default group, or this process alone without one.
        nonfinite: "raise" stops on all processes at a loss that is not finite, and waits for the
            device to see it; "drop" leaves such samples out and counts them.
        missing: treatment of samples whose reference loss is NaN. "raise" and "drop" as above.
            "plain" counts their plain loss with their share of the base measure; among excess
            losses a raw loss would look like the hardest sample of all.

    Raises:
        ValueError: the estimator cannot estimate this risk, or an option is unknown.
        TypeError: `risk` is no risk.

    Source: Wei et al., "Model steering: learning with a reference model improves generalization
        bounds and scaling laws", 2025 (arXiv 2505.06699); docs/mathematics.md, "Estimators".
    """

    def __init__(
        self,
        risk: RiskMeasure,
        estimator: Estimator | None = None,
        *,
        process_group: ProcessGroup | None = None,
        nonfinite: OfNonfinite = "raise",
        missing: OfMissing = "raise",
    ) -> None:
        super().__init__()
        if isinstance(risk, type) or not callable(risk):
            raise TypeError(f"risk must be a risk such as CVaR(fraction=0.25), got {risk!r}")
        require_choice("nonfinite", nonfinite, OfNonfinite)
        require_choice("missing", missing, OfMissing)
        self.estimator = BatchEstimator() if estimator is None else estimator
        self.estimator.check(risk)
        self.risk = risk
        self.process_group = process_group
        self.nonfinite = nonfinite
        self.missing = missing

    def forward(
        self,
        losses: Float[Tensor, "*shape"],
        reference_losses: Float[Tensor, "*shape"] | None = None,
        mask: Bool[Tensor, "*shape"] | None = None,
        index: Int64[Tensor, "*shape"] | None = None,
        *,
        sample_weight: Shaped[Tensor, "*shape"] | None = None,
    ) -> SteeredLoss:
        """Compute the loss of one batch; the arguments are as in `Losses`.

        Raises:
            ValueError: shapes differ, there is a loss that may not be there (with its places), or
                the estimator needs `index`.
            TypeError: `losses` is not floating point.
            IndexError: an id is outside of the estimator's table.
        """
        batch = Losses(losses, reference_losses, mask, index, sample_weight)
        return self.weigh([batch])[0].steer(losses)

    @torch.no_grad()
    def weigh(self, micro_batches: Sequence[Losses]) -> list[Weighed]:
        """Weigh the samples of several micro-batches as one batch; updates the estimator once.

        Their losses add up to the objective. Processes may have different numbers of them.
        """
        if not micro_batches:
            raise ValueError(
                "there are no micro-batches to weigh; a process without samples has empty ones"
            )
        self._check_state()
        table = torch.cat([_table(micro_batch) for micro_batch in micro_batches])
        processes = partition(len(table), group=self.process_group, device=table.device)
        table = processes.all_gather(table)
        # What one process was given, all were; where there are others, it has to be looked at.
        has_index = [part.index is not None for part in micro_batches]
        is_weighted = any(part.sample_weight is not None for part in micro_batches)
        if processes.num_processes > 1:
            has_index = table[:, -1].isfinite().unique().tolist()
            is_weighted = bool(table[:, -2].any())
        if len(set(has_index)) > 1:
            raise ValueError("some micro-batches or processes have an index and some have none")
        samples = _Samples.of(table, has_index=all(has_index))
        self._refuse(samples, processes)
        estimate = self._estimate(samples, is_weighted=is_weighted)
        weights = estimate.weights
        whole = SteeredLoss(
            loss=estimate.value / len(micro_batches),
            weights=weights,
            effective_sample_size=effective_sample_size(weights),
            dual=estimate.dual,
            weight_sum=weights.sum(),
            num_used=samples.used.sum(),
            num_missing_reference=samples.missing.sum(),
            num_nonfinite=samples.nonfinite.sum(),
        )
        parts = processes.own(weights).split([part.losses.numel() for part in micro_batches])
        return [
            Weighed(_of_part(whole, part, micro_batch.losses), processes.num_processes)
            for micro_batch, part in zip(micro_batches, parts, strict=True)
        ]

    def _check_state(self) -> None:
        """Raise ValueError where `model.to(torch.bfloat16)` has rounded the state of the loss."""
        for name, buffer in self.named_buffers():
            if buffer.is_floating_point() and buffer.itemsize < 4:
                raise ValueError(
                    f"the state {name} of the loss is {buffer.dtype}, too coarse to average in; "
                    "move the loss to a device but not to half precision"
                )

    def _estimate(self, samples: "_Samples", *, is_weighted: bool) -> Estimate:
        excess = torch.where(samples.used, samples.excess, 0.0)
        # As a mask where it is one: risks then know how far a ball can reach, and warn.
        measure = torch.where(samples.used, samples.measure, 0.0) if is_weighted else samples.used
        estimate = self.estimator(self.risk, ExcessLosses(excess, measure, samples.index))
        if self.missing != "plain":
            return estimate
        counted = samples.used | samples.missing
        plain = normalised(torch.where(counted, samples.measure, 0.0)) * samples.missing
        steered = 1 - plain.sum()
        return estimate._replace(
            value=steered * estimate.value + (plain * samples.plain_losses).sum(),
            weights=steered * estimate.weights + plain,
        )

    def _refuse(self, samples: "_Samples", processes: Partition) -> None:
        """Raise the same error on every process for bad samples of any, so that none waits."""
        findings = []
        if self.missing == "raise":
            findings.append(("reference_losses are NaN (missing)", samples.missing, "missing"))
        if self.nonfinite == "raise":
            what = "losses or reference_losses are not finite, or sample_weight is no weight,"
            findings.append((what, samples.nonfinite, "nonfinite"))
        sentences = [
            f'{what} at {_places(found, processes)}: mend or mask them, or pass {option}="drop" to '
            "leave them out and count them"
            for what, found, option in findings
            if found.any()
        ]
        if sentences:
            raise ValueError("; ".join(sentences))


class _Samples(NamedTuple):
    """Samples of all processes in order, each of one of four kinds: used, missing its reference,
    not finite, or masked.
    """

    excess: Float64[Tensor, " n"]
    plain_losses: Float64[Tensor, " n"]
    measure: Float64[Tensor, " n"]
    index: Int64[Tensor, " n"] | None
    used: Bool[Tensor, " n"]
    missing: Bool[Tensor, " n"]
    nonfinite: Bool[Tensor, " n"]

    @classmethod
    def of(cls, table: Float64[Tensor, "n 6"], *, has_index: bool) -> "_Samples":
        """Read the samples from the gathered rows of `_table`."""
        losses, reference, excess, measure, _, index = table.unbind(dim=1)
        counts = measure != 0
        is_weight = (measure > 0) & measure.isfinite()
        missing = is_weight & losses.isfinite() & reference.isnan()
        used = is_weight & excess.isfinite()
        return cls(
            excess=excess,
            plain_losses=torch.where(missing, losses, 0.0),
            measure=measure,
            index=index.long() if has_index else None,
            used=used,
            missing=missing,
            nonfinite=counts & ~used & ~missing,
        )


def _table(batch: Losses) -> Float64[Tensor, "n 6"]:
    """Put everything about each sample into a row, so that one collective gathers it.

    float64 holds float32 losses and ids up to 2^53 exactly; an id that was not given is NaN.
    """
    losses = batch.losses.detach()
    if not losses.is_floating_point():
        raise TypeError(f"losses must be floating point, got {losses.dtype}")
    if losses.ndim == 0:
        raise ValueError(
            "losses is one number, a mean, which cannot be steered; pass the loss of every sample, "
            'as loss functions give it with reduction="none"'
        )
    for name, other in batch._asdict().items():
        if other is not None and other.shape != losses.shape:
            raise ValueError(
                f"{name} has shape {tuple(other.shape)}, losses have {tuple(losses.shape)}; both "
                "need one element for each sample"
            )
    reference = batch.reference_losses
    excess = losses if reference is None else excess_loss(losses, reference)
    measure = torch.ones_like(losses, dtype=torch.float64)
    if batch.sample_weight is not None:
        measure = batch.sample_weight.to(torch.float64)
    if batch.mask is not None:
        measure = torch.where(batch.mask, measure, 0.0)
    columns = [
        losses,
        torch.zeros_like(losses) if reference is None else reference,
        excess,
        measure,
        torch.full_like(losses, batch.sample_weight is not None),
        torch.full_like(losses, math.nan) if batch.index is None else batch.index,
    ]
    return torch.stack([column.to(torch.float64).flatten() for column in columns], dim=1)


def _of_part(
    whole: SteeredLoss, weights: Float64[Tensor, " part"], losses: Float[Tensor, "*shape"]
) -> SteeredLoss:
    """Cut the result of one micro-batch out of the whole, in its shape and precision."""
    dtype = torch.promote_types(losses.dtype, torch.float32)
    return whole._replace(loss=whole.loss.to(dtype), weights=weights.to(dtype).view(losses.shape))


def _places(found: Bool[Tensor, " n"], processes: Partition) -> str:
    """Describe where samples were found, as positions in the flattened losses of each process."""
    places = []
    for rank, part in enumerate(found.split(processes.sizes)):
        positions = part.nonzero().squeeze(-1).tolist()
        if positions:
            shown = ", ".join(map(str, positions[:POSITIONS_SHOWN]))
            more = ", ..." if len(positions) > POSITIONS_SHOWN else ""
            process = f" of process {rank}" if processes.num_processes > 1 else ""
            places.append(f"{len(positions)} of {len(part)} samples{process}: {shown}{more}")
    return "; ".join(places)
