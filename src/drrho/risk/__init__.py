"""Losses to a scalar: risks, and the distributions that attain them; the excess loss."""

from drrho.risk.base import Risk, RiskMeasure, effective_sample_size, kl_divergence
from drrho.risk.chi_square import (
    ChiSquareBall,
    ChiSquarePenalized,
    chi_square_ball_risk,
    chi_square_penalized_risk,
)
from drrho.risk.cvar import CVaR, cvar_risk
from drrho.risk.excess import excess_loss
from drrho.risk.kl import KLBall, KLPenalized, entropic_risk, kl_ball_risk
from drrho.risk.kl_cvar import KLPenalizedCVaR, entropic_cvar_risk
from drrho.risk.mean import Mean, mean_risk

__all__ = [
    "CVaR",
    "ChiSquareBall",
    "ChiSquarePenalized",
    "KLBall",
    "KLPenalized",
    "KLPenalizedCVaR",
    "Mean",
    "Risk",
    "RiskMeasure",
    "chi_square_ball_risk",
    "chi_square_penalized_risk",
    "cvar_risk",
    "effective_sample_size",
    "entropic_cvar_risk",
    "entropic_risk",
    "excess_loss",
    "kl_ball_risk",
    "kl_divergence",
    "mean_risk",
]
