"""SigLIP: every pair of an image and a text is a binary question of its own."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from drrho.contrastive.exact import pair_similarities
from drrho.contrastive.memory.temperature import (
    DEFAULT_TEMPERATURE,
    Learned,
    OneTemperatureOrFloat,
    Tau,
    as_tau,
    as_temperature,
)
from drrho.contrastive.objectives.distillation import DistillationTerm, count_teachers
from drrho.contrastive.pairs import PairEmbeddings, check_pairs, pair_partition
from drrho.contrastive.tiles.strip import KeptTiles, Strip, make_strip
from drrho.contrastive.tiles.tiling import DEFAULT_TILING, Tiling, kept_bytes
from drrho.runtime.distributed import Partition


@dataclass(frozen=True, kw_only=True)
class SigLIP:
    """SigLIP's objective: the sigmoid loss of every pair of an image and a text.

    Attributes:
        temperature: `Constant` (a float will do) or `Learned`; one for both directions.
        initial_bias: b at the start, in nats, which is then learned.
        distillation: teachers' probabilities, imitated as well; None leaves them out.

    Source: docs/mathematics.md, "SigLIP"; Zhai et al., arXiv 2303.15343.
    """

    method: ClassVar = "siglip"
    needs_reference: ClassVar = False
    has_averages: ClassVar = False
    temperature: OneTemperatureOrFloat = DEFAULT_TEMPERATURE
    initial_bias: float = -10.0
    distillation: DistillationTerm | None = None
    num_teachers = property(count_teachers)

    def __post_init__(self):
        as_temperature(self)
        if isinstance(self.temperature, Learned) and self.temperature.per_direction:
            raise ValueError(
                "objective.temperature.per_direction does not fit SigLIP, whose loss has no "
                "directions; leave it out"
            )


def siglip_anchor_losses(
    target: PairEmbeddings, *, temperature: Tau, bias: Float[Tensor, ""]
) -> Float[Tensor, " batch"]:
    """`-sum_j log sigmoid(y_ij (S_ij / tau + b))` of each image i, y_ij = 1 if i = j and else -1.

    SigLIP's loss is the mean over the B images, in nats. Without a softmax there are no text
    anchors besides, and the tiles of the matrix are independent.

    Args:
        target: unit embeddings (B, d) of the model in training.
        temperature: tau in units of cosine similarity, positive.
        bias: b, in nats; negative since most pairs do not match.

    Raises:
        ValueError: fewer than two pairs, or numbers of rows that differ.

    Source: docs/mathematics.md, "SigLIP"; Zhai et al., arXiv 2303.15343.
    """
    z = pair_similarities(target) / as_tau(temperature, target.image) + bias
    signs = 2 * torch.eye(len(z), dtype=z.dtype, device=z.device) - 1
    return softplus(-signs * z).sum(dim=1)


def tiled_siglip_anchor_losses(
    target: PairEmbeddings,
    *,
    temperature: Tau,
    bias: Float[Tensor, ""],
    pairs: Partition | None = None,
    tiling: Tiling = DEFAULT_TILING,
) -> Float[Tensor, " batch"]:
    """`siglip_anchor_losses` tile by tile, of this process's images against everyone's texts.

    `pairs`, `tiling` and the meaning of the gradient are as in `tiled_log_gap_means`.
    """
    check_pairs(target, None)
    pairs = pair_partition(target) if pairs is None else pairs
    temperature = as_tau(temperature, target.image)
    kept = KeptTiles(kept_bytes(tiling, target, pairs))
    result = _TiledSiglip.apply(*target, temperature, bias, pairs, kept)
    assert isinstance(result, Tensor)
    return result


class _TiledSiglip(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - autograd sees tensors only as arguments
        ctx: Any,
        image: Tensor,
        text: Tensor,
        temperature: Tensor,
        bias: Tensor,
        pairs: Partition,
        kept: KeptTiles,
    ) -> Tensor:
        strip = make_strip(PairEmbeddings(image, text), None, pairs)
        losses = strip.image.new_zeros(len(image), dtype=strip.dtype)
        tile = strip.scratch()
        with torch.autocast(image.device.type, enabled=False):
            for rows, columns in strip.tiles():
                z = _logits(kept.tile(strip, rows, columns, into=tile), temperature, bias)
                # softplus(-z) of a positive is softplus(z) - z.
                of_positives = strip.diagonal(z, rows, columns).clone()
                losses[rows] += softplus(z).sum(dim=1)
                losses[strip.rows_on_diagonal(rows, columns)] -= of_positives
        ctx.save_for_backward(*strip[:2], temperature, bias)
        ctx.start, ctx.dtype, ctx.pairs, ctx.kept = strip.start, strip.dtype, pairs, kept
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        image, text, temperature, bias = ctx.saved_tensors
        strip = Strip(image, text, None, None, start=ctx.start, dtype=ctx.dtype)
        of_image = torch.zeros_like(image, dtype=strip.dtype)
        of_text = torch.zeros_like(text, dtype=strip.dtype)
        of_scale, of_bias = of_image.new_zeros(2)
        tile = strip.scratch()
        with torch.autocast(image.device.type, enabled=False):
            for rows, columns in strip.tiles():
                x = ctx.kept.tile(strip, rows, columns, into=tile)
                c = _logits(x, temperature, bias).sigmoid_()
                strip.diagonal(c, rows, columns).sub_(1)
                c *= grad_output[rows, None]
                of_bias += c.sum()
                of_scale += (c * x).sum()
                of_image[rows].addmm_(c, strip.text[columns].to(strip.dtype))
                of_text[columns].addmm_(c.T, strip.image[rows].to(strip.dtype))
        ctx.kept.clear()
        of_image, of_text = of_image / temperature, of_text / temperature
        return (
            of_image.to(image.dtype),
            ctx.pairs.reduce_scatter(of_text).to(text.dtype),
            (-of_scale / temperature.square()).to(temperature.dtype),
            of_bias.to(bias.dtype),
            None,
            None,
        )


def _logits(x: Tensor, temperature: Tensor, bias: Tensor) -> Tensor:
    return x.div(temperature).add_(bias)
