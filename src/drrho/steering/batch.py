"""Estimators that remember nothing: the batch's own risk, and multi-level Monte Carlo."""

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from drrho.risk import RiskMeasure
from drrho.runtime.checks import require_at_least
from drrho.steering.base import Estimate, ExcessLosses


class BatchEstimator(nn.Module):
    """The risk of the batch itself.

    Exact for a batch that is the data set. Otherwise biased downward, by the order of 1/B
    (docs/mathematics.md, "Batch bias"): a maximum over few samples is smaller. Where gradients grow
    with the losses, its variance is the smallest of all estimators. With KL weights, B must be much
    larger than n / ESS of the data set: of so few samples one takes all the weight.
    """

    def check(self, risk: RiskMeasure) -> None:
        """Accept every risk: each is defined on a batch."""

    def forward(self, risk: RiskMeasure, batch: ExcessLosses) -> Estimate:
        value, weights, dual = risk(batch.excess, base_measure=batch.base_measure)
        dual = None if dual is None else dual.double()
        return Estimate(value.detach().double(), weights.double(), dual)


class MultiLevelMonteCarlo(nn.Module):
    """The risk of a batch of `smallest * 2^levels`, without bias, from batches mostly smaller.

    With F_k the mean risk of blocks of k samples and J the level that was drawn,

        estimate = F_smallest + (F_n - F_{n/2}) / P(J),    n = smallest 2^J

    whose expectation telescopes to the expectation of F at the largest size: the bias equals the
    batch estimator's at `smallest * 2^levels` samples, for an expected cost of
    `smallest * (levels + 1)`. The price is variance: the correction is divided by P(J), which
    halves with every level, and single weights may be negative.

    The level is drawn before the samples: take batches of `draw_size(generator)` samples,
    samples that a mask drops included. If it drops a whole block, the block has no risk, and its
    share of the weights is missing.

    Args:
        smallest: samples in the smallest blocks.
        levels: doublings of the largest batch, at least 1.

    Source: Levy, Carmon, Duchi and Sidford, "Large-scale methods for distributionally robust
        optimization", 2020, section 4; here F_smallest is the mean over all blocks of the batch
        where the paper takes one.
    """

    def __init__(self, *, smallest: int, levels: int) -> None:
        super().__init__()
        require_at_least(1, smallest=smallest, levels=levels)
        self.smallest = smallest
        self.levels = levels

    def check(self, risk: RiskMeasure) -> None:
        """Accept every risk: each is defined on a batch."""

    def probability(self, level: int) -> float:
        """Return the probability of a level: 1/2, 1/4, ..., and for the last what is left."""
        return 2.0 ** -min(level, self.levels - 1) if self.levels > 1 else 1.0

    def draw_size(self, generator: torch.Generator) -> int:
        """Draw the number of samples of the next batch, over all processes together.

        In a distributed run, draw it from the same seed on each process.
        """
        uniform = torch.rand((), generator=generator, device=generator.device).item()
        level = 1
        while level < self.levels and uniform < 0.5:
            uniform, level = 2 * uniform, level + 1
        return self.smallest * 2**level

    def forward(self, risk: RiskMeasure, batch: ExcessLosses) -> Estimate:
        correction = 1 / self.probability(self._level(len(batch.excess)))
        # As sample weights: that a ball is too large for a small block is no reason to warn.
        excess, base_measure = batch.excess.double(), batch.base_measure.double()

        def mean_over_blocks(size: int) -> tuple[Float64[Tensor, ""], Float64[Tensor, " n"]]:
            blocks = risk(excess.view(-1, size), base_measure=base_measure.view(-1, size))
            return blocks.value.mean(), blocks.weights.flatten() / len(blocks.value)

        base, base_weights = mean_over_blocks(self.smallest)
        half, half_weights = mean_over_blocks(len(excess) // 2)
        whole = risk(excess, base_measure=base_measure)
        value = base + correction * (whole.value - half)
        weights = base_weights + correction * (whole.weights - half_weights)
        return Estimate(value, weights, whole.dual)

    def _level(self, size: int) -> int:
        sizes = [self.smallest * 2**level for level in range(1, self.levels + 1)]
        if size not in sizes:
            raise ValueError(
                f"multi-level Monte Carlo needs batches of {', '.join(map(str, sizes))} samples, "
                f"drawn by its draw_size; got {size}"
            )
        return sizes.index(size) + 1
