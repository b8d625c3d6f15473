"""The excess-loss objective: a risk of the target model's losses minus a reference model's."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from drrho.risk.result import Risk, RiskMeasure, effective_sample_size, kl_divergence
from drrho.risk.samples import normalised

INDICES_SHOWN = 8


class ExcessRisk(NamedTuple):
    """The objective, and what is worth logging about it. Only `loss` carries a gradient.

    Attributes:
        loss: shape (*batch), units of loss: the risk of the excess losses. Below zero, the
            target's mean loss on these samples is below the reference's (a risk is never
            below the mean). Its gradient in the target's losses is `weights`.
        weights: shape (*batch, n): the adversary's probabilities, zero for unused samples.
        effective_sample_size: shape (*batch), in samples, at most `num_used`.
        dual: shape (*batch): the risk's dual variable; see `drrho.risk.result.Risk`.
        kl: shape (*batch), in nats: divergence of the weights from equal ones on the samples
            used.
        num_used: shape (*batch): samples the risk was taken over.
        num_missing_reference: shape (*batch): dropped because the reference loss is NaN.
        num_nonfinite: shape (*batch): dropped because of another loss that is not finite.

    The three counts add up to the mask's.
    """

    loss: Float[Tensor, "*batch"]
    weights: Float[Tensor, "*batch n"]
    effective_sample_size: Float[Tensor, "*batch"]
    dual: Float[Tensor, "*batch"] | None
    kl: Float64[Tensor, "*batch"]
    num_used: Int64[Tensor, "*batch"]
    num_missing_reference: Int64[Tensor, "*batch"]
    num_nonfinite: Int64[Tensor, "*batch"]


def excess_loss(
    losses: Float[Tensor, "*batch n"], reference_losses: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch n"]:
    """`losses - reference_losses` per sample (the RHO loss), in float32 at least.

    Both are cast before the subtraction: two bfloat16 losses near 3 differ by a number that
    bfloat16 knows to one part in a hundred of a unit.

    Args:
        losses: the target model's, shape (..., n), any floating type.
        reference_losses: the reference model's on the same samples. The reference is frozen:
            no gradient flows into it.

    Raises:
        ValueError: the shapes differ.

    Source: Mindermann et al., "Prioritized training on points that are learnable, worth
        learning, and not yet learnt", 2022.
    """
    if losses.shape != reference_losses.shape:
        raise ValueError(
            f"losses have shape {tuple(losses.shape)} and reference_losses "
            f"{tuple(reference_losses.shape)}; they must be of the same samples"
        )
    dtype = torch.promote_types(losses.dtype, reference_losses.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    return losses.to(dtype) - reference_losses.detach().to(dtype)


def excess_risk(
    losses: Float[Tensor, "*batch n"],
    reference_losses: Float[Tensor, "*batch n"] | None,
    risk: RiskMeasure,
    *,
    mask: Bool[Tensor, "*batch n"] | None = None,
    nonfinite: Literal["raise", "drop"] = "raise",
) -> ExcessRisk:
    """The DRRho objective: `risk(losses - reference_losses)` over the samples that count.

    A NaN reference loss means that the reference of this sample is missing (absent from its
    cache). Missing references are treated as every loss that is not finite, by `nonfinite`,
    and counted apart. They are never replaced by zero: a raw loss among excess losses would
    look like the hardest sample of all.

    Args:
        losses: the target model's, shape (..., n); the last dimension is the samples.
        reference_losses: the reference model's on the same samples; None for ordinary
            distributionally robust optimisation.
        risk: `Mean()`, `CVaR(...)`, `KLPenalized(...)`, `KLBall(...)`, `ChiSquareBall(...)`.
        mask: True where a sample counts, for instance False on padding tokens, whose losses
            may be anything. None: all count.
        nonfinite: "raise" stops at a loss that is not finite; it has to look, so it waits for
            the device once, and cannot be part of a compiled graph. "drop" leaves such samples
            out and counts them, without waiting; the gradient that returns to them is zero.

    Raises:
        ValueError: with "raise", a loss that counts is not finite, with its indices; or the
            shapes differ.

    Source: docs/mathematics.md, "Excess loss".
    """
    excess = losses if reference_losses is None else excess_loss(losses, reference_losses)
    if mask is None:
        mask = torch.ones_like(losses, dtype=torch.bool)
    elif mask.shape != losses.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, losses have {tuple(losses.shape)}")
    missing = torch.zeros_like(mask) if reference_losses is None else reference_losses.isnan()
    missing = mask & missing
    unusable = mask & ~missing & ~excess.isfinite()
    match nonfinite:
        case "raise":
            if (missing | unusable).any():
                raise ValueError(_what_is_wrong(missing, unusable))
        case "drop":
            pass
        case _:
            raise ValueError(f'nonfinite must be "raise" or "drop", got {nonfinite!r}')
    used = mask & ~missing & ~unusable
    return _measured(risk(excess, base_measure=used), used, missing=missing, unusable=unusable)


def _measured(
    risk: Risk,
    used: Bool[Tensor, "*batch n"],
    *,
    missing: Bool[Tensor, "*batch n"],
    unusable: Bool[Tensor, "*batch n"],
) -> ExcessRisk:
    return ExcessRisk(
        loss=risk.value,
        weights=risk.weights,
        effective_sample_size=effective_sample_size(risk.weights),
        dual=risk.dual,
        kl=kl_divergence(risk.weights, normalised(used.double())),
        num_used=used.sum(dim=-1),
        num_missing_reference=missing.sum(dim=-1),
        num_nonfinite=unusable.sum(dim=-1),
    )


def _what_is_wrong(missing: Bool[Tensor, "*batch n"], unusable: Bool[Tensor, "*batch n"]) -> str:
    findings = {
        "reference_losses are NaN (missing)": missing,
        "losses or reference_losses are not finite": unusable,
    }
    sentences = []
    for finding, found in findings.items():
        indices = found.nonzero().squeeze(-1).tolist()
        if indices:
            shown = ", ".join(str(index) for index in indices[:INDICES_SHOWN])
            more = ", ..." if len(indices) > INDICES_SHOWN else ""
            sentences.append(
                f"{finding} at {len(indices)} of {found.numel()} samples: {shown}{more}"
            )
    remedy = 'mend or mask them, or pass nonfinite="drop" to leave them out and count them'
    return "; ".join([*sentences, remedy])
