"""Stored tensors whose blocks are compared with checksums when they are first read."""

import zlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

BLOCK_BYTES = 2**16  # bytes under one checksum: read whole when the first of them is needed
DIGITS = 8  # hexadecimal digits of a CRC-32


def checksums_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Compute the CRC-32 of every block of each tensor, all in one text of hexadecimal digits."""
    return {
        name: "".join(
            f"{zlib.crc32(content[start : start + BLOCK_BYTES]):0{DIGITS}x}"
            for start in range(0, len(content), BLOCK_BYTES)
        )
        for name, content in ((name, _bytes_of(tensor)) for name, tensor in tensors.items())
    }


class CheckedTensor:
    """A tensor that is mapped into memory, with the checksums of its blocks.

    Args:
        values: the tensor.
        checksums: its own of `checksums_of`; None checks nothing.
        checked: whether each block was compared, which outlives the mapping; None begins anew.
        damaged: makes the error for a block that differs.

    Raises:
        ValueError: there is not one checksum for each block.
    """

    def __init__(
        self,
        values: Shaped[Tensor, "..."],
        checksums: str | None,
        *,
        checked: bytearray | None = None,
        damaged: Callable[[str], ValueError],
    ) -> None:
        self.values = values
        self._checksums, self._damaged = checksums, damaged
        self.checked = bytearray(-(-values.nbytes // BLOCK_BYTES)) if checked is None else checked
        if checksums is not None and len(checksums) != DIGITS * len(self.checked):
            raise damaged(
                f"there are {len(checksums)} digits of checksums for {values.nbytes} bytes"
            )

    def rows(self, rows: Int64[Tensor, " some"]) -> Shaped[Tensor, "some ..."]:
        """Return some rows; raises ValueError if one is in a damaged block."""
        if self._checksums is not None and len(rows) > 0 and not all(self.checked):
            row_bytes = self.values[:1].nbytes
            first = rows.numpy() * row_bytes // BLOCK_BYTES
            last = ((rows.numpy() + 1) * row_bytes - 1) // BLOCK_BYTES
            for further in range(int((last - first).max()) + 1):
                self._check(np.unique(np.minimum(first + further, last)).tolist())
        # index_select copies whole rows; indexing with [] is 25 times slower here.
        return self.values.index_select(0, rows)

    def whole(self) -> Shaped[Tensor, "..."]:
        """Return the tensor; raises ValueError if one of its blocks is damaged."""
        if self._checksums is not None:
            self._check(range(len(self.checked)))
        return self.values

    def _check(self, blocks: Iterable[int]) -> None:
        assert self._checksums is not None
        content = None
        for block in blocks:
            if self.checked[block]:
                continue
            content = _bytes_of(self.values) if content is None else content
            start = block * BLOCK_BYTES
            found = f"{zlib.crc32(content[start : start + BLOCK_BYTES]):0{DIGITS}x}"
            if found != self._checksums[DIGITS * block : DIGITS * (block + 1)]:
                end = min(start + BLOCK_BYTES, len(content))
                raise self._damaged(f"the bytes from {start:,} to {end:,} of a tensor were changed")
            self.checked[block] = True


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
