"""Selection from a super-batch: which candidates are trained on, and with what weight.

Score a super-batch without gradient, select, and train on what was selected:

    scores = selection_scores("excess", losses, reference_losses)
    selection = select_top_k(scores, k)
    (selection.weights * losses_of(inputs[selection.index])).sum().backward()

| selection | weights | on average the gradient of |
|---|---|---|
| `select_top_k` | 1/k | `CVaR(fraction=k / n)` over the super-batch, in every draw |
| `sample_with_replacement` | 1/k | `KL(temperature=...)` over the super-batch |
| `sample_without_replacement`, corrected | by threshold | the same |
| `sample_without_replacement`, uncorrected | 1/k | no risk of this package |
| `sample_uniformly` | 1/k | `Mean()` |

Sampling has used up the risk's weights: to multiply the losses by them again counts them twice.

A candidate counts if its mask is True and its score is finite (NaN without a reference).
Others are left out without an error, for which the host would wait for the device; count them by
`scores.isfinite()`. Where fewer than k candidates count, the surplus has weight zero and the index
of the first one chosen, whose loss is safe to compute; the others weigh as if k were their number.
Where none counts, all weights are zero.

In every function scores have one dimension (`flatten()` scores of tokens) and any floating type;
`mask` is True where a candidate counts; the generator is on the scores' device. ValueError: k is
out of range, there are no candidates, the mask does not fit, or the temperature is out of range.
TypeError: the scores are not floating point.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from drrho.risk import excess_loss
from drrho.risk.limits import check_price
from drrho.runtime.checks import require_at_least, require_choice

Kind = Literal["excess", "loss", "irreducible"]


class Selected(NamedTuple):
    """Candidates to train on: `(selection.weights * losses[selection.index]).sum()`.

    Attributes:
        index: shape (k,): positions among the candidates.
        weights: shape (k,), detached, not negative, in float32 at least. They sum to one;
            corrected ones do so on average.
    """

    index: Int64[Tensor, " k"]
    weights: Float[Tensor, " k"]


def selection_scores(
    kind: Kind,
    losses: Float[Tensor, "*batch"] | None,
    reference_losses: Float[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Score candidates; the larger scores are selected first.

    Args:
        kind: "excess" is `losses - reference_losses`: learnable and not yet learnt (RHO-LOSS; on
            tokens, Rho-1). "loss" is `losses`: the hardest, noise included. "irreducible" is
            `-reference_losses`: what the reference finds easy, learnt or not.
        losses, reference_losses: the target model's and the reference model's, of any shape and
            floating type; None where the kind needs none, and not read there.

    Returns:
        Scores of the losses' shape, detached, in float32 at least.

    Raises:
        ValueError: losses that the kind needs are None, or their shapes differ.

    Source: Mindermann et al., "Prioritized training on points that are learnable, worth
        learning, and not yet learnt", 2022, with the two baselines; Lin et al., "Rho-1: not all
        tokens are what you need", 2024.
    """
    require_choice("kind", kind, Kind)
    match kind:
        case "excess":
            scores = excess_loss(
                _needed(losses, "losses", kind), _needed(reference_losses, "reference_losses", kind)
            )
        case "loss":
            scores = _needed(losses, "losses", kind)
        case "irreducible":
            scores = -_needed(reference_losses, "reference_losses", kind)
    return scores.detach().to(torch.promote_types(scores.dtype, torch.float32))


def select_top_k(
    scores: Float[Tensor, " n"], k: int, *, mask: Bool[Tensor, " n"] | None = None
) -> Selected:
    """Select the k largest scores, 1/k each: the weights of `CVaR(fraction=k / n)`.

    n is the number of candidates that count. Of those tied with the k-th largest score, an
    unspecified choice enters, with the total weight that CVaR shares equally among them all.
    """
    scores, valid = _candidates(scores, mask)
    _check_k(k, len(scores))
    index = scores.masked_fill(~valid, -torch.inf).topk(k).indices
    return _equal_weights(index, valid, dtype=scores.dtype)


