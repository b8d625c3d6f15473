"""Contrastive losses of plain tensors, for a training loop of one's own.

Each is a face of `ContrastiveObjective`: it brings embeddings to unit length, checks what it is
given, and keeps temperature and memory as module state, which `state_dict` holds. Learned
temperatures and biases are parameters: give `loss.parameters()` to the optimiser as well.

On K processes of torch.distributed the batch is that of all: every process passes its own pairs
and gets the same loss. Gradients of the model have to be averaged over the processes, as
DistributedDataParallel does; those of temperature and bias are averaged here, so these modules
are not to be wrapped.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drrho.contrastive.memory.temperature import Constant, Learned, PerSample, require_temperature
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import Distillation
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import ContrastiveObjective, Objective
from drrho.contrastive.objectives.siglip import SigLIP
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles.implementation import Implementation

Pairs = tuple[Float[Tensor, "batch reference_dim"], Float[Tensor, "batch reference_dim"]]
OfSeveral = tuple[Float[Tensor, "batch _"], Float[Tensor, "batch _"]]


class DRRhoCLIPLoss(nn.Module):
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
        impl: "exact" is plain code with B x B matrices, in one process; "tiles", "auto" as well,
            has memory linear in B and works over processes; "triton", kernels for a GPU, has only
            ever run in Triton's interpreter.

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
        super().__init__()
        config = DRRhoCLIP(
            temperature=_checked(temperature),
            rho=rho,
            epsilon=epsilon,
            reference_scale=reference_scale,
        )
        self.objective = _objective(config, num_samples, impl)
        self._unit = _UnitLength()

    def forward(
        self,
        image: Float[Tensor, "batch dim"],
        text: Float[Tensor, "batch dim"],
        *,
        reference: Pairs,
        sample_ids: Int[Tensor, " batch"] | None = None,
        gamma: float = 1.0,
    ) -> Float[Tensor, ""]:
        """The loss of a batch; updates what is remembered of its samples.

        Args:
            image, text: embeddings (B, d) by the model in training, of any length but zero; row i
                of both is pair i. They are normalised in float32 or wider.
            reference: embeddings (B, d_ref) of the same images and texts by the reference,
                normalised likewise; they get no gradient.
            sample_ids: place of each pair in the data set, from 0 to num_samples - 1; needed for
                gamma below 1 and for `drrho.PerSample`.
            gamma: weight of this batch in the averages, in (0, 1]; lower it in training by a
                schedule, as `drrho.training.schedules.averaging_rate`.

        Raises:
            ValueError: shapes that do not fit, ids that are missing or without effect, or an
                embedding of length zero or not finite: at once on the CPU; on a GPU, which is not
                waited for, in a later call, and until then the loss is nan.
            IndexError: an id outside the data set (of ids on a GPU, a device assertion).
        """
        target = self._unit.pairs("target", image, text)
        other = self._unit.pairs("reference", *_pair("reference", reference), like=image)
        return _global_loss(self.objective, target, other, sample_ids=sample_ids, gamma=gamma)


class FastCLIPLoss(nn.Module):
    """FastCLIP: the global contrastive risk, DRRho-CLIP's without a reference.

    >>> loss = drrho.FastCLIPLoss(num_samples=len(data), temperature=0.03)
    >>> loss(image, text, sample_ids=ids, gamma=0.8).backward()

    In units of cosine similarity.

    Args:
        num_samples, temperature, rho: as for `DRRhoCLIPLoss`.
        epsilon: floor of the sums; as published.
        impl: as for `DRRhoCLIPLoss`.

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
        super().__init__()
        config = FastCLIP(temperature=_checked(temperature), rho=rho, epsilon=epsilon)
        self.objective = _objective(config, num_samples, impl)
        self._unit = _UnitLength()

    def forward(
        self,
        image: Float[Tensor, "batch dim"],
        text: Float[Tensor, "batch dim"],
        *,
        sample_ids: Int[Tensor, " batch"] | None = None,
        gamma: float = 1.0,
    ) -> Float[Tensor, ""]:
        """The loss of a batch; updates what is remembered of its samples.

        Arguments and errors are those of `DRRhoCLIPLoss.forward`.
        """
        target = self._unit.pairs("target", image, text)
        return _global_loss(self.objective, target, None, sample_ids=sample_ids, gamma=gamma)


class CLIPLoss(nn.Module):
    """CLIP: the symmetric cross-entropy of matching the pairs of a batch, in nats.

    >>> loss = drrho.CLIPLoss(temperature=drrho.Learned())
    >>> loss(image, text).backward()

    Args:
        temperature: tau in units of cosine similarity, in (0, 1], the inverse of CLIP's logit
            scale; or `drrho.Learned`.
        impl: as for `DRRhoCLIPLoss`.

    Source: docs/mathematics.md, "CLIP and FastCLIP as special cases"; arXiv 2103.00020.
    """

    def __init__(
        self, *, temperature: float | Constant | Learned = 0.07, impl: Implementation = "auto"
    ):
        super().__init__()
        self.objective = _objective(CLIP(temperature=_checked(temperature)), None, impl)
        self._unit = _UnitLength()

    def forward(
        self, image: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, ""]:
        """The loss of a batch; arguments and errors are those of `DRRhoCLIPLoss.forward`."""
        return self.objective(self._unit.pairs("target", image, text)).loss


