import pytest
import torch
from torch.testing import assert_close

from drrho.risk import CVaR, Mean
from drrho.steering import DRRhoLoss, token_losses


@pytest.fixture
def logits():
    return torch.randn(3, 6, 11, dtype=torch.float64)


@pytest.fixture
def labels():
    labels = torch.randint(11, (3, 6))
    labels[0, 4:] = labels[2, :3] = -100
    return labels


def test_each_token_is_predicted_from_those_before_it(logits, labels):
    losses, mask = token_losses(logits, labels)
    for row in range(3):
        for place in range(5):
            target = labels[row, place + 1]
            assert mask[row, place] == (target != -100)
            expected = -logits[row, place].log_softmax(-1)[target] if target != -100 else 0.0
            assert_close(losses[row, place], torch.as_tensor(expected, dtype=torch.float64))


def test_the_mean_of_all_tokens_is_the_usual_loss(logits, labels):
    """One normaliser for the batch: not a mean of the sequences' means."""
    losses, mask = token_losses(logits, labels)
    usual = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert_close(DRRhoLoss(Mean())(losses, mask=mask).loss, usual)


def test_cvar_over_tokens_is_selective_language_modelling(logits, labels):
    """Rho-1: the mean loss of the worst half of the tokens by excess, wherever they stand."""
    losses, mask = token_losses(logits, labels)
    reference = torch.rand(losses.shape, dtype=torch.float64)
    logits.requires_grad_()
    losses, mask = token_losses(logits, labels)
    kept = int(mask.sum()) // 2
    fraction = kept / int(mask.sum())
    ours = DRRhoLoss(CVaR(fraction=fraction))(losses, reference, mask).loss

    chosen = (losses - reference)[mask].topk(kept).indices
    theirs = losses[mask][chosen].mean()
    assert_close(
        *(torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs))
    )


def test_low_precision_logits_have_losses_in_float32(logits, labels):
    low = logits.bfloat16()
    losses, _ = token_losses(low, labels)
    assert losses.dtype == torch.float32
    assert_close(losses, token_losses(low.float(), labels).losses)


def test_another_index_may_be_ignored(logits, labels):
    padded = labels.where(labels != -100, 0)
    assert torch.equal(token_losses(logits, padded, ignore_index=0).mask, padded[:, 1:] != 0)


def test_a_batch_without_tokens_is_zero(logits):
    logits.requires_grad_()
    losses, mask = token_losses(logits, torch.full((3, 6), -100))
    result = DRRhoLoss(CVaR(fraction=0.5))(losses, mask=mask)
    result.loss.backward()
    assert result.loss == 0
    assert not logits.grad.any()