def sample_without_replacement(
    scores: Float[Tensor, " n"],
    k: int,
    *,
    temperature: float,
    generator: torch.Generator,
    correction: bool,
    mask: Bool[Tensor, " n"] | None = None,
) -> Selected:
    """Draw k different candidates, one after another, by `p = softmax(scores / temperature)`.

    The draw is the Gumbel top-k: the k largest `log p + Gumbel noise`. Small temperatures, in units
    of the scores and in [1e-30, 1e30], give `select_top_k`, large ones `sample_uniformly`.

    Without correction all weigh 1/k, which is biased towards the plain mean: a likely candidate
    cannot be drawn twice. With correction a candidate weighs `p / (1 - exp(-exp(log p -
    kappa)))`, kappa the largest perturbed log-probability that was not chosen; the divisor is
    the chance to exceed it. Then `sum(weights * x[index])` is unbiased for `sum(p * x)`, whatever
    x is, and equal to it at k = n. Weights divided by their sum vary less, but are biased.

    The variance is at most `sum(p x^2) / (k - 1)` (infinite for k = 1 < n). With replacement it is
    `(sum(p x^2) - sum(p x)^2) / k`: smaller where the x have much in common, since those weights
    always sum to one; larger where few candidates hold most of p and are drawn again and again.

    Source: Kool, van Hoof and Welling, "Stochastic beams and where to find them", 2019; Duffield,
        Lund and Thorup, "Priority sampling for estimation of arbitrary subset sums", 2007.
    """
    scores, valid = _candidates(scores, mask)
    num_candidates = len(scores)
    _check_k(k, num_candidates)
    log_p = _log_probabilities(scores, valid, temperature)
    # Minus the logarithm of an exponential variable is Gumbel noise; of zero, an infinite kappa.
    noise = torch.empty_like(log_p).exponential_(generator=generator)
    perturbed = log_p - noise.clamp_min(torch.finfo(noise.dtype).tiny).log()
    largest, order = perturbed.topk(min(k + 1, num_candidates))
    index = order[:k]
    if not correction:
        return _equal_weights(index, valid, dtype=scores.dtype)

    # Minus infinity where no candidate that counts was left: the chance of those chosen is one.
    kappa = largest[k] if k < num_candidates else -torch.inf
    # A chosen log p is below kappa by no more than its own noise, so the chance is not zero.
    inclusion = -torch.expm1(-(log_p[index] - kappa).exp())
    chosen = valid[index]
    weights = torch.where(chosen, log_p[index].exp() / inclusion, 0.0)
    return _selection(index, chosen, weights.to(scores.dtype))


def sample_with_replacement(
    scores: Float[Tensor, " n"],
    k: int,
    *,
    temperature: float,
    generator: torch.Generator,
    mask: Bool[Tensor, " n"] | None = None,
) -> Selected:
    """Draw k times, independently, by `p = softmax(scores / temperature)`, 1/k each.

    `sum(weights * x[index])` is an unbiased estimate of `sum(p * x)` with variance `(sum(p x^2) -
    sum(p x)^2) / k`. A candidate may come more than once, and k may exceed n. Memory is O(n + k).
    """
    scores, valid = _candidates(scores, mask)
    require_at_least(1, k=k)
    # Not torch.multinomial, which ends at 2^24 candidates.
    cumulative = _log_probabilities(scores, valid, temperature).exp().cumsum(dim=0)
    uniform = torch.rand(k, dtype=torch.float64, device=scores.device, generator=generator)
    # `right`: the first sum above the target, so never a candidate of probability zero.
    index = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)
    index = index.clamp(max=len(scores) - 1)  # where none counts, no sum is above it
    return _equal_weights(index, valid, dtype=scores.dtype)


def sample_uniformly(
    num_candidates: int,
    k: int,
    *,
    generator: torch.Generator,
    mask: Bool[Tensor, " n"] | None = None,
) -> Selected:
    """Draw k different candidates, all equally likely, 1/k each: the baseline."""
    equal_scores = torch.zeros(num_candidates, device=generator.device)
    return sample_without_replacement(
        equal_scores, k, temperature=1.0, generator=generator, correction=False, mask=mask
    )


def _candidates(
    scores: Tensor, mask: Tensor | None
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Scores, detached and in float32 at least, and which of them count."""
    if not scores.is_floating_point():
        raise TypeError(f"scores must be floating point, got {scores.dtype}")
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(
            f"scores must be of one dimension and not empty, got shape {tuple(scores.shape)}; "
            "flatten() them, and the losses that the index is for"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != scores.shape):
        raise ValueError(
            "mask must be bool, True where a candidate counts, and of the scores' shape "
            f"{tuple(scores.shape)}; got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    scores = scores.detach().to(torch.promote_types(scores.dtype, torch.float32))
    valid = scores.isfinite()
    return scores, valid if mask is None else valid & mask


def _log_probabilities(
    scores: Float[Tensor, " n"], valid: Bool[Tensor, " n"], temperature: float
) -> Float64[Tensor, " n"]:
    """Logarithm of `softmax(scores / temperature)` over the candidates that count; else -infinity.

    NaN where none counts: they are chosen by it then, but no weight is made of it.
    """
    limits = "select_top_k at zero, and sample_uniformly at infinity"
    check_price(temperature, name="temperature", limits=limits)
    logits = scores.double() / temperature
    return logits.masked_fill(~valid, -torch.inf).log_softmax(dim=0)


def _equal_weights(
    index: Int64[Tensor, " k"], valid: Bool[Tensor, " n"], *, dtype: torch.dtype
) -> Selected:
    chosen = valid[index]
    return _selection(index, chosen, chosen.to(dtype) / chosen.sum().clamp_min(1))


def _selection(
    index: Int64[Tensor, " k"], chosen: Bool[Tensor, " k"], weights: Float[Tensor, " k"]
) -> Selected:
    # Zero times the loss of a masked candidate would be NaN if that loss is.
    return Selected(torch.where(chosen, index, index[:1]), weights)


def _needed(losses: Tensor | None, name: str, kind: str) -> Tensor:
    if losses is None:
        raise ValueError(f'{name} is None, but the scores of kind "{kind}" are made of them')
    return losses


def _check_k(k: int, num_candidates: int) -> None:
    if not 1 <= k <= num_candidates:
        raise ValueError(
            f"k must be between 1 and the number of candidates, {num_candidates}, got {k}; only "
            "sample_with_replacement can draw more"
        )
