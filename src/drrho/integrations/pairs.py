"""A contrastive objective inside a host: its reference by sample id, its temperature the host's."""

import math
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from drrho.contrastive.memory.temperature import CLIP_MINIMUM, Learned, PerSample
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.global_risk import AnchorAverages, GlobalRisk
from drrho.contrastive.objectives.objective import ContrastiveObjective, Objective
from drrho.contrastive.pairs import PairEmbeddings, check_pairs, check_unit_length
from drrho.runtime.checks import require_at_least, require_positive
from drrho.training.schedules import Schedule, averaging_rate, constant

ROWS_CHECKED = 10_000  # rows of a reference whose length is looked at

MAX_LOG_SCALE = math.log(1 / CLIP_MINIMUM)


@runtime_checkable
class FoundEmbeddings(Protocol):
    """Protocol of looked-up embeddings: unit norm, shape (B, d), with a mask of presence."""

    @property
    def image(self) -> Tensor: ...
    @property
    def text(self) -> Tensor: ...
    @property
    def present(self) -> Tensor: ...


@runtime_checkable
class EmbeddingStore(Protocol):
    """Protocol of a reader of stored embeddings, as `drrho.open_reference` returns it."""

    def gather(self, sample_ids: Int64[Tensor, " batch"]) -> FoundEmbeddings: ...


class SteeredPairs(nn.Module):
    """A contrastive loss for a host that has the model, its `logit_scale` and the optimiser.

    It looks up the reference by sample id, and leaves a pair without one out of the loss. With a
    constant temperature the host's `logit_scale` gets a gradient of zero, which
    DistributedDataParallel waits for; with a learned one `1 / logit_scale` is the temperature. So
    everything that is learned is in the host's optimiser, and this module has per-sample averages
    alone. For processes see `ContrastiveObjective`, which this module holds.

    Args:
        config: `CLIP`, `FastCLIP` or `DRRhoCLIP`; its temperature constant or learned.
        num_samples: N of the data set; ids run from 0 to N - 1.
        reference: for `DRRhoCLIP`: a store, or unit embeddings of all samples, row by id.

    Raises:
        ValueError: the config has what a host cannot give, or the reference does not fit it.
        TypeError: the reference is neither a store nor embeddings.

    Source: docs/mathematics.md, "DRRho-CLIP".
    """

    def __init__(
        self,
        config: Objective,
        *,
        num_samples: int,
        reference: EmbeddingStore | PairEmbeddings | None = None,
    ) -> None:
        super().__init__()
        check_steering(config, num_samples=num_samples, reference=reference)
        self.objective = ContrastiveObjective(config, num_samples=num_samples)
        if config.temperature.learned:
            self.objective.register_module("temperature", _HostTemperature())
        self.num_samples = num_samples
        self._reference = reference

    @property
    def config(self) -> Objective:
        return self.objective.config

    def forward(
        self,
        target: PairEmbeddings,
        *,
        sample_ids: Int[Tensor, " batch"],
        logit_scale: Float[Tensor, "..."],
        gamma: float,
    ) -> Float[Tensor, ""]:
        """Compute the loss of one optimiser step; updates the averages of its samples.

        Args:
            target: unit embeddings (B, d) of this process's pairs.
            sample_ids: position of each pair in the data set.
            logit_scale: of the host's model, after its exponential: 1 / tau. One number.
            gamma: weight of this batch in the averages, in (0, 1].

        Raises:
            ValueError: numbers of rows differ, or fewer than two pairs have a reference.
            IndexError: an id outside the data set (of ids on a GPU, a device assertion).
        """
        if len(sample_ids) != len(target.image):
            raise ValueError(
                f"sample_ids must be one for each pair, got {len(sample_ids)} for "
                f"{len(target.image)} pairs"
            )
        self._check_ids(sample_ids)
        reference = self._reference
        if isinstance(reference, PairEmbeddings):
            rows = reference.take(sample_ids.to(reference.image.device))
            reference = PairEmbeddings(*(e.to(target.image.device) for e in rows))
        elif reference is not None:
            found = reference.gather(sample_ids.cpu())
            target, sample_ids, reference = _with_reference(target, sample_ids, found)
        temperature = self.objective.temperature
        unused = 0.0 * logit_scale.sum()
        if isinstance(temperature, _HostTemperature):
            temperature.tau, unused = 1 / logit_scale.float().squeeze(), 0.0
        loss, _ = self.objective(target, reference, sample_ids=sample_ids, gamma=gamma)
        return loss + unused

    def gamma_schedule(self, *, steps: int, epochs: float) -> Schedule:
        """Make the schedule of gamma of a whole training, as `gamma_schedule`."""
        return gamma_schedule(self.config, steps=steps, epochs=epochs)

    def averages(self, sample_ids: Int[Tensor, " batch"]) -> Float[Tensor, "2 batch"] | None:
        """Read the averages of these samples, of all processes; None for a loss without memory."""
        memory = self._memory
        return None if memory is None else memory.log_u.read(sample_ids)

    def put_back(
        self, sample_ids: Int[Tensor, " batch"], averages: Float[Tensor, "2 batch"] | None
    ) -> None:
        """Restore what `averages` returned, so that a step that is computed again counts once."""
        if self._memory is not None and averages is not None:
            self._memory.log_u.update(sample_ids, averages, lambda _, earlier: earlier)

    def _check_ids(self, sample_ids: Tensor) -> None:
        """Raise IndexError for an id outside the data set, where looking costs nothing."""
        if sample_ids.device.type != "cpu" or len(sample_ids) == 0:
            return
        least, most = int(sample_ids.min()), int(sample_ids.max())
        if not 0 <= least <= most < self.num_samples:
            raise IndexError(
                "sample ids are places in the data set, from 0 to num_samples - 1 = "
                f"{self.num_samples - 1}; got {least} to {most}. Subtract 1 from ids that count "
                "from 1"
            )

    @property
    def _memory(self) -> AnchorAverages | None:
        estimator = self.objective.estimator
        return None if estimator is None else estimator.averages


