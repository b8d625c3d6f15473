"""Numbers that are remembered for every sample of a data set, each process holding its share."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from drrho.runtime.distributed import Partition, ProcessGroup, equal_partition, partition

Rule = Callable[[Tensor, Tensor], Tensor]


class SampleTable(nn.Module):
    """A float32 number per data-set sample and direction: 8 bytes per sample, on K processes.

    Process k has the samples of the k-th block of `ceil(N / K)` ids. A batch's entries are read and
    written by their owners: ids and arriving numbers of all B pairs are gathered, the owner of an
    id answers, and everyone gets the entries of its own pairs from a sum in which all but the
    owner have zeros. That is 4 messages of O(B) numbers, whatever N.

    The state dictionary holds the table of all samples, as a sharded DTensor if K > 1. So
    torch.distributed.checkpoint writes each share once, and any other number of processes reads
    it again. A whole tensor, saved by one process, loads into any number of processes too.

    Args:
        num_samples: N; ids run from 0 to N - 1.
        initial: of every entry.
        group: whose processes share the table; None is the default group, or this process alone
            without one.
    """

    entries: Tensor

    def __init__(self, num_samples: int, *, initial: float, group: ProcessGroup | None = None):
        super().__init__()
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self._owners = equal_partition(num_samples, group=group)
        num_owned = self._owners.sizes[self._owners.rank]
        self.register_buffer("entries", torch.full((2, num_owned), initial))

    @property
    def num_samples(self) -> int:
        """Of all processes."""
        return self._owners.num_rows

    @torch.no_grad()
    def read(self, sample_ids: Int[Tensor, " batch"]) -> Float[Tensor, "2 batch"]:
        """The entries of this process's pairs; a collective."""
        batch = self._batch(sample_ids, device=sample_ids.device)
        entries = self.entries[:, batch.place].to(sample_ids.device)
        return self._answer(batch, entries)

    @torch.no_grad()
    def update(
        self,
        sample_ids: Int[Tensor, " batch"],
        arriving: Float[Tensor, "2 batch"],
        rule: Rule,
        *,
        of_logarithms: bool = False,
    ) -> Float[Tensor, "2 batch"]:
        """`entry <- rule(entry, arriving)` for the samples of all pairs; a collective.

        A sample that comes more than once, in one process's pairs or in several's, is updated
        once, with the mean of what arrives for it. Where that is nan or infinity the entry stays.

        Args:
            sample_ids: of this process's pairs.
            arriving: for them, on the device of the batch.
            rule: old entries and arriving numbers to new entries, in the precision of the latter.
            of_logarithms: the mean is the logarithm of the mean of the exponentials.

        Returns:
            The new entries of this process's pairs, in the precision of `arriving`.

        Raises:
            IndexError: an id outside the data set (of ids on a GPU, with one process, a device
                assertion).
        """
        batch = self._batch(sample_ids, device=arriving.device)
        everyone = batch.pairs.gather(arriving.T).T
        everyone = _means(batch.same, everyone, of_logarithms=of_logarithms)
        everyone = everyone[:, batch.owned]
        before = self.entries[:, batch.place].to(everyone)
        after = rule(before, everyone)
        # A step that is left out because something overflowed must leave no trace.
        kept = torch.where(everyone.isnan() | everyone.isposinf(), before, after)
        self.entries[:, batch.place] = kept.to(self.entries)
        return self._answer(batch, after)

    def _batch(self, sample_ids: Tensor, *, device: torch.device) -> "_Batch":
        """Of the pairs of all processes, on the device on which they speak."""
        owners = self._owners
        pairs = partition(len(sample_ids), group=owners.group, device=device)
        everyone = pairs.gather(sample_ids.to(device))
        # One process with its ids on a GPU would wait for it here; indexing asserts there.
        if owners.num_processes > 1 or device.type == "cpu":
            outside = everyone[(everyone < 0) | (everyone >= owners.num_rows)]
            if len(outside):
                raise IndexError(
                    f"sample ids must be between 0 and {owners.num_rows - 1}, the last of the data "
                    f"set that the loss was made for, got {outside[:5].tolist()}"
                )
        place = everyone - owners.start
        owned = slice(None)
        if owners.num_processes > 1:
            owned = ((place >= 0) & (place < owners.sizes[owners.rank])).nonzero().squeeze(1)
        return _Batch(pairs, _numbered(everyone), owned, place[owned].to(self.entries.device))

    def _answer(self, batch: "_Batch", entries: Tensor) -> Tensor:
        if batch.pairs.num_processes == 1:
            return entries
        everyone = entries.new_zeros(batch.pairs.num_rows, 2)
        everyone[batch.owned] = entries.T
        return batch.pairs.own_of_sum(everyone).T

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[prefix + "entries"] = self._owners.sharded(
            self.entries if keep_vars else self.entries.detach()
        )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any
    ) -> None:
        name = prefix + "entries"
        if name in state_dict:
            num_saved = state_dict[name].shape[-1]
            if num_saved != self.num_samples:
                *_, messages = arguments
                messages.append(
                    f"{name} is of {num_saved} samples, and this data set has {self.num_samples}"
                )
                return
            state_dict = {**state_dict, name: self._owners.own_of_sharded(state_dict[name])}
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class _Batch(NamedTuple):
    """The pairs of a batch of all processes, and which of them this process answers for.

    Attributes:
        pairs: who has which.
        same: equal for pairs of the same sample, from 0 to B - 1.
        owned: those whose samples are in this process's share.
        place: of those, in the share.
    """

    pairs: Partition
    same: Int64[Tensor, " batch"]
    owned: slice | Int64[Tensor, " owned"]
    place: Int64[Tensor, " owned"]


def _numbered(ids: Int[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
    """Equal ids get equal numbers below B, without waiting for the device as `unique` would."""
    ordered, order = ids.sort()
    differs = torch.ones_like(ordered, dtype=torch.int64)
    differs[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(differs).scatter_(0, order, differs.cumsum(0) - 1)


def _means(
    same: Int64[Tensor, " batch"], values: Float[Tensor, "2 batch"], *, of_logarithms: bool
) -> Float[Tensor, "2 batch"]:
    index = same.expand_as(values)
    if not of_logarithms:
        sums = torch.zeros_like(values).scatter_add_(1, index, values)
        counts = torch.zeros_like(values).scatter_add_(1, index, torch.ones_like(values))
        return (sums / counts.clamp_min(1)).gather(1, index)
    largest = torch.zeros_like(values).scatter_reduce_(
        1, index, values, reduce="amax", include_self=False
    )
    largest = largest.gather(1, index)
    return largest + _means(same, (values - largest).exp(), of_logarithms=False).log()
