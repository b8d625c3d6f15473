"""Randomness that is a function of what it is for, and of nothing that ran before."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*parts: str | int) -> int:
    """A seed of 63 bits (what torch takes) that is unrelated for any two lists of parts."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def borrowed_random_states() -> Iterator[None]:
    """Puts the global CPU generators of torch, numpy and `random` back as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_random_states(seed: int) -> None:
    """Seeds the three; inside `borrowed_random_states`, nobody else notices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
