"""Distillation of teachers' matching probabilities, the way of MobileCLIP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from drrho.contrastive.exact import clip_anchor_losses, pair_similarities
from drrho.contrastive.memory.temperature import (
    DEFAULT_TEMPERATURE,
    OneTemperatureOrFloat,
    Tau,
    as_tau,
    as_temperature,
    require_temperature,
)
from drrho.contrastive.pairs import PairEmbeddings, check_negatives, check_pairs, pair_partition
from drrho.contrastive.tiles.implementation import Implementation, log_gap_means
from drrho.contrastive.tiles.log_sums import log_sums
from drrho.contrastive.tiles.matching import Teacher, joint_matching_losses
from drrho.contrastive.tiles.strip import Strip, make_strip
from drrho.contrastive.tiles.tiling import JOINT, Tiling
from drrho.runtime.checks import require_positive
from drrho.runtime.distributed import Partition


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """Fields of objectives that imitate teachers' matching probabilities.

    Attributes:
        teacher_temperatures: the temperature that each teacher was trained with, in units of cosine
            similarity (a CLIP's is 1 / logit_scale, often 0.01); in the order of the teachers,
            which are averaged after their softmax.
    """

    teacher_temperatures: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class DistillationTerm(Teachers):
    """Teachers' matching probabilities, imitated beside another objective.

    Attributes:
        weight: factor of the distillation loss. Beside objectives in units of cosine similarity
            (FastCLIP and DRRho-CLIP with `times_temperature`) the loss is also multiplied by tau,
            so that the weight has the same meaning for all objectives.
    """

    weight: float = 1.0

    def __post_init__(self):
        _require_temperatures("objective.distillation", self.teacher_temperatures)
        require_positive(**{"objective.distillation.weight": self.weight})


def converted_weight(weight: float, *, batch_size: int) -> float:
    """Return the weight here that is the published `--distill_weight` of FastCLIP and DRRho-CLIP.

    `w (B - 1) / (2 B)`: the published contrastive loss is 2 B / (B - 1) times the exact one, its
    distillation is not.

    Source: docs/mathematics.md, "The official code".
    """
    return weight * (batch_size - 1) / (2 * batch_size)


@dataclass(frozen=True, kw_only=True)
class Distillation(Teachers):
    """Teachers' matching probabilities alone, as in MobileCLIP.

    Attributes:
        temperature: `Constant` (a float will do) or `Learned`; the target's.

    Source: docs/mathematics.md, "Distillation"; Vasu et al., arXiv 2311.17049.
    """

    method: ClassVar = "distillation"
    needs_reference: ClassVar = False
    has_averages: ClassVar = False
    temperature: OneTemperatureOrFloat = DEFAULT_TEMPERATURE

    def __post_init__(self):
        as_temperature(self)
        _require_temperatures("objective", self.teacher_temperatures)

    @property
    def num_teachers(self) -> int:
        return len(self.teacher_temperatures)

    @property
    def distillation(self) -> DistillationTerm:
        """Return the whole loss as a term."""
        return DistillationTerm(teacher_temperatures=self.teacher_temperatures)


def count_teachers(objective: Any) -> int:
    """Count the models whose probabilities are imitated beside an objective."""
    term: DistillationTerm | None = objective.distillation
    return 0 if term is None else len(term.teacher_temperatures)


def distillation_anchor_losses(
    target: PairEmbeddings, teachers: Sequence[Teacher], *, temperature: Tau
) -> Float[Tensor, "2 batch"]:
    """Cross-entropy of the target's matching probabilities under the teachers', of each anchor.

        q_i = mean over teachers k of softmax_j(R^k_ij / tau_k)
        -sum_j q_ij log softmax_j(S_ij / tau)

    for image anchors along the rows, and for text anchors along the columns. The positive is one
    of the B candidates. MobileCLIP's loss is the mean over anchors, in nats.

    Args:
        target: unit embeddings (B, d) of the model in training.
        teachers: one or more; they get no gradient.
        temperature: tau of the target, in units of cosine similarity; of any shape that expands to
            (2, B).

    Raises:
        ValueError: there is no teacher, a teacher's temperature is not positive, or the shapes do
            not fit.

    Source: docs/mathematics.md, "Distillation"; MobileCLIP, arXiv 2311.17049.
    """
    _check_teachers(target, teachers)
    similarities = pair_similarities(target)
    temperature = as_tau(temperature, similarities)
    of_anchors = temperature.to(similarities.dtype).expand(2, len(similarities))
    with torch.no_grad():
        logits = [
            pair_similarities(t.pairs).to(similarities.dtype) / t.temperature for t in teachers
        ]
    losses = []
    for side, transposed in enumerate((False, True)):
        student = (similarities.T if transposed else similarities) / of_anchors[side][:, None]
        seen = [(t.T if transposed else t).softmax(dim=1) for t in logits]
        losses.append(-(torch.stack(seen).mean(dim=0) * student.log_softmax(dim=1)).sum(dim=1))
    return torch.stack(losses)


def tiled_distillation_anchor_losses(
    target: PairEmbeddings,
    teachers: Sequence[Teacher],
    *,
    temperature: Tau,
    pairs: Partition | None = None,
    impl: Implementation = JOINT,
) -> Float[Tensor, "2 batch"]:
    """`distillation_anchor_losses` without a B x B matrix, of the pairs of all processes.

    The cross-entropy is `log sum_j exp((S_ij - S_ii) / tau) - (1/tau) sum_j q_ij (S_ij - S_ii)`.
    In joint passes (`joint_matching_losses`) one walk over the tiles finds both terms, and one
    their gradient. Otherwise the first term comes from `log_gap_means`, by `impl`; the second, the
    gap that the teachers expect, has passes of its own, and in float32 the gradients of both are
    rounded before they cancel: by up to 1e-7 / tau, which is more than their sum where student and
    teacher are certain of the same pairs. `pairs` and the gradient mean the same as in
    `tiled_log_gap_means`.
    """
    _check_teachers(target, teachers)
    pairs = pair_partition(target) if pairs is None else pairs
    check_negatives(pairs.num_rows)
    temperature = as_tau(temperature, target.image)
    if isinstance(impl, Tiling) and impl.passes == "joint":
        return joint_matching_losses(
            target, teachers, temperature=temperature, pairs=pairs, tiling=impl
        )
    log_means = log_gap_means(target, temperature=temperature, pairs=pairs, impl=impl)
    expected = _ExpectedGaps.apply(*target, tuple(teachers), pairs)
    assert isinstance(expected, Tensor)
    cross_entropy_of_positive = clip_anchor_losses(log_means, num_pairs=pairs.num_rows)
    return cross_entropy_of_positive - expected / temperature.to(expected.dtype)


class _ExpectedGaps(torch.autograd.Function):
    """`sum_j q_ij (S_ij - S_ii)` of image anchors; of text anchors, the same along the columns."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, teachers: tuple[Teacher, ...], pairs: Partition
    ) -> Tensor:
        strip = make_strip(PairEmbeddings(image, text), None, pairs)
        rows_of, columns_of = strip.new_anchors()
        with torch.autocast(image.device.type, enabled=False):
            positives = strip.positives()
            of_all = pairs.all_gather(positives)
            views = [_TeacherStrip.make(teacher, pairs, strip.dtype) for teacher in teachers]
            for rows, columns in strip.tiles():
                s = strip.similarities(rows, columns)
                q_rows, q_columns = _probabilities(views, rows, columns)
                rows_of[rows] += q_rows.mul_(s - positives[rows, None]).sum(dim=1)
                columns_of[columns] += q_columns.mul_(s - of_all[columns]).sum(dim=0)
        ctx.save_for_backward(*strip[:2])
        ctx.start, ctx.dtype, ctx.pairs, ctx.views = strip.start, strip.dtype, pairs, views
        return torch.stack([rows_of, pairs.reduce_scatter(columns_of)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        image, text = ctx.saved_tensors
        of_rows, of_columns = grad_output[0], ctx.pairs.all_gather(grad_output[1])
        at_positives = grad_output.sum(dim=0)  # the probabilities sum to one
        of_image = torch.zeros_like(image, dtype=ctx.dtype)
        of_text = torch.zeros_like(text, dtype=ctx.dtype)
        strip = Strip(image, text, None, None, start=ctx.start, dtype=ctx.dtype)
        with torch.autocast(image.device.type, enabled=False):
            for rows, columns in strip.tiles():
                q_rows, q_columns = _probabilities(ctx.views, rows, columns)
                c = q_rows.mul_(of_rows[rows, None]).addcmul_(q_columns, of_columns[columns])
                own_rows = strip.rows_on_diagonal(rows, columns)
                strip.diagonal(c, rows, columns).sub_(at_positives[own_rows])
                of_image[rows].addmm_(c, text[columns].to(ctx.dtype))
                of_text[columns].addmm_(c.T, image[rows].to(ctx.dtype))
        of_text = ctx.pairs.reduce_scatter(of_text)
        return of_image.to(image.dtype), of_text.to(text.dtype), None, None


class _TeacherStrip(NamedTuple):
    """A teacher's similarities in tiles, with the normalisers of their softmaxes."""

    strip: Strip
    temperature: float
    of_rows: Float[Tensor, " rows"]
    of_columns: Float[Tensor, " columns"]

    @classmethod
    def make(cls, teacher: Teacher, pairs: Partition, dtype: torch.dtype) -> "_TeacherStrip":
        strip = make_strip(teacher.pairs, None, pairs)._replace(dtype=dtype)
        temperature = strip.new_anchors(fill=teacher.temperature)
        sums = log_sums(strip, temperature, with_positives=True)
        return cls(strip, teacher.temperature, sums.rows, pairs.log_sum_exp(sums.columns))

    def probabilities(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        z = self.strip.similarities(rows, columns) / self.temperature
        return (z - self.of_rows[rows, None]).exp_(), (z - self.of_columns[columns]).exp_()


def _probabilities(
    views: Sequence[_TeacherStrip], rows: slice, columns: slice
) -> tuple[Tensor, Tensor]:
    """Compute `q` of the image anchors and of the text anchors in a tile."""
    q_rows, q_columns = views[0].probabilities(rows, columns)
    for view in views[1:]:
        more_rows, more_columns = view.probabilities(rows, columns)
        q_rows += more_rows
        q_columns += more_columns
    if len(views) > 1:
        q_rows /= len(views)
        q_columns /= len(views)
    return q_rows, q_columns


def _require_temperatures(owner: str, temperatures: Sequence[float]) -> None:
    if not temperatures:
        raise ValueError(f"{owner}.teacher_temperatures must name at least one")
    for temperature in temperatures:
        require_temperature(f"{owner}.teacher_temperatures", temperature)


def _check_teachers(target: PairEmbeddings, teachers: Sequence[Teacher]) -> None:
    if not teachers:
        raise ValueError("distillation needs at least one teacher, got none")
    for teacher in teachers:
        require_positive(**{"a teacher's temperature": teacher.temperature})
        check_pairs(target, teacher.pairs)
