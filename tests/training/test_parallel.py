"""Parameters that no backward pass reaches: several processes train as one does."""

import pytest
import torch
from tests.processes import run
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from drrho.training.parallel import replicate, shard, unreached_parameters, whole_weights

INPUTS = torch.linspace(-1, 1, 24).view(8, 3)


class Partly(nn.Module):
    """A mask token and another loss's bias are not reached; statistics change in a pass."""

    def __init__(self, *, recomputed=False):
        super().__init__()
        torch.manual_seed(0)
        self.mask_token = nn.Parameter(torch.ones(3))
        self.logit_bias = nn.Parameter(torch.tensor(2.0))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.layer = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.dropout = nn.Dropout(0.5)
        self.recomputed = recomputed

    def forward(self, x):
        if self.recomputed:
            return (checkpoint(self.layer, x + self.frozen, use_reentrant=False),)
        return (self.dropout(self.norm(self.layer(x + self.frozen))),)


@pytest.mark.parametrize("recomputed", [False, True])
def test_what_a_backward_pass_reaches_is_found_and_nothing_is_changed(recomputed):
    module = Partly(recomputed=recomputed)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    random_state = torch.get_rng_state()
    unreached = ["mask_token", "logit_bias"]
    unreached += ["norm.weight", "norm.bias"] if recomputed else []
    assert unreached_parameters(module, [INPUTS]) == unreached
    assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert module.training


def after_two_steps(rank, recomputed, *, sharded=False):
    """Weights after two steps of this process's half; `None` trains alone, on all."""
    rows = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    module = Partly(recomputed=recomputed)
    module.dropout.p = 0.0
    module.norm.eval()
    if sharded:
        module.logit_bias = nn.Parameter(torch.tensor([2.0]))  # scalars cannot be shared out
    if rank is None:
        trained = module
    elif sharded:
        shard(module, methods=())
        trained = module
    else:
        trained = replicate(module, torch.device("cpu"), inputs=[INPUTS])
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        trained(INPUTS[rows])[0].square().mean().backward()
        optimizer.step()
    return whole_weights(module) if sharded else module.state_dict()


def sharded_steps(rank, recomputed):
    return after_two_steps(rank, recomputed, sharded=True)


@pytest.mark.parametrize("recomputed", [False, True])
def test_two_processes_train_them_as_one_does(recomputed):
    alone = after_two_steps(None, recomputed)
    for found in run(after_two_steps, recomputed, world=2):
        assert_close(found, alone)
    assert torch.equal(alone["mask_token"], torch.ones(3))


@pytest.mark.parametrize("recomputed", [False, True])
def test_two_processes_that_share_the_parameters_out_train_them_as_one_does(recomputed):
    """FSDP2: the first process has the whole weights, which are those of one process."""
    alone = after_two_steps(None, recomputed, sharded=True)
    found, _ = run(sharded_steps, recomputed, world=2)
    assert_close({name: found[name] for name in alone}, alone)
    assert torch.equal(found["mask_token"], torch.ones(3))


def test_a_trained_scalar_that_is_not_reached_cannot_be_sharded():
    with pytest.raises(ValueError, match="logit_bias is a scalar that is trained; use parallel"):
        shard(Partly(), methods=())
