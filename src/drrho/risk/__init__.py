"""Risks of losses, with the distributions that attain them, and the excess loss."""

from drrho.risk.base import Risk, RiskMeasure, effective_sample_size, kl_divergence
from drrho.risk.chi_square import (
    ChiSquare,
    ChiSquareBall,
    chi_square_ball_risk,
    chi_square_risk,
)
from drrho.risk.cvar import CVaR, cvar_risk
from drrho.risk.excess import excess_loss
from drrho.risk.kl import KL, kl_risk
from drrho.risk.kl_ball import KLBall, kl_ball_risk
from drrho.risk.kl_cvar import KLCVaR, kl_cvar_risk
from drrho.risk.mean import Mean, mean_risk

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
    "chi_square_ball_risk",
    "chi_square_risk",
    "cvar_risk",
    "effective_sample_size",
    "excess_loss",
    "kl_ball_risk",
    "kl_cvar_risk",
    "kl_divergence",
    "kl_risk",
    "mean_risk",
]
