"""Seeds derived from names, and the states of the global random generators."""

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derived_seed(*parts: str | int) -> int:
    """Derive a seed of 63 bits (what torch takes), unrelated for any two lists of parts."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_generators(seed: int) -> None:
    """Seed torch's CPU generator, NumPy's and Python's."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs


def seed_all_generators(seed: int) -> None:
    """Seed the generators of the CPU, and of the GPU, if one is in use."""
    seed_generators(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


def capture_generators() -> dict[str, Any]:
    """Read the states of torch's, NumPy's and Python's global generators.

    CUDA means the current device's generator; it is left out where CUDA is not in use, as in a
    worker that was forked from a process that uses it.
    """
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": (name, np.asarray(keys).tolist(), position, has_gauss, cached_gaussian),
        "python": random.getstate(),
    }


def restore_generators(states: Mapping[str, Any]) -> None:
    """Set the generators to what `capture_generators` returned, CUDA's where there is CUDA."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the generators at the end of the block."""
    states = capture_generators()
    try:
        yield
    finally:
        restore_generators(states)
