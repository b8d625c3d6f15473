"""FastCLIP and DRRho-CLIP: each anchor's sum is averaged over the batches it has been in."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from drrho.contrastive.exact import log_anchor_losses
from drrho.contrastive.memory.sample_table import SampleBatch, SampleTable
from drrho.contrastive.memory.temperature import (
    DEFAULT_TEMPERATURE,
    AnyTemperatureOrFloat,
    Learned,
    Tau,
    as_tau,
    as_temperature,
    require_temperature,
)
from drrho.contrastive.objectives.distillation import DistillationTerm, count_teachers
from drrho.contrastive.pairs import PairEmbeddings, check_unit_length, pair_partition
from drrho.contrastive.tiles.implementation import (
    Implementation,
    check_implementation,
    log_gap_means,
)
from drrho.runtime.checks import require_at_least, require_choice, require_positive, require_share
from drrho.runtime.distributed import Partition, ProcessGroup

GammaSchedule = Literal["cosine", "constant"]
Directions = Literal["both", "first"]


def recommended_gamma_min(epochs: float) -> float:
    """`min(1, 4.177 E^-0.7265)`: the longer a run, the longer its averages.

    Source: docs/mathematics.md, "Per-sample estimators".
    """
    require_positive(epochs=epochs)
    return min(1.0, 4.177 * epochs**-0.7265)


@dataclass(frozen=True, kw_only=True)
class GlobalRisk:
    """Fields of the objectives that average each anchor's sum over batches.

    Attributes:
        temperature: `Constant` (a float will do), `Learned` or `PerSample`.
        epsilon: floor of the sums; as published.
        rho: radius of the ambiguity set in nats; given exactly if the temperature is learned,
            since without it the temperature would grow for ever.
        gamma_min: final weight of the newest batch in the per-sample averages; None means
            `recommended_gamma_min` of the run's epochs, 1 means no averaging.
        gamma_schedule: "cosine" falls from 1 to gamma_min, "constant" is gamma_min throughout.
        gamma_decay_epochs: epochs over which the cosine falls; None means half of the run.
        times_temperature: whether the logarithm of each anchor's sum is multiplied by its
            temperature, as in the risk. Without it the model's gradient of an anchor is
            weighted by 1 / tau, and a temperature that is learned for all anchors follows the
            gradient of the logarithms alone, without rho.
        distillation: teachers' probabilities, imitated as well; None leaves them out.
    """

    method: ClassVar[str]
    has_averages: ClassVar = True
    temperature: AnyTemperatureOrFloat = DEFAULT_TEMPERATURE
    epsilon: float = 1e-14
    rho: float | None = None
    gamma_min: float | None = None
    gamma_schedule: GammaSchedule = "cosine"
    gamma_decay_epochs: float | None = None
    times_temperature: bool = True
    distillation: DistillationTerm | None = None
    num_teachers = property(count_teachers)

    def __post_init__(self):
        as_temperature(self)
        require_positive(**{"objective.epsilon": self.epsilon})
        require_at_least(0, **{"objective.rho": self.rho})
        if self.rho is not None and not self.temperature.learned:
            raise ValueError(
                f"objective.rho = {self.rho} only acts through a learned temperature; take "
                "Learned or PerSample as objective.temperature, or leave rho out"
            )
        if not self.times_temperature and isinstance(self.temperature, Learned):
            if self.rho is not None:
                raise ValueError(
                    f"objective.rho = {self.rho} has no effect without times_temperature: a "
                    "temperature of all anchors follows the logarithms alone; leave one of them out"
                )
        elif self.rho is None and self.temperature.learned:
            raise ValueError(
                f"method {self.method!r} with a temperature that is learned "
                f"({self.temperature.kind}) needs objective.rho: without it every step raises the "
                "temperature. FastCLIP was published with 6.5 to 11; it must be below "
                "log(batch size - 1) to be reached"
            )
        require_share(**{"objective.gamma_min": self.gamma_min})
        require_choice("objective.gamma_schedule", self.gamma_schedule, GammaSchedule)
        require_positive(**{"objective.gamma_decay_epochs": self.gamma_decay_epochs})
        if self.gamma_decay_epochs is not None and (
            self.gamma_schedule == "constant" or self.gamma_min == 1
        ):
            raise ValueError(
                f"objective.gamma_decay_epochs = {self.gamma_decay_epochs} has no effect with "
                "gamma_schedule = 'constant' or gamma_min = 1; leave it out"
            )
        if self.gamma_schedule == "constant" and self.gamma_min is None:
            raise ValueError(
                "objective.gamma_schedule = 'constant' needs objective.gamma_min, which it is"
            )

    def final_gamma(self, *, epochs: float) -> float:
        """Return where gamma ends in a run of so many epochs."""
        return recommended_gamma_min(epochs) if self.gamma_min is None else self.gamma_min

    def decay_share(self, *, epochs: float) -> float | None:
        """Return the part of a run of so many epochs in which gamma falls; None is the half."""
        return None if self.gamma_decay_epochs is None else self.gamma_decay_epochs / epochs


@dataclass(frozen=True, kw_only=True)
class FastCLIP(GlobalRisk):
    """FastCLIP's objective: the global contrastive risk, in units of cosine similarity.

    Source: docs/mathematics.md, "Per-sample estimators"; Wei et al., arXiv 2407.01445.
    """

    method: ClassVar = "fastclip"
    needs_reference: ClassVar = False


@dataclass(frozen=True, kw_only=True)
class DRRhoCLIP(GlobalRisk):
    """DRRho-CLIP's objective: the global contrastive risk on the excess over a reference.

    Attributes:
        reference_scale: factor of the reference's similarities. With tau / tau_ref the reference
            enters as its own logits, R / tau_ref.

    Source: docs/mathematics.md, "DRRho-CLIP"; arXiv 2505.06699.
    """

    method: ClassVar = "drrho_clip"
    needs_reference: ClassVar = True
    epsilon: float = 1e-4
    reference_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require_positive(**{"objective.reference_scale": self.reference_scale})


class AnchorAverages(nn.Module):
    """A moving average `U` per data-set sample and direction, kept as logarithms.

        U_i <- (1 - gamma) U_i + gamma (epsilon + g_i);   first visit: U_i = epsilon + g_i

    A batch of B shows an anchor B - 1 of its negatives; the average over visits estimates
    the sum over all of them. U is at least epsilon, so that minus infinity, the logarithm of
    the average of nothing, says that a sample has not been visited. `SampleTable` has the
    arguments.
    """

    def __init__(self, num_samples: int, *, group: ProcessGroup | None = None):
        super().__init__()
        self.log_u = SampleTable(num_samples, initial=-math.inf, group=group)

    def update(
        self,
        sample_ids: Int[Tensor, " batch"] | SampleBatch,
        log_losses: Float[Tensor, "2 batch"],
        gamma: float,
    ) -> Float[Tensor, "2 batch"]:
        """Average in the batch's `log(epsilon + g)`; returns the new log U of its samples.

        To be called once per optimiser step, by every process with its own pairs. A sample that
        comes m times in the batches of all processes together counts as one visit, with the mean
        of its m values of `epsilon + g`.

        Raises:
            ValueError: gamma outside (0, 1].
            IndexError: as `SampleTable.locate`.
        """
        require_share(gamma=gamma)

        def average(before: Tensor, values: Tensor) -> Tensor:
            if gamma == 1:
                return values
            mixed = (before + math.log1p(-gamma)).logaddexp(values + math.log(gamma))
            return mixed.where(before > -math.inf, values)

        return self.log_u.update(sample_ids, log_losses, average, of_logarithms=True)


class GlobalContrastiveLoss(nn.Module):
    """The DRRho-CLIP loss (with reference) or FastCLIP's (without), estimated per sample.

        F ~ 1/(2B) sum_i [tau (rho + log U1_i) + tau (rho + log U2_i)]
        dF = dtau (rho + mean log U) + tau/(2B) sum_i [ d g1_i / U1_i + d g2_i / U2_i ]

    U, after its update, is a constant of the gradient. With gamma = 1 U is the batch's own
    value and this is `global_contrastive_risk`, gradient included.

    Without `times_temperature` it is FastCLIP's loss without its factor tau,

        F ~ 1/(2B) sum_i [log U1_i + log U2_i],   dF = 1/(2B) sum_i [d g1_i / U1_i + d g2_i / U2_i]

    in which a temperature of all anchors takes part. A temperature for each anchor keeps the
    gradient that it has with the factor, with rho; only the model's gradient changes.

    On K processes the batch consists of all their pairs, and every process returns its F. The
    gradients have to be averaged over the processes, as DistributedDataParallel does; then they
    are F's.

    Args:
        num_samples: size of the data set; the state is two floats per sample. None has no memory:
            gamma is 1.
        epsilon: floor of the sums (published: 1e-4 with a reference, 1e-14 without); None is
            1 / (B - 1), the positive's own term, with which it is CLIP's loss less log(B - 1).
        rho: radius in nats; has an effect only where the temperature is learned.
        times_temperature: whether the logarithms are multiplied by the temperature.
        directions: whose losses are averaged: "both", or only the "first", with images as anchors.
        group, impl: as for `ContrastiveObjective`.

    Source: docs/mathematics.md, "Per-sample estimators".
    """

    def __init__(  # noqa: PLR0913 - one for each thing that the loss is of
        self,
        num_samples: int | None,
        *,
        epsilon: float | None,
        rho: float = 0.0,
        times_temperature: bool = True,
        directions: Directions = "both",
        group: ProcessGroup | None = None,
        impl: Implementation = "auto",
    ):
        super().__init__()
        check_implementation(impl)
        require_positive(epsilon=epsilon)
        require_at_least(0, rho=rho)
        require_choice("directions", directions, Directions)
        self.averages = None if num_samples is None else AnchorAverages(num_samples, group=group)
        self.epsilon = epsilon
        self.rho = rho
        self.times_temperature = times_temperature
        self.directions: Directions = directions
        self.group = group
        self.impl: Implementation = impl

    def forward(
        self,
        target: PairEmbeddings,
        reference: PairEmbeddings | None = None,
        *,
        temperature: Tau,
        sample_ids: Int[Tensor, " batch"] | SampleBatch | None,
        gamma: float,
        pairs: Partition | None = None,
    ) -> Float[Tensor, ""]:
        """Update the averages of `sample_ids`; returns the estimate of F with its gradient.

        Args:
            target, reference, temperature, pairs: as for `tiled_log_gap_means`.
            sample_ids: position of each pair in the data set, (B,), or what `locate` made of it;
                None, with gamma 1, leaves the averages as they are. A sample that comes twice has
                one average, the mean of its sums; with gamma 1 each pair keeps the sum of its own.
            gamma: weight of this batch in the averages, in (0, 1].

        Raises:
            ValueError: gamma outside (0, 1], sample_ids missing for a gamma below 1, or given to a
                loss without memory; a temperature outside (0, 1], or embeddings that have not
                unit length.
            IndexError: as `SampleTable.locate`.
        """
        temperature = as_tau(temperature, target.image)
        for value in temperature.detach().aminmax():
            require_temperature("temperature", value.item())
        check_unit_length("target", target)
        if reference is not None:
            check_unit_length("reference", reference)
        return self.estimate(
            target,
            reference,
            temperature=temperature,
            sample_ids=sample_ids,
            gamma=gamma,
            pairs=pairs,
            of_each_anchor=temperature.shape[1:] > (1,),
        )

    def estimate(  # noqa: PLR0913 - one for each thing that the loss is of
        self,
        target: PairEmbeddings,
        reference: PairEmbeddings | None,
        *,
        temperature: Float[Tensor, "..."],
        sample_ids: Int[Tensor, " batch"] | SampleBatch | None,
        gamma: float,
        pairs: Partition | None,
        of_each_anchor: bool,
    ) -> Float[Tensor, ""]:
        """Compute `forward` of embeddings and temperatures that have been checked.

        Whether a temperature is of each anchor its shape does not tell where a process has one
        pair.
        """
        pairs = pair_partition(target, group=self.group) if pairs is None else pairs
        if isinstance(sample_ids, Tensor):
            sample_ids = self.locate(sample_ids.to(target.image.device), pairs)
        tau = temperature.detach()
        own_tau = temperature - tau  # 0, with the temperature's gradient
        of_each_anchor = of_each_anchor and not self.times_temperature
        log_means = log_gap_means(
            target,
            reference,
            # The temperature needs the gradient of tau log U; the model has the gradient of log U.
            temperature=tau + tau * own_tau if of_each_anchor else temperature,
            pairs=pairs,
            impl=self.impl,
        )
        epsilon = 1 / (pairs.num_rows - 1) if self.epsilon is None else self.epsilon
        log_losses = log_anchor_losses(log_means, epsilon)
        log_u = self._averaged(sample_ids, log_losses.detach(), gamma)
        ratio = (log_losses.detach() - log_u).exp()  # at most 1 / gamma, but for duplicates
        through_anchors = ratio * (log_losses - log_losses.detach())
        if self.times_temperature:
            losses = temperature * (self.rho + log_u) + tau * through_anchors
        elif of_each_anchor:
            losses = log_u + own_tau * (self.rho + log_u) + through_anchors
        else:
            losses = log_u + through_anchors
        return pairs.mean(losses if self.directions == "both" else losses[:1])

    def locate(self, sample_ids: Int[Tensor, " batch"], pairs: Partition) -> SampleBatch:
        """Find the places of samples in the memory, on the device of the batch; a collective."""
        if self.averages is None:
            raise ValueError("sample_ids have no effect without num_samples; give both or neither")
        return self.averages.log_u.locate(sample_ids, pairs)

    def _averaged(
        self, batch: SampleBatch | None, log_losses: Float[Tensor, "2 batch"], gamma: float
    ) -> Float[Tensor, "2 batch"]:
        if batch is not None and self.averages is not None:
            averaged = self.averages.update(batch, log_losses, gamma)
            # A sample that comes twice has two values of its own, and one average.
            return log_losses if gamma == 1 else averaged
        if gamma != 1:
            raise ValueError(
                f"gamma = {gamma} averages over the batches that a sample has been in, and needs "
                "num_samples and sample_ids; without them gamma is 1"
            )
        return log_losses
