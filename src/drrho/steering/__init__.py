"""The DRRho loss: the data set's risk, estimated from mini-batches and differentiated."""

from drrho.steering.accumulation import accumulate_gradients
from drrho.steering.base import Estimate, Estimator, ExcessLosses
from drrho.steering.batch import BatchEstimator, MultiLevelMonteCarlo
from drrho.steering.learned_dual import LearnedDual
from drrho.steering.loss import DRRhoLoss, Losses, SteeredLoss
from drrho.steering.loss_table import LossTable
from drrho.steering.moving_average import AdaptiveRate, MovingAverage
from drrho.steering.tokens import TokenLosses, token_losses

__all__ = [
    "AdaptiveRate",
    "BatchEstimator",
    "DRRhoLoss",
    "Estimate",
    "Estimator",
    "ExcessLosses",
    "LearnedDual",
    "LossTable",
    "Losses",
    "MovingAverage",
    "MultiLevelMonteCarlo",
    "SteeredLoss",
    "TokenLosses",
    "accumulate_gradients",
    "token_losses",
]
