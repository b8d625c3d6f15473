"""Contrastive losses of plain tensors, for a training loop of one's own.

Each is a face of `ContrastiveObjective`: it brings embeddings to unit length, checks what it is
given, and keeps temperature and memory as module state, which `state_dict` holds. Learned
temperatures and biases are parameters: give `loss.parameters()` to the optimiser as well.

Embeddings may have any length but zero, and are normalised in float32 or wider; those by other
models get no gradient. A temperature is the inverse of CLIP's logit scale.

Errors are ValueError for shapes that do not fit, ids that are missing or without effect, or an
embedding of length zero or not finite: at once on the CPU; on a GPU, which is not waited for, in a
later call, and until then the loss is nan. IndexError is for an id outside the data set (of ids on
a GPU, a device assertion).

On K processes of torch.distributed the batch consists of all their pairs: every process passes
its own and gets the same loss. Gradients of the model have to be averaged over the processes, as
DistributedDataParallel does; gradients of temperature and bias are averaged here, so these modules
are not to be wrapped.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drrho.contrastive.memory.temperature import Constant, Learned, PerSample
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import Distillation
from drrho.contrastive.objectives.gist import GIST
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import ContrastiveObjective, Objective
from drrho.contrastive.objectives.siglip import SigLIP
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles.implementation import Implementation
from drrho.contrastive.tiles.tiling import JOINT

Embeddings = Float[Tensor, "batch dim"]
Pairs = tuple[Float[Tensor, "batch reference_dim"], Float[Tensor, "batch reference_dim"]]
OfSeveral = tuple[Float[Tensor, "batch _"], Float[Tensor, "batch _"]]
Ids = Int[Tensor, " batch"]


class _ContrastiveLoss(nn.Module):
    """Base of the losses: an objective, given embeddings that are brought to unit length."""

    def __init__(self, config: Objective, impl: Implementation, num_samples: int | None = None):
        super().__init__()
        self.objective = ContrastiveObjective(config, num_samples=num_samples, impl=impl)
        self._unit = UnitLength()


class DRRhoCLIPLoss(_ContrastiveLoss):
    """DRRho-CLIP: the global contrastive risk on the excess over a reference.

    >>> loss = drrho.DRRhoCLIPLoss(num_samples=len(data), temperature=0.01)
    >>> loss(image, text, reference=(ref_image, ref_text), sample_ids=ids).backward()

    In units of cosine similarity. With gamma = 1 it is the risk of the batch; with gamma below 1
    the sum of each anchor is averaged over the batches that it has been in.

    Args:
        num_samples: size of the data set, for what is remembered of each sample; None remembers
            nothing, and then gamma is 1.
        temperature: tau in units of cosine similarity, in (0, 1]; or `drrho.Learned`,
            `drrho.PerSample`, which need `rho`.
        rho: radius of the ambiguity set in nats; given exactly if the temperature is learned.
        epsilon: floor of the sums; as published.
        reference_scale: factor of the reference's cosines.
        impl: as for `ContrastiveObjective`.

    Source: docs/mathematics.md, "DRRho-CLIP"; arXiv 2505.06699.
    """

    def __init__(
        self,
        num_samples: int | None = None,
        *,
        temperature: float | Constant | Learned | PerSample = 0.07,
        rho: float | None = None,
        epsilon: float = 1e-4,
        reference_scale: float = 1.0,
        impl: Implementation = "auto",
    ):
        config = DRRhoCLIP(
            temperature=temperature, rho=rho, epsilon=epsilon, reference_scale=reference_scale
        )
        super().__init__(config, impl, num_samples)

    def forward(
        self,
        image: Embeddings,
        text: Embeddings,
        *,
        reference: Pairs,
        sample_ids: Ids | None = None,
        gamma: float = 1.0,
    ) -> Float[Tensor, ""]:
        """Compute the loss of a batch; updates what is remembered of its samples.

        Args:
            image, text: embeddings (B, d) by the model in training; row i of both is pair i.
            reference: embeddings (B, d_ref) of the same images and texts by the reference.
            sample_ids: place of each pair in the data set, from 0 to num_samples - 1; needed for
                gamma below 1 and for `drrho.PerSample`.
            gamma: weight of this batch in the averages, in (0, 1]; lower it in training by a
                schedule, as `drrho.training.schedules.averaging_rate`.

        Raises:
            ValueError, IndexError: see `drrho.contrastive.losses`.
        """
        target = self._unit.pairs("target", image, text)
        other = self._unit.pairs("reference", *_pair("reference", reference), like=image)
        ids = checked_ids(sample_ids, len(image))
        return self.objective(target, other, sample_ids=ids, gamma=gamma).loss


class FastCLIPLoss(_ContrastiveLoss):
    """FastCLIP: the global contrastive risk, DRRho-CLIP's without a reference.

    >>> loss = drrho.FastCLIPLoss(num_samples=len(data), temperature=0.03)
    >>> loss(image, text, sample_ids=ids, gamma=0.8).backward()

    In units of cosine similarity. Arguments are as in `DRRhoCLIPLoss`.

    Source: docs/mathematics.md, "Per-sample estimators"; Wei et al., arXiv 2407.01445.
    """

    def __init__(
        self,
        num_samples: int | None = None,
        *,
        temperature: float | Constant | Learned | PerSample = 0.07,
        rho: float | None = None,
        epsilon: float = 1e-14,
        impl: Implementation = "auto",
    ):
        config = FastCLIP(temperature=temperature, rho=rho, epsilon=epsilon)
        super().__init__(config, impl, num_samples)

    def forward(
        self,
        image: Embeddings,
        text: Embeddings,
        *,
        sample_ids: Ids | None = None,
        gamma: float = 1.0,
    ) -> Float[Tensor, ""]:
        """Compute the loss of a batch; arguments are as in `DRRhoCLIPLoss.forward`."""
        target = self._unit.pairs("target", image, text)
        ids = checked_ids(sample_ids, len(image))
        return self.objective(target, sample_ids=ids, gamma=gamma).loss


class CLIPLoss(_ContrastiveLoss):
    """CLIP: the symmetric cross-entropy of matching the pairs of a batch, in nats.

    >>> loss = drrho.CLIPLoss(temperature=drrho.Learned())
    >>> loss(image, text).backward()

    Arguments are as in `DRRhoCLIPLoss`.

    Source: docs/mathematics.md, "CLIP and FastCLIP as special cases"; arXiv 2103.00020.
    """

    def __init__(
        self, *, temperature: float | Constant | Learned = 0.07, impl: Implementation = "auto"
    ):
        super().__init__(CLIP(temperature=temperature), impl)

    def forward(self, image: Embeddings, text: Embeddings) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        return self.objective(self._unit.pairs("target", image, text)).loss


class SigLIPLoss(_ContrastiveLoss):
    """SigLIP: the sigmoid loss of every pair of an image and a text, in nats.

    >>> loss = drrho.SigLIPLoss(temperature=drrho.Learned(initial=0.1))
    >>> loss(image, text).backward()

    Args:
        temperature, impl: as for `DRRhoCLIPLoss`, without `PerSample` and "triton".
        initial_bias: b at the start, in nats, which is then learned.

    Source: docs/mathematics.md, "SigLIP"; Zhai et al., arXiv 2303.15343.
    """

    def __init__(
        self,
        *,
        temperature: float | Constant | Learned = 0.1,
        initial_bias: float = -10.0,
        impl: Implementation = "auto",
    ):
        super().__init__(SigLIP(temperature=temperature, initial_bias=initial_bias), impl)

    def forward(self, image: Embeddings, text: Embeddings) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        return self.objective(self._unit.pairs("target", image, text)).loss


class GISTLoss(_ContrastiveLoss):
    """GIST: cross-entropy without the negatives that a guide finds more alike than the pair.

    >>> loss = drrho.GISTLoss(temperature=0.01)
    >>> loss(image, text, guide=(guide_image, guide_text)).backward()

    In nats. With its defaults it is sentence-transformers' `GISTEmbedLoss`, where "image" is the
    anchor and "text" its positive.

    Args:
        temperature: as for `DRRhoCLIPLoss`, without `PerSample`.
        margin: by how much a negative's similarity must be below the pair's own, for the guide.
        within: whether anchors are negatives of each other too, and positives of each other.
        impl: as for `ContrastiveObjective`, without "triton".

    Source: docs/mathematics.md, "GIST"; Solatorio, arXiv 2402.16829.
    """

    def __init__(
        self,
        *,
        temperature: float | Constant | Learned = 0.07,
        margin: float = 0.0,
        within: bool = True,
        impl: Implementation = "auto",
    ):
        super().__init__(GIST(temperature=temperature, margin=margin, within=within), impl)

    def forward(self, image: Embeddings, text: Embeddings, *, guide: Pairs) -> Float[Tensor, ""]:
        """Compute the loss of a batch.

        Args:
            image, text: as for `DRRhoCLIPLoss.forward`.
            guide: embeddings (B, d_guide) of the same images and texts by the guide.
        """
        target = self._unit.pairs("target", image, text)
        other = self._unit.pairs("guide", *_pair("guide", guide), like=image)
        return self.objective(target, other).loss


class DistillationLoss(_ContrastiveLoss):
    """Cross-entropy of matching probabilities against the teachers' (MobileCLIP), in nats.

    >>> loss = drrho.DistillationLoss([0.01], temperature=drrho.Learned())
    >>> loss(image, text, teachers=[(teacher_image, teacher_text)]).backward()

    Args:
        teacher_temperatures: what each teacher was trained with, in units of cosine similarity;
            a CLIP's is the inverse of its logit scale, often 0.01. The teachers' probabilities
            are averaged.
        temperature, impl: the target's, as for `DRRhoCLIPLoss`, without `PerSample`; by default
            in joint passes over the tiles (`drrho.Tiling`).

    Source: docs/mathematics.md, "Distillation"; Vasu et al., arXiv 2311.17049.
    """

    def __init__(
        self,
        teacher_temperatures: Sequence[float],
        *,
        temperature: float | Constant | Learned = 0.07,
        impl: Implementation = JOINT,
    ):
        temperatures = tuple(teacher_temperatures)
        super().__init__(
            Distillation(teacher_temperatures=temperatures, temperature=temperature), impl
        )

    def forward(
        self, image: Embeddings, text: Embeddings, *, teachers: Sequence[OfSeveral]
    ) -> Float[Tensor, ""]:
        """Compute the loss of a batch.

        Args:
            image, text: as for `DRRhoCLIPLoss.forward`.
            teachers: image and text embeddings (B, d_teacher) of the same pairs by each teacher,
                in the order of `teacher_temperatures`.
        """
        target = self._unit.pairs("target", image, text)
        others = [
            self._unit.pairs(f"teacher {k}", *_pair(f"teachers[{k}]", teacher), like=image)
            for k, teacher in enumerate(teachers)
        ]
        return self.objective(target, teachers=others).loss


class UnitLength:
    """Brings embeddings to unit length, and finds those that have no direction.

    Args:
        sides: what the two embeddings of a pair are called in messages.

    Reading a flag from a GPU waits for its queued work; it is copied, and looked at in later calls.
    """

    def __init__(self, sides: tuple[str, str] = ("image", "text")) -> None:
        self._sides = sides
        self._flags: list[tuple[str, Tensor]] = []

    def pairs(
        self, name: str, image: Tensor, text: Tensor, *, like: Tensor | None = None
    ) -> PairEmbeddings:
        """Normalise embeddings; those that are not to be trained go to the device of `like`."""
        self._raise_found()
        found = []
        for side, given in zip(self._sides, (image, text), strict=True):
            if given.ndim != 2 or not given.is_floating_point():
                raise ValueError(
                    f"{name} {side} embeddings must be (pairs, dimension) of a float type, got "
                    f"{tuple(given.shape)} of {given.dtype}"
                )
            other = given if like is None else given.detach().to(like.device, non_blocking=True)
            found.append(self._normalised(f"{name} {side}", other))
        return PairEmbeddings(*found)

    def _normalised(self, name: str, embeddings: Tensor) -> Tensor:
        wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        flag = ~((lengths.detach() > 0) & lengths.detach().isfinite()).all()
        if flag.device.type == "cuda":
            host = torch.full((), _UNKNOWN, dtype=torch.uint8, pin_memory=True)
            self._flags.append((name, host.copy_(flag, non_blocking=True)))
        elif flag:
            raise ValueError(_without_direction(name))
        return wide / lengths  # nan, where there is no direction

    def _raise_found(self) -> None:
        seen = [(name, int(flag)) for name, flag in self._flags]
        self._flags = [it for it, (_, value) in zip(self._flags, seen, strict=True) if value > 1]
        for name, value in seen:
            if value == 1:
                self._flags = []
                raise ValueError(f"in an earlier batch, {_without_direction(name)}")


_UNKNOWN = 2  # of a flag that the GPU has not written yet


def _without_direction(name: str) -> str:
    return (
        f"{name} embeddings have a row of length zero or one that is not finite, which has no "
        "cosine similarity; leave such pairs out of the batch"
    )


def _pair(name: str, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(
            f"{name} must be a pair (image embeddings, text embeddings), got {type(given).__name__}"
        )
    return given[0], given[1]


def checked_ids(sample_ids: Tensor | None, num_pairs: int) -> Tensor | None:
    """Return the ids, one whole number for each pair, or None.

    Raises:
        ValueError: they are of another type, or their number is another.
    """
    dtype = getattr(sample_ids, "dtype", type(sample_ids).__name__)
    if sample_ids is not None and dtype not in (torch.int32, torch.int64):
        raise ValueError(f"sample_ids must be a tensor of int64 or int32, got {dtype}")
    if sample_ids is not None and sample_ids.shape != (num_pairs,):
        raise ValueError(
            f"sample_ids must be one for each of the {num_pairs} pairs, got shape "
            f"{tuple(sample_ids.shape)}"
        )
    return sample_ids