class _HostTemperature(nn.Module):
    """The temperature of the host's model, set before each loss."""

    tau: Tensor

    def forward(self) -> Float[Tensor, ""]:
        return self.tau


def gamma_schedule(config: Objective, *, steps: int, epochs: float) -> Schedule:
    """Make the schedule of gamma: 1 to gamma_min over a part of the run, or constant.

    Steps and passes over the data are totals of the whole training; the passes decide gamma_min
    where the config leaves it open. Source: docs/mathematics.md, "Per-sample estimators".
    """
    if not isinstance(config, GlobalRisk):
        return constant(1.0)
    final = config.final_gamma(epochs=epochs)
    share = config.decay_share(epochs=epochs)
    return averaging_rate(final, kind=config.gamma_schedule, steps=steps, decay_share=share)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Gather a module's state from the shares of all processes, on the CPU; a collective.

    Every process gets all; `load_state_dict` on any number of processes takes its share again.
    """
    return {name: _whole(value).cpu() for name, value in module.state_dict().items()}


def set_logit_scale(model: nn.Module, temperature: float) -> None:
    """Set the model's logit scale to `1 / temperature`, in place.

    Where a learned temperature starts; and with a constant one, what the saved model should say.
    """
    require_positive(temperature=temperature)
    logit_scale(model).data.fill_(-math.log(temperature))


def logit_scale(model: nn.Module) -> nn.Parameter:
    """Return the model's parameter `logit_scale`, the logarithm of 1 / tau.

    It may be inside wrappers, such as PEFT's and torch.compile's.

    Raises:
        ValueError: the model has none, or several.
    """
    found = {n: p for n, p in model.named_parameters() if n.split(".")[-1] == "logit_scale"}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no parameter `logit_scale`; take a dual encoder, like "
            "open_clip's CLIP or transformers' CLIPModel"
        )
    if len(found) > 1:
        raise ValueError(
            f"{type(model).__name__} has several parameters `logit_scale`: {', '.join(found)}; "
            "train one dual encoder"
        )
    return next(iter(found.values()))


def check_steering(config: Objective, *, num_samples: int, reference: object) -> None:
    """Raise unless these can steer a host; see `SteeredPairs`."""
    _require_fit(config)
    require_at_least(1, num_samples=num_samples)
    if config.needs_reference != (reference is not None):
        raise ValueError(
            "reference is for DRRhoCLIP, which needs one, and for no other objective; got "
            f"{'none' if reference is None else 'one'} for {config.method!r}"
        )
    if isinstance(reference, PairEmbeddings):
        if len(reference.image) != num_samples:
            raise ValueError(
                f"reference must have a row for each of the {num_samples} samples, got "
                f"{len(reference.image)}"
            )
        check_pairs(reference, None)
        rows = slice(None, None, max(1, num_samples // ROWS_CHECKED))
        check_unit_length("reference", reference.take(rows))
    elif reference is not None and (
        isinstance(reference, Tensor) or not isinstance(reference, EmbeddingStore)
    ):  # a tensor has a `gather` as well
        raise TypeError(
            "reference must be stored embeddings, as drrho.open_reference(folder, manifest) gives "
            "them, or PairEmbeddings with a row for each sample, got "
            f"{type(reference).__name__}"
        )


def _whole(value: Tensor) -> Tensor:
    if type(value) is Tensor or type(value) is nn.Parameter:
        return value.detach()
    # A second of import, for those who need it.
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    assert isinstance(value, DTensor), type(value)
    return value.full_tensor()


def _with_reference(
    target: PairEmbeddings, sample_ids: Tensor, found: FoundEmbeddings
) -> tuple[PairEmbeddings, Tensor, PairEmbeddings]:
    """Keep the pairs that the reference has embeddings of, on the target's device."""
    device = target.image.device
    reference = PairEmbeddings(found.image.to(device), found.text.to(device))
    if bool(found.present.all()):
        return target, sample_ids, reference
    present = found.present.to(device)
    ids = sample_ids[present.to(sample_ids.device)]
    return target.take(present), ids, reference.take(present)


def _require_fit(config: Objective) -> None:
    if not isinstance(config, CLIP | GlobalRisk) or config.distillation is not None:
        raise ValueError(
            "the objective must be CLIP, FastCLIP or DRRhoCLIP without distillation inside "
            f"another trainer, got {config}; `drrho train` has all of them"
        )
    temperature = config.temperature
    per_direction = isinstance(temperature, Learned) and temperature.per_direction
    if isinstance(temperature, PerSample) or per_direction:
        raise ValueError(
            "objective.temperature must be constant or learned inside another trainer, whose "
            f"model has one logit_scale, got {temperature}; `drrho train` has all of them"
        )
    if isinstance(temperature, Learned) and temperature != Learned():
        raise ValueError(
            "objective.temperature has no effect but by its kind where it is learned: it is the "
            "logit_scale of the model; use set_logit_scale(model, temperature) for its start"
        )
