"""Losses that the tests of several risks share."""

import pytest
import torch


@pytest.fixture
def losses():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 7, dtype=torch.float64, generator=generator)
