"""DRRho-CLIP with memory: each anchor's sum is averaged over the batches it has been in."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drrho.contrastive.risk import PairEmbeddings, log_anchor_losses
from drrho.contrastive.tiles import tiled_log_gap_means


class AnchorAverages(nn.Module):
    """A moving average `U` per data-set sample and direction, kept as logarithms.

        U_i <- (1 - gamma) U_i + gamma (epsilon + g_i);   first visit: U_i = epsilon + g_i

    A batch of B shows an anchor B - 1 of its negatives; the average over visits estimates
    the sum over all of them. The state lives in buffers, so checkpoint and resume are
    those of any module.

    Args:
        num_samples: size of the data set; sample ids run from 0 to num_samples - 1.
    """

    log_u: Tensor
    seen: Tensor

    def __init__(self, num_samples: int):
        super().__init__()
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.register_buffer("log_u", torch.zeros(2, num_samples))
        self.register_buffer("seen", torch.zeros(num_samples, dtype=torch.bool))

    @torch.no_grad()
    def update(
        self,
        sample_ids: Int[Tensor, " batch"],
        log_losses: Float[Tensor, "2 batch"],
        gamma: float,
    ) -> Float[Tensor, "2 batch"]:
        """Averages in the batch's `log(epsilon + g)`; returns the new log U of its samples.

        To be called once per optimiser step. The ids of a batch must differ from each
        other: with a repeated id one of its updates is kept, unspecified which.

        Raises:
            ValueError: gamma outside (0, 1].
            IndexError: a sample id outside the data set (on CPU; a device assertion on GPU).
        """
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {gamma}")
        averaged = log_losses
        if gamma < 1:
            before = self.log_u[:, sample_ids].to(log_losses.dtype)
            mixed = torch.logaddexp(before + math.log1p(-gamma), log_losses + math.log(gamma))
            averaged = torch.where(self.seen[sample_ids], mixed, log_losses)
        self.log_u[:, sample_ids] = averaged.to(self.log_u.dtype)
        self.seen[sample_ids] = True
        return averaged


class GlobalContrastiveLoss(nn.Module):
    """The DRRho-CLIP loss (with reference) or FastCLIP's (without), estimated per sample.

        F ~ tau (rho + 1/(2B) sum_i [log U1_i + log U2_i])
        dF = dtau (rho + mean log U) + tau/(2B) sum_i [ d g1_i / U1_i + d g2_i / U2_i ]

    U, after its update, is a constant of the gradient. With gamma = 1 U is the batch's own
    value and this is `global_contrastive_risk`, gradient included.

    Args:
        num_samples: size of the data set; the state is two floats and a flag per sample.
        epsilon: floor of the sums (published: 1e-4 with a reference, 1e-14 without).
        rho: radius in nats; has an effect only where the temperature is learned.

    Source: docs/mathematics.md, "Per-sample estimators".
    """

    def __init__(self, num_samples: int, *, epsilon: float, rho: float = 0.0):
        super().__init__()
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {epsilon}")
        if not rho >= 0:
            raise ValueError(f"rho must be at least 0, got {rho}")
        self.averages = AnchorAverages(num_samples)
        self.epsilon = epsilon
        self.rho = rho

    def forward(
        self,
        target: PairEmbeddings,
        reference: PairEmbeddings | None = None,
        *,
        temperature: Float[Tensor, ""],
        sample_ids: Int[Tensor, " batch"],
        gamma: float,
    ) -> Float[Tensor, ""]:
        """Updates the averages of `sample_ids`; returns the estimate of F with its gradient.

        Args:
            target: unit embeddings (B, d) of the model in training, any float type.
            reference: unit embeddings (B, d_ref) of the same pairs by the reference.
            temperature: tau, a positive scalar, constant or learned.
            sample_ids: position of each pair in the data set, (B,).
            gamma: weight of this batch in the averages, in (0, 1].
        """
        log_means = tiled_log_gap_means(target, reference, temperature=temperature)
        log_losses = log_anchor_losses(log_means, self.epsilon)
        log_u = self.averages.update(sample_ids, log_losses.detach(), gamma)
        ratio = (log_losses.detach() - log_u).exp()  # at most 1 / gamma
        through_anchors = (ratio * (log_losses - log_losses.detach())).mean()
        return temperature * (self.rho + log_u.mean()) + temperature.detach() * through_anchors
