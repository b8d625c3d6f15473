"""Distillation of a reference's similarities, the way of MobileCLIP."""

import torch
from jaxtyping import Float
from torch import Tensor

from drrho.contrastive.risk import PairEmbeddings, check_pairs, pair_similarities


def distillation_loss(
    target: PairEmbeddings,
    reference: PairEmbeddings,
    *,
    temperature: Float[Tensor, ""],
    reference_temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of the target's matching probabilities under the reference's, in nats.

        1/2 [CE(softmax(R / tau_ref), softmax(S / tau))
             + CE(softmax(R^T / tau_ref), softmax(S^T / tau))]

    each averaged over its B anchors. The positive is one of the B candidates.

    Args:
        target: unit embeddings (B, d) of the model in training.
        reference: unit embeddings (B, d_ref) of the teacher; they get no gradient.
        temperature: tau of the target, in units of cosine similarity.
        reference_temperature: tau_ref, the one the teacher was trained with.

    Raises:
        ValueError: `reference_temperature` is not positive, or the shapes do not fit.

    Source: docs/mathematics.md, "Distillation"; MobileCLIP, arXiv 2311.17049.
    """
    if not reference_temperature > 0:
        raise ValueError(f"reference_temperature must be positive, got {reference_temperature}")
    check_pairs(target, reference)
    student = pair_similarities(target) / temperature
    with torch.no_grad():
        teacher = pair_similarities(reference).to(student.dtype) / reference_temperature
    directions = [
        torch.nn.functional.cross_entropy(s, t.softmax(dim=1))
        for s, t in ((student, teacher), (student.T, teacher.T))
    ]
    return torch.stack(directions).mean()
