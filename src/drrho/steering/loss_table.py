"""The risk of the whole data set, from the loss of every sample when it was last seen."""

import torch
from jaxtyping import Float, Float32, Float64, Int64, Shaped
from torch import Tensor, nn

from drrho.risk import RiskMeasure
from drrho.runtime.checks import require_at_least
from drrho.steering.base import Estimate, ExcessLosses


class LossTable(nn.Module):
    """A table of excess losses by sample id, over which the risk is solved at every step.

        weight_i = p_i N / B

    with p the adversary on the table's N samples and B the number in the batch. For losses that
    do not change there is no bias, for any risk: over an epoch of uniform batches the gradients
    average to the full data set's. While the model moves, an entry is as old as its last visit,
    half an epoch on average, and samples not seen yet are left out. Weights sum to one on average
    only.

    A call costs the risk of `num_samples` losses and waits for the device, to check the ids; memory
    is 8 bytes a sample, on every process. Ids that occur twice in a batch leave their mean.

    Args:
        num_samples: size of the data set; ids are in [0, num_samples).
    """

    losses: Float32[Tensor, " samples"]
    measure: Float32[Tensor, " samples"]

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        require_at_least(1, num_samples=num_samples)
        self.register_buffer("losses", torch.zeros(num_samples))
        # The samples' weights; zero where a sample has not been seen.
        self.register_buffer("measure", torch.zeros(num_samples))

    def check(self, risk: RiskMeasure) -> None:
        """Accept every risk: each is defined on a table."""

    def forward(self, risk: RiskMeasure, batch: ExcessLosses) -> Estimate:
        excess, base_measure, index = batch
        if index is None:
            raise ValueError("LossTable needs the samples' ids: pass index= to the loss")
        base_measure = base_measure.double()
        outside = (base_measure > 0) & ((index < 0) | (index >= len(self.losses)))
        if outside.any():
            raise IndexError(
                f"ids must be in [0, {len(self.losses)}), the table's num_samples; got "
                f"{int(index[outside][0])}"
            )
        self._remember(excess, base_measure, index)
        value, p, dual = risk(self.losses.double(), base_measure=self.measure)
        used = base_measure > 0
        num_seen, num_used = (self.measure > 0).sum(), used.sum().clamp_min(1)
        weights = torch.where(used, p[torch.where(used, index, 0)] * num_seen / num_used, 0.0)
        return Estimate(value, weights, dual)

    def _remember(
        self,
        excess: Float[Tensor, " n"],
        base_measure: Shaped[Tensor, " n"],
        index: Int64[Tensor, " n"],
    ) -> None:
        # Samples that do not count go behind the end, so nothing waits to select the others.
        place = torch.where(base_measure > 0, index, len(self.losses))

        def summed(values: Float64[Tensor, " n"]) -> Float64[Tensor, " samples"]:
            empty = values.new_zeros(len(self.losses) + 1)
            return empty.index_add(0, place, values)[:-1]

        visits = summed(torch.ones_like(base_measure))
        for column, news in ((self.losses, excess), (self.measure, base_measure)):
            mean = summed(news.double()) / visits.clamp_min(1)
            column.copy_(torch.where(visits > 0, mean.to(column.dtype), column))
