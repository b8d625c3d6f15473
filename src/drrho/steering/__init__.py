"""The DRRho loss: the data set's risk, estimated from mini-batches and differentiated."""

from drrho.steering.accumulation import accumulate_gradients as accumulate_gradients
from drrho.steering.base import Estimate as Estimate
from drrho.steering.base import Estimator as Estimator
from drrho.steering.base import ExcessLosses as ExcessLosses
from drrho.steering.batch import BatchEstimator as BatchEstimator
from drrho.steering.batch import MultiLevelMonteCarlo as MultiLevelMonteCarlo
from drrho.steering.learned_dual import LearnedDual as LearnedDual
from drrho.steering.loss import DRRhoLoss as DRRhoLoss
from drrho.steering.loss import Losses as Losses
from drrho.steering.loss import SteeredLoss as SteeredLoss
from drrho.steering.loss_table import LossTable as LossTable
from drrho.steering.moving_average import AdaptiveRate as AdaptiveRate
from drrho.steering.moving_average import MovingAverage as MovingAverage
from drrho.steering.tokens import TokenLosses as TokenLosses
from drrho.steering.tokens import token_losses as token_losses
