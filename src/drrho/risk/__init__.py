"""Risks of losses, with the distributions that attain them, and the excess loss."""

from drrho.risk.base import Risk, RiskMeasure, effective_sample_size, kl_divergence
from drrho.risk.chi_square import ChiSquare, ChiSquareBall
from drrho.risk.cvar import CVaR
from drrho.risk.excess import excess_loss
from drrho.risk.kl import KL
from drrho.risk.kl_ball import KLBall
from drrho.risk.kl_cvar import KLCVaR
from drrho.risk.mean import Mean

__all__ = [
    "KL",
    "CVaR",
    "ChiSquare",
    "ChiSquareBall",
    "KLBall",
    "KLCVaR",
    "Mean",
    "Risk",
    "RiskMeasure",
    "effective_sample_size",
    "excess_loss",
    "kl_divergence",
]
