"""A table of numbers per data-set sample, sharded over the processes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from drrho.runtime.checks import require_at_least
from drrho.runtime.distributed import Partition, ProcessGroup, equal_partition, partition

Rule = Callable[[Tensor, Tensor], Tensor]


class SampleBatch(NamedTuple):
    """The samples of a batch of all processes, and which of them this process owns."""

    pairs: Partition
    same: Int64[Tensor, " batch"]  # a number below B, equal for pairs of the same sample
    owned: slice | Int64[Tensor, " owned"]  # the pairs whose samples are in this process's share
    place: Int64[Tensor, " owned"]  # of those samples, in the share

    def owned_means(
        self, values: Float[Tensor, "2 own"], *, of_logarithms: bool = False
    ) -> Float[Tensor, "2 owned"]:
        """Bring the values of all pairs to the owners of their samples; a collective.

        Pairs of the same sample get the mean of their values; logarithms are exponentiated before
        the mean and logged again after it.
        """
        everyone = self.pairs.all_gather(values.T).T
        return _means(self.same, everyone, of_logarithms=of_logarithms)[:, self.owned]

    def answer(self, entries: Float[Tensor, "2 owned"]) -> Float[Tensor, "2 own"]:
        """Bring entries from the owners of the samples to the pairs' processes; a collective."""
        if self.pairs.num_processes == 1:
            return entries
        everyone = entries.new_zeros(self.pairs.num_rows, 2)
        everyone[self.owned] = entries.T
        return self.pairs.reduce_scatter(everyone).T


class SampleTable(nn.Module):
    """A float32 number per data-set sample and direction: 8 bytes per sample, on K processes.

    Process k owns the k-th block of `ceil(N / K)` ids, and reads and writes their entries. `locate`
    gathers the ids of all B pairs, once for all tables of the same samples; `update` gathers the
    new numbers; and the answer of either is a reduce-scatter, in which all but the owner have
    zeros. Each is one collective of O(B) numbers, whatever N.

    The state dictionary holds the table of all samples, as a sharded DTensor if K > 1:
    torch.distributed.checkpoint writes each share once. That, or a whole tensor that one process
    saved, loads into any number of processes.

    Args:
        num_samples: N; ids run from 0 to N - 1.
        initial: the value of every entry at the start.
        group: whose processes share the table; None is the default group, or this process alone
            without one.
    """

    entries: Tensor

    def __init__(self, num_samples: int, *, initial: float, group: ProcessGroup | None = None):
        super().__init__()
        require_at_least(1, num_samples=num_samples)
        self._owners = equal_partition(num_samples, group=group)
        num_owned = self._owners.sizes[self._owners.rank]
        self.register_buffer("entries", torch.full((2, num_owned), initial))

    @property
    def num_samples(self) -> int:
        """N, the number of samples of all processes together."""
        return self._owners.num_rows

    @torch.no_grad()
    def read(self, sample_ids: Int[Tensor, " batch"] | SampleBatch) -> Float[Tensor, "2 batch"]:
        """Look up the entries of this process's pairs; a collective."""
        batch = self.locate(sample_ids)
        return batch.answer(self._entries_of(batch).to(batch.same.device))

    @torch.no_grad()
    def update(
        self,
        sample_ids: Int[Tensor, " batch"] | SampleBatch,
        values: Float[Tensor, "2 batch"],
        rule: Rule,
        *,
        of_logarithms: bool = False,
    ) -> Float[Tensor, "2 batch"]:
        """`entry <- rule(entry, values)` for the samples of all pairs; a collective.

        A sample that comes more than once, in one process's pairs or in several's, is updated
        once, with the mean of its values. Where that is nan or infinity the entry stays.

        Args:
            sample_ids: of this process's pairs, or what `locate` made of them.
            values: new numbers for them, on the device of the batch.
            rule: old entries and values to new entries, in the precision of the values.
            of_logarithms: as for `SampleBatch.owned_means`.

        Returns:
            The new entries of this process's pairs, in the precision of `values`.

        Raises:
            IndexError: as `locate`.
        """
        if isinstance(sample_ids, Tensor):
            sample_ids = self.locate(sample_ids.to(values.device))
        owned = sample_ids.owned_means(values, of_logarithms=of_logarithms)
        return sample_ids.answer(self.update_owned(sample_ids, owned, rule))

    @torch.no_grad()
    def update_owned(
        self, batch: SampleBatch, values: Float[Tensor, "2 owned"], rule: Rule
    ) -> Float[Tensor, "2 owned"]:
        """`entry <- rule(entry, values)` for the samples in this process's share; no collective.

        The values belong to the pairs, of all processes, whose samples this process owns. They are
        equal for equal samples; the new entries are returned.
        """
        before = self._entries_of(batch).to(values)
        after = rule(before, values)
        # A step that is left out because something overflowed must leave no trace.
        kept = torch.where(values.isnan() | values.isposinf(), before, after)
        self.entries[:, batch.place.to(self.entries.device)] = kept.to(self.entries)
        return after

    def _entries_of(self, batch: SampleBatch) -> Tensor:
        return self.entries[:, batch.place.to(self.entries.device)]

    def locate(
        self, sample_ids: Int[Tensor, " batch"] | SampleBatch, pairs: Partition | None = None
    ) -> SampleBatch:
        """Find the samples of all processes' pairs, and which this process owns; a collective.

        The result serves every table of the same samples and group.

        Args:
            sample_ids: of this process's pairs, on the device of the collectives; or a result,
                which is returned as it is.
            pairs: how many pairs each process has; None asks them.

        Raises:
            IndexError: an id outside the data set (of ids on a GPU, with one process, a device
                assertion when the table is read).
        """
        if isinstance(sample_ids, SampleBatch):
            return sample_ids
        owners, device = self._owners, sample_ids.device
        if pairs is None:
            pairs = partition(len(sample_ids), group=owners.group, device=device)
        everyone = pairs.all_gather(sample_ids)
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
        return SampleBatch(pairs, _numbered(everyone), owned, place[owned])

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[prefix + "entries"] = self._owners.to_dtensor(
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
            state_dict = {**state_dict, name: self._owners.to_local(state_dict[name])}
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _numbered(ids: Int[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
    """Number the ids from 0 to B - 1, equal ids equally, without a device synchronisation."""
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
