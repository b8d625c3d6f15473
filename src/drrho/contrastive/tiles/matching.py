"""Cross-entropy of matching probabilities under teachers', student and teachers in one tile.

The same function as the plain `distillation_anchor_losses`, without a B x B matrix. Sums go over
negatives, so that the gradient in a positive is minus the sum of those in its negatives, and not
the difference of two probabilities which may both be one.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles.log_sums import Gradient
from drrho.contrastive.tiles.strip import (
    Anchors,
    KeptTiles,
    Strip,
    anchor_temperatures,
    as_tile,
    make_strip,
    wide_dtype,
)
from drrho.contrastive.tiles.tiling import Tiling, kept_bytes
from drrho.runtime.distributed import Partition


class Teacher(NamedTuple):
    """A frozen model's unit embeddings of the pairs, and the temperature it was trained with."""

    pairs: PairEmbeddings
    temperature: float


def joint_matching_losses(
    target: PairEmbeddings,
    teachers: Sequence[Teacher],
    *,
    temperature: Float[Tensor, "..."],
    pairs: Partition,
    tiling: Tiling,
) -> Float[Tensor, "2 batch"]:
    """Compute `distillation_anchor_losses` of this process's anchors, by the pairs of all.

    Source: docs/mathematics.md, "Distillation".
    """
    of_anchors = temperature.expand(2, len(target.image))
    anchors = anchor_temperatures(temperature, pairs, dtype=wide_dtype(target.image))
    num_bytes = kept_bytes(tiling, target, pairs) / (1 + len(teachers))
    kept = [KeptTiles(num_bytes) for _ in range(1 + len(teachers))]
    result = _MatchingLosses.apply(*target, of_anchors, anchors, tuple(teachers), pairs, kept)
    assert isinstance(result, Tensor)
    return result


class _Model(NamedTuple):
    """Similarities of the student or a teacher, in tiles, and their sums over negatives.

    Attributes:
        positives: `x_ii` of the pairs of all processes.
        log_sums: `log sum_j exp(x_ij / tau)` over the negatives of each anchor.
    """

    strip: Strip
    kept: KeptTiles
    temperature: Anchors
    positives: Float[Tensor, " columns"]
    log_sums: Anchors

    def scaled_positives(self) -> Anchors:
        own = self.positives[self.strip.own] / self.temperature.rows
        return Anchors(own, self.positives / self.temperature.columns)

    def of_negatives(self) -> Anchors:
        """Compute the probability of all negatives of an anchor together."""
        sums = zip(self.log_sums, self.scaled_positives(), strict=True)
        return Anchors(*((negatives - positive).sigmoid() for negatives, positive in sums))

    def log_totals(self) -> Anchors:
        """Compute `log sum_j exp(x_ij / tau)` with the positive."""
        sums = zip(self.log_sums, self.scaled_positives(), strict=True)
        return Anchors(*(torch.logaddexp(*both) for both in sums))


class _MatchingLosses(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - autograd sees tensors only as arguments
        ctx: Any,
        image: Tensor,
        text: Tensor,
        temperature: Tensor,
        anchors: Anchors,
        teachers: tuple[Teacher, ...],
        pairs: Partition,
        kept: list[KeptTiles],
    ) -> Tensor:
        del temperature  # an input for its gradient alone; `anchors` has the texts of all
        with torch.autocast(image.device.type, enabled=False):
            models = _models(PairEmbeddings(image, text), anchors, teachers, pairs, kept)
            student, *seen = models
            expected = _expected_gaps(student, seen, pairs)
            log_sums, of_positives = student.log_sums, student.scaled_positives()
        tau = torch.stack([anchors.rows, pairs.own(anchors.columns)])
        of_rows = log_sums.rows - of_positives.rows
        of_columns = pairs.own(log_sums.columns - of_positives.columns)
        ctx.models, ctx.pairs, ctx.kept = models, pairs, kept
        ctx.save_for_backward(image, text, expected, tau)
        return softplus(torch.stack([of_rows, of_columns])) - expected / tau

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        image, text, expected, tau = ctx.saved_tensors
        pairs, (student, *seen) = ctx.pairs, ctx.models
        grads = Anchors(grad_output[0], pairs.all_gather(grad_output[1]))
        needs_temperature = ctx.needs_input_grad[2]
        with torch.autocast(image.device.type, enabled=False):
            gradient = _gradient(student, seen, grads, needs_temperature=needs_temperature)
        for tiles in ctx.kept:
            tiles.clear()
        of_temperature = None
        if needs_temperature:
            means = [gradient.means.rows, pairs.reduce_scatter(gradient.means.columns)]
            rows, columns = student.of_negatives()
            share = torch.stack([rows, pairs.own(columns)])
            gaps = torch.stack(means) - share * pairs.own(student.positives)
            of_temperature = grad_output * (expected - gaps) / tau.square()
        of_text = pairs.reduce_scatter(gradient.text).to(text.dtype)
        return gradient.image.to(image.dtype), of_text, of_temperature, None, None, None, None


