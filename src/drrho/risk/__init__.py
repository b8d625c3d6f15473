"""Risks of losses, with the distributions that attain them, and the excess loss."""

from drrho.risk.base import Risk as Risk
from drrho.risk.base import RiskMeasure as RiskMeasure
from drrho.risk.base import effective_sample_size as effective_sample_size
from drrho.risk.base import kl_divergence as kl_divergence
from drrho.risk.chi_square import ChiSquare as ChiSquare
from drrho.risk.chi_square import ChiSquareBall as ChiSquareBall
from drrho.risk.cvar import CVaR as CVaR
from drrho.risk.excess import excess_loss as excess_loss
from drrho.risk.kl import KL as KL
from drrho.risk.kl_ball import KLBall as KLBall
from drrho.risk.kl_cvar import KLCVaR as KLCVaR
from drrho.risk.mean import Mean as Mean
