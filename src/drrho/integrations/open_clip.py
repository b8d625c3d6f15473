"""open_clip's own training code, steered: a loss and data that carry sample ids to it.

    loss = SteeredClipLoss(config, num_samples=N, reference=store, steps=S, epochs=E)
    data = {"train": DataWithIds(batches_of_epoch, loss, num_samples=N, num_batches=M)}
    train_one_epoch(model, data, loss, epoch, optimizer, scaler, scheduler, None, args)

open_clip itself is not imported here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drrho.contrastive.objectives.objective import Objective
from drrho.contrastive.pairs import PairEmbeddings
from drrho.integrations.pairs import EmbeddingStore, SteeredPairs

ID_KEY = "sample_id"  # of batches that are dictionaries

BatchesOfEpoch = Callable[[int], Iterable[Any]]


class SteeredClipLoss(nn.Module):
    """A loss with the signature of open_clip's `ClipLoss`, for `train_one_epoch` and `CLIPTask`.

    It is told the ids of the batches that come by `DataWithIds`. With `--accum-freq k` open_clip
    calls the loss k times on the rows of k batches, each time with the gradient of another part.
    Those calls are one step here: the averages are put back between them, and updated once.

    open_clip's checkpoints have no state of a loss: save `state_dict()` of this beside them (over
    several processes `drrho.integrations.pairs.whole_state`), and load it when resuming.

    Args:
        config, num_samples, reference: as for `SteeredPairs`.
        steps: optimiser steps of the whole training, for the schedule of gamma.
        epochs: of the whole training.
    """

    step: Tensor

    def __init__(
        self,
        config: Objective,
        *,
        num_samples: int,
        steps: int,
        epochs: float,
        reference: EmbeddingStore | PairEmbeddings | None = None,
    ) -> None:
        super().__init__()
        self.pairs = SteeredPairs(config, num_samples=num_samples, reference=reference)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._gamma = self.pairs.gamma_schedule(steps=steps, epochs=epochs)
        self._arrived: list[Tensor] = []
        self._ids: Tensor | None = None
        self._before: Tensor | None = None

    def expect(self, sample_ids: Int[Tensor, " batch"]) -> None:
        """Announce the ids of the next batch of the trainer, in order; called by the data."""
        self._arrived.append(sample_ids)

    def forward(
        self,
        image_features: Float[Tensor, "batch dim"],
        text_features: Float[Tensor, "batch dim"],
        logit_scale: Float[Tensor, "..."],
        output_dict: bool = False,
    ) -> Float[Tensor, ""] | dict[str, Tensor]:
        """Compute the loss of all batches since the last step, or of the same ones again.

        Raises:
            ValueError: no ids have arrived, or not as many as there are rows.
        """
        again = not self._arrived
        if not again:
            self._ids = torch.cat(self._arrived).to(image_features.device)
            self._arrived.clear()
        ids = self._ids
        if ids is None or len(ids) != len(image_features):
            raise ValueError(
                f"the loss got {len(image_features)} pairs and the ids of "
                f"{0 if ids is None else len(ids)}; give the trainer its batches through "
                "DataWithIds, made with this loss, and nothing besides"
            )
        if again:
            self.pairs.put_back(ids, self._before)
        else:
            self._before = self.pairs.averages(ids)
            self.step += 1
        loss = self.pairs(
            PairEmbeddings(image_features, text_features),
            sample_ids=ids,
            logit_scale=logit_scale,
            gamma=self._gamma(int(self.step) - 1),
        )
        return {"contrastive_loss": loss} if output_dict else loss


class DataWithIds:
    """Training data of open_clip's trainers, `data["train"]`, that passes sample ids to the loss.

    Args:
        batches_of_epoch: epoch to its batches: (images, texts, sample ids), or dictionaries with
            the ids as `sample_id`.
        loss: module that is told the ids.
        num_samples, num_batches: of an epoch, for open_clip's log and schedules.
    """

    def __init__(
        self,
        batches_of_epoch: BatchesOfEpoch,
        loss: SteeredClipLoss,
        *,
        num_samples: int,
        num_batches: int,
    ) -> None:
        self.num_samples = num_samples
        self.num_batches = num_batches
        self._batches_of_epoch = batches_of_epoch
        self._loss = loss
        self._epoch = 0

    @property
    def dataloader(self) -> "DataWithIds":
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, as the trainers do before each."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches_of_epoch(self._epoch):
            ids, rest = _ids_and_rest(batch)
            self._loss.expect(ids)
            yield rest


def _ids_and_rest(batch: Any) -> tuple[Tensor, Any]:
    match batch:
        case {"sample_id": Tensor() as ids, **rest}:
            return ids, rest
        case Mapping():
            raise ValueError(f"a batch has no ids as {ID_KEY!r}, only {', '.join(batch)}")
        case [images, texts, Tensor() as ids]:
            return ids, (images, texts)
        case _:
            size = len(batch) if isinstance(batch, Sequence) else type(batch).__name__
            raise ValueError(
                f"a batch must be images, texts and sample ids, got {size}; let the data set "
                "return each sample's index as its third"
            )