def _models(
    target: PairEmbeddings,
    anchors: Anchors,
    teachers: Sequence[Teacher],
    pairs: Partition,
    kept: Sequence[KeptTiles],
) -> list[_Model]:
    """Gather the texts of all, of the student and of every teacher."""
    strip = make_strip(target, None, pairs)
    strips, temperatures = [strip], [anchors]
    for teacher in teachers:
        strips.append(make_strip(teacher.pairs, None, pairs)._replace(dtype=strip.dtype))
        tau = strip.image.new_full((), teacher.temperature, dtype=strip.dtype)
        temperatures.append(Anchors(tau.expand(len(strip.image)), tau.expand(len(strip.text))))
    return [
        _Model(s, tiles, tau, pairs.all_gather(s.positives()), s.new_anchors(fill=-math.inf))
        for s, tiles, tau in zip(strips, kept, temperatures, strict=True)
    ]


def _expected_gaps(
    student: _Model, teachers: Sequence[_Model], pairs: Partition
) -> Float[Tensor, "2 rows"]:
    """Find the sums over negatives of all models, and the gap that the teachers expect.

    Returns:
        `sum_j q_ij (S_ij - S_ii)` of this process's anchors, averaged over the teachers.
    """
    strip = student.strip
    positives = Anchors(student.positives[strip.own], student.positives)
    means = [strip.new_anchors() for _ in teachers]  # under weights of sum one over the negatives
    tile, of_teacher, scaled, difference = (strip.scratch() for _ in range(4))
    for place in strip.tiles():
        s = student.kept.tile(strip, *place, into=tile)
        z, gaps = as_tile(scaled, *s.shape), as_tile(difference, *s.shape)
        for side in (0, 1):
            _add_tile(student, s, place, side, into=z)
        for teacher, mean in zip(teachers, means, strict=True):
            r = teacher.kept.tile(teacher.strip, *place, into=of_teacher)
            for side, part in enumerate(place):
                added = _add_tile(teacher, r, place, side, into=z)
                torch.sub(s, positives[side][part].unsqueeze(1 - side), out=gaps)
                of_tile = gaps.mul_(added.exponentials).sum(dim=1 - side)
                mean[side][part] = added.before * mean[side][part] + added.factor * of_tile
    expected = strip.image.new_zeros(2, len(strip.image), dtype=strip.dtype)
    for teacher, mean in zip(teachers, means, strict=True):
        of_strip = teacher.log_sums.columns.clone()
        _combine_columns(teacher, pairs)
        of_strip = (of_strip - teacher.log_sums.columns).exp()  # its share of all negatives
        rows, columns = teacher.of_negatives()
        of_columns = pairs.reduce_scatter(columns * of_strip * mean.columns)
        expected += torch.stack([rows * mean.rows, of_columns])
    _combine_columns(student, pairs)
    return expected / len(teachers)


def _combine_columns(model: _Model, pairs: Partition) -> None:
    """Add the sums of columns up over processes; a collective."""
    model.log_sums.columns.copy_(pairs.log_sum_exp(model.log_sums.columns))