class SigLIPLoss(nn.Module):
    """SigLIP: the sigmoid loss of every pair of an image and a text, with a learned bias, in nats.

    >>> loss = drrho.SigLIPLoss(temperature=drrho.Learned(initial=0.1))
    >>> loss(image, text).backward()

    Args:
        temperature: as for `CLIPLoss`.
        initial_bias: b at the start, in nats, which is then learned.
        impl: as for `DRRhoCLIPLoss`, without "triton".

    Source: docs/mathematics.md, "SigLIP"; Zhai et al., arXiv 2303.15343.
    """

    def __init__(
        self,
        *,
        temperature: float | Constant | Learned = 0.1,
        initial_bias: float = -10.0,
        impl: Implementation = "auto",
    ):
        super().__init__()
        config = SigLIP(temperature=_checked(temperature), initial_bias=initial_bias)
        self.objective = _objective(config, None, impl)
        self._unit = _UnitLength()

    def forward(
        self, image: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, ""]:
        """The loss of a batch; arguments and errors are those of `DRRhoCLIPLoss.forward`."""
        return self.objective(self._unit.pairs("target", image, text)).loss


class DistillationLoss(nn.Module):
    """Cross-entropy of matching probabilities under those of teachers (MobileCLIP), in nats.

    >>> loss = drrho.DistillationLoss([0.01], temperature=drrho.Learned())
    >>> loss(image, text, teachers=[(teacher_image, teacher_text)]).backward()

    Args:
        teacher_temperatures: what each teacher was trained with, in units of cosine similarity;
            a CLIP's is the inverse of its logit scale, often 0.01. The teachers' probabilities
            are averaged.
        temperature: the target's, as for `CLIPLoss`.
        impl: as for `DRRhoCLIPLoss`.

    Source: docs/mathematics.md, "Distillation"; Vasu et al., arXiv 2311.17049.
    """

    def __init__(
        self,
        teacher_temperatures: Sequence[float],
        *,
        temperature: float | Constant | Learned = 0.07,
        impl: Implementation = "auto",
    ):
        super().__init__()
        config = Distillation(
            teacher_temperatures=tuple(teacher_temperatures), temperature=_checked(temperature)
        )
        self.objective = _objective(config, None, impl)
        self._unit = _UnitLength()

    def forward(
        self,
        image: Float[Tensor, "batch dim"],
        text: Float[Tensor, "batch dim"],
        *,
        teachers: Sequence[OfSeveral],
    ) -> Float[Tensor, ""]:
        """The loss of a batch.

        Args:
            image, text: as for `DRRhoCLIPLoss.forward`, with the same errors.
            teachers: image and text embeddings (B, d_teacher) of the same pairs by each teacher,
                in the order of `teacher_temperatures`; they get no gradient.
        """
        target = self._unit.pairs("target", image, text)
        others = [
            self._unit.pairs(f"teacher {k}", *_pair(f"teachers[{k}]", teacher), like=image)
            for k, teacher in enumerate(teachers)
        ]
        return self.objective(target, teachers=others).loss


class _UnitLength:
    """Brings embeddings to unit length, and finds those that have no direction.

    To read a flag from a GPU would wait for all that it has to do. So the flag is copied to the
    host behind that work, and looked at in the next calls.
    """

    def __init__(self) -> None:
        self._flags: list[tuple[str, Tensor]] = []

    def pairs(
        self, name: str, image: Tensor, text: Tensor, *, like: Tensor | None = None
    ) -> PairEmbeddings:
        """Unit embeddings; those that are not to be trained go to the device of `like`."""
        self._raise_found()
        found = []
        for side, given in (("image", image), ("text", text)):
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


def _checked(temperature):
    """A temperature in units of cosine similarity; a number is named as it was given."""
    if isinstance(temperature, float | int):
        require_temperature("temperature", temperature)
    return temperature


def _objective(
    config: Objective, num_samples: int | None, impl: Implementation
) -> ContrastiveObjective:
    if num_samples is None and isinstance(config.temperature, PerSample):
        raise ValueError("a temperature of each sample needs num_samples, the size of the data set")
    return ContrastiveObjective(config, num_samples=num_samples, impl=impl)


def _global_loss(
    objective: ContrastiveObjective,
    target: PairEmbeddings,
    reference: PairEmbeddings | None,
    *,
    sample_ids: Tensor | None,
    gamma: float,
) -> Tensor:
    whole = (torch.int32, torch.int64)
    if sample_ids is not None and getattr(sample_ids, "dtype", None) not in whole:
        given = getattr(sample_ids, "dtype", type(sample_ids).__name__)
        raise ValueError(f"sample_ids must be a tensor of int64 or int32, got {given}")
    if sample_ids is not None and sample_ids.shape != (len(target.image),):
        raise ValueError(
            f"sample_ids must be one for each of the {len(target.image)} pairs, got shape "
            f"{tuple(sample_ids.shape)}"
        )
    return objective(target, reference, sample_ids=sample_ids, gamma=gamma).loss
