"""Protocol of the estimators of the data set's risk, and their result."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from drrho.risk import RiskMeasure


class ExcessLosses(NamedTuple):
    """Excess losses of a batch, of all processes, detached.

    Attributes:
        excess: the target's losses minus the reference's.
        base_measure: mask or sample weights; zero drops the sample, whatever its loss.
        index: the samples' ids, or None where the caller gave none.
    """

    excess: Float[Tensor, " n"]
    base_measure: Shaped[Tensor, " n"]
    index: Int64[Tensor, " n"] | None = None


class Estimate(NamedTuple):
    """Estimate of the data set's risk from one batch.

    Attributes:
        value: the objective, in units of loss.
        weights: factors of the gradients of the samples' losses. They sum to one on average over
            batches; `BatchEstimator`'s do so in every batch.
        dual: the risk's dual variable; see `drrho.risk.Risk`.
    """

    value: Float64[Tensor, ""]
    weights: Float64[Tensor, " n"]
    dual: Float64[Tensor, ""] | None


@runtime_checkable
class Estimator(Protocol):
    """Estimator of the data set's risk: excess losses of a mini-batch to gradient weights.

    The risk of a data set is no mean over samples, so a mini-batch's risk is a biased estimate of
    it. Estimators differ in what they remember to lower the bias. An estimator is a module, what it
    remembers are buffers, and a call, once per optimiser step, changes them.
    """

    def check(self, risk: RiskMeasure) -> None:
        """Raise ValueError unless this estimator can estimate the risk."""
        ...

    def __call__(self, risk: RiskMeasure, batch: ExcessLosses) -> Estimate:
        """Estimate the risk of the data set from one batch, and update the state."""
        ...