class _Added(NamedTuple):
    """A tile's terms `e = exp(x / tau - largest)`, and what they are in the sums so far.

    Attributes:
        before: share of the sum of each anchor that is from earlier tiles.
        factor: of e, to a share of the sum.
    """

    exponentials: Float[Tensor, "tile_rows tile_columns"]
    before: Float[Tensor, " anchors"]
    factor: Float[Tensor, " anchors"]


def _add_tile(
    model: _Model, x: Tensor, place: tuple[slice, slice], side: int, *, into: Tensor
) -> _Added:
    """Add the negatives in a tile to the sums of its rows (side 0) or columns (side 1)."""
    dim, part, sums = 1 - side, place[side], model.log_sums[side]
    z = torch.mul(x, 1 / model.temperature[side][part].unsqueeze(dim), out=into)
    model.strip.diagonal(z, *place).fill_(-math.inf)
    # A row of the tile may hold nothing but a positive.
    largest = z.amax(dim=dim, keepdim=True).clamp_min_(torch.finfo(z.dtype).min)
    exponentials = z.sub_(largest).exp_()
    largest = largest.squeeze(dim)
    before = sums[part].clone()
    sums[part] = after = torch.logaddexp(before, exponentials.sum(dim=dim).log_().add_(largest))
    # Without a negative so far both are minus infinity, and nothing is added.
    shares = [(a - after).exp_().nan_to_num_(0, posinf=0) for a in (before, largest)]
    return _Added(exponentials, *shares)


def _gradient(
    student: _Model, teachers: Sequence[_Model], grads: Anchors, *, needs_temperature: bool
) -> Gradient:
    """Multiply the differences of student's and teachers' probabilities with the embeddings.

    The means are of the student's similarities to the negatives.
    """
    strip = student.strip
    result = Gradient(
        image=torch.zeros_like(strip.image, dtype=strip.dtype),
        text=torch.zeros_like(strip.text, dtype=strip.dtype),
        means=strip.new_anchors(),
    )
    factors = Anchors(*(g / tau for g, tau in zip(grads, student.temperature, strict=True)))
    surplus = student.of_negatives()  # of the student's probability over the teachers'
    for side in (0, 1):
        for teacher in teachers:
            surplus[side].sub_(teacher.of_negatives()[side], alpha=1 / len(teachers))
    at_positives = -(factors.rows * surplus.rows + (factors.columns * surplus.columns)[strip.own])
    totals = [model.log_totals() for model in (student, *teachers)]
    tile, of_teacher, for_rows, for_columns, spare = (strip.scratch() for _ in range(5))
    for place in strip.tiles():
        s = student.kept.tile(strip, *place, into=tile)
        c, p, q = (as_tile(scratch, *s.shape) for scratch in (for_rows, for_columns, spare))
        for side, weights in enumerate((c, p)):
            _probabilities(student, s, totals[0], place, side, into=weights)
            if needs_temperature:
                means = torch.mul(weights, s, out=q).sum(dim=1 - side)
                result.means[side][place[side]] += means
        for teacher, total in zip(teachers, totals[1:], strict=True):
            r = teacher.kept.tile(teacher.strip, *place, into=of_teacher)
            for side, weights in enumerate((c, p)):
                _probabilities(teacher, r, total, place, side, into=q)
                weights.sub_(q, alpha=1 / len(teachers))
        rows, columns = place
        c.mul_(factors.rows[rows, None]).add_(p.mul_(factors.columns[columns]))
        strip.diagonal(c, *place).copy_(at_positives[strip.rows_on_diagonal(*place)])
        result.image[rows].addmm_(c, strip.text[columns].to(strip.dtype))
        result.text[columns].addmm_(c.T, strip.image[rows].to(strip.dtype))
    return result


def _probabilities(
    model: _Model, x: Tensor, total: Anchors, place: tuple[slice, slice], side: int, *, into: Tensor
) -> None:
    """Compute the probabilities of the negatives in a tile."""
    dim, part = 1 - side, place[side]
    torch.mul(x, 1 / model.temperature[side][part].unsqueeze(dim), out=into)
    into.sub_(total[side][part].unsqueeze(dim)).exp_()
    model.strip.diagonal(into, *place).zero_()
