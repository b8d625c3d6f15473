"""DRRho-CLIP with memory: each anchor's sum is averaged over the batches it has been in."""

import math

from jaxtyping import Float, Int
from torch import Tensor, nn

from drrho.contrastive.exact import log_anchor_losses
from drrho.contrastive.memory.sample_table import SampleBatch, SampleTable
from drrho.contrastive.pairs import PairEmbeddings, pair_partition
from drrho.contrastive.tiles.implementation import (
    Implementation,
    check_implementation,
    log_gap_means,
)
from drrho.runtime.distributed import ProcessGroup


class AnchorAverages(nn.Module):
    """A moving average `U` per data-set sample and direction, kept as logarithms.

        U_i <- (1 - gamma) U_i + gamma (epsilon + g_i);   first visit: U_i = epsilon + g_i

    A batch of B shows an anchor B - 1 of its negatives; the average over visits estimates
    the sum over all of them. U is at least epsilon, so that minus infinity, the logarithm of
    the average of nothing, says that a sample has not been visited.

    Args:
        num_samples: size of the data set; sample ids run from 0 to num_samples - 1.
        group: whose processes share the averages, see `SampleTable`.
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
        """Averages in the batch's `log(epsilon + g)`; returns the new log U of its samples.

        To be called once per optimiser step, by every process with its own pairs. A sample that
        comes m times in the batches of all processes together counts as one visit, with the mean
        of its m values of `epsilon + g`.

        Raises:
            ValueError: gamma outside (0, 1].
            IndexError: a sample id outside the data set (of ids on a GPU, with one process, a
                device assertion).
        """
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {gamma}")

        def average(before: Tensor, arriving: Tensor) -> Tensor:
            if gamma == 1:
                return arriving
            mixed = (before + math.log1p(-gamma)).logaddexp(arriving + math.log(gamma))
            return mixed.where(before > -math.inf, arriving)

        return self.log_u.update(sample_ids, log_losses, average, of_logarithms=True)


class GlobalContrastiveLoss(nn.Module):
    """The DRRho-CLIP loss (with reference) or FastCLIP's (without), estimated per sample.

        F ~ 1/(2B) sum_i [tau (rho + log U1_i) + tau (rho + log U2_i)]
        dF = dtau (rho + mean log U) + tau/(2B) sum_i [ d g1_i / U1_i + d g2_i / U2_i ]

    U, after its update, is a constant of the gradient. With gamma = 1 U is the batch's own
    value and this is `global_contrastive_risk`, gradient included.

    On K processes the batch is that of all, and every process returns its F. The gradients have
    to be averaged over the processes, as DistributedDataParallel does; then they are F's.

    Args:
        num_samples: size of the data set; the state is two floats per sample.
        epsilon: floor of the sums (published: 1e-4 with a reference, 1e-14 without).
        rho: radius in nats; has an effect only where the temperature is learned.
        group: whose pairs and averages belong together; None is the default group, or this
            process alone without one.
        impl: of the sums over negatives, see `drrho.contrastive.tiles.implementation`.

    Source: docs/mathematics.md, "Per-sample estimators".
    """

    def __init__(
        self,
        num_samples: int,
        *,
        epsilon: float,
        rho: float = 0.0,
        group: ProcessGroup | None = None,
        impl: Implementation = "auto",
    ):
        super().__init__()
        check_implementation(impl)
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {epsilon}")
        if not rho >= 0:
            raise ValueError(f"rho must be at least 0, got {rho}")
        self.averages = AnchorAverages(num_samples, group=group)
        self.epsilon = epsilon
        self.rho = rho
        self.group = group
        self.impl: Implementation = impl

    def forward(
        self,
        target: PairEmbeddings,
        reference: PairEmbeddings | None = None,
        *,
        temperature: Float[Tensor, "..."],
        sample_ids: Int[Tensor, " batch"] | SampleBatch,
        gamma: float,
    ) -> Float[Tensor, ""]:
        """Updates the averages of `sample_ids`; returns the estimate of F with its gradient.

        Args:
            target: unit embeddings (B, d) of the model in training, any float type; of this
                process's pairs, as all that follows.
            reference: unit embeddings (B, d_ref) of the same pairs by the reference.
            temperature: tau, positive, constant or learned; a scalar, or of a shape that expands
                to (2, B): one for each anchor.
            sample_ids: position of each pair in the data set, (B,); or what `locate` of a
                `SampleTable` made of it.
            gamma: weight of this batch in the averages, in (0, 1].
        """
        if isinstance(sample_ids, Tensor):
            sample_ids = self.averages.log_u.locate(
                sample_ids.to(target.image.device), pair_partition(target, group=self.group)
            )
        pairs = sample_ids.pairs
        log_means = log_gap_means(
            target, reference, temperature=temperature, pairs=pairs, impl=self.impl
        )
        log_losses = log_anchor_losses(log_means, self.epsilon)
        log_u = self.averages.update(sample_ids, log_losses.detach(), gamma)
        ratio = (log_losses.detach() - log_u).exp()  # at most 1 / gamma, but for duplicates
        through_anchors = ratio * (log_losses - log_losses.detach())
        losses = temperature * (self.rho + log_u) + temperature.detach() * through_anchors
        return pairs.mean(losses)
