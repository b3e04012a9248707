"""The chunked loss against torch's own cross-entropy, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainer_tui.engine.head_loss import HeadShape, Penalty, supervised_loss_sum

ROWS, HIDDEN, VOCABULARY = 37, 24, 131


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator).requires_grad_()
    weight = (0.3 * torch.randn(VOCABULARY, HIDDEN, generator=generator)).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    return hidden, weight, labels


@pytest.mark.parametrize("chunk_rows", [1, 8, 37, 4096])
@pytest.mark.parametrize("head", [HeadShape(), HeadShape(scale=0.25), HeadShape(2.0, softcap=3.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_chunked_loss_equals_cross_entropy(
    chunk_rows: int, head: HeadShape, weighted: bool
) -> None:
    hidden, weight, labels = inputs()
    weights = torch.rand(ROWS, generator=torch.Generator().manual_seed(9)) if weighted else None
    ours = supervised_loss_sum(hidden, weight, labels, chunk_rows, weights, head)
    (ours * 0.5).backward()
    gradients = hidden.grad, weight.grad
    hidden.grad = weight.grad = None

    scores = head.scale * hidden @ weight.t()
    if head.softcap is not None:
        scores = head.softcap * torch.tanh(scores / head.softcap)
    losses = nn.functional.cross_entropy(scores, labels, reduction="none")
    theirs = (losses if weights is None else losses * weights).sum()
    (theirs * 0.5).backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients[0], hidden.grad)
    torch.testing.assert_close(gradients[1], weight.grad)


@pytest.mark.parametrize("everywhere", [True, False])
def test_the_hinge_on_forbidden_tokens_has_the_gradient_autograd_finds(everywhere: bool) -> None:
    hidden, weight, labels = inputs(3)
    forbidden = torch.tensor([4, 17, 90])
    rows = None if everywhere else (torch.arange(ROWS) % 3 == 0).float()
    log_tau = -3.7  # some rows lie above it, some below
    penalty = Penalty(forbidden, alpha=0.7, log_tau=log_tau, rows=rows)
    ours = supervised_loss_sum(hidden, weight, labels, 8, penalties=[penalty])
    ours.backward()
    gradients = hidden.grad, weight.grad
    hidden.grad = weight.grad = None

    log_p = torch.log_softmax(hidden @ weight.t(), -1)[:, forbidden].logsumexp(-1)
    assert 0 < int((log_p > log_tau).sum()) < ROWS
    hinge = torch.relu(log_p - log_tau) * (1.0 if rows is None else rows)
    theirs = nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    theirs = theirs + 0.7 * hinge.sum()
    theirs.backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients[0], hidden.grad)
    torch.testing.assert_close(gradients[1], weight.grad)


def test_no_supervised_row_is_a_loss_of_zero() -> None:
    hidden, weight, labels = inputs()
    loss = supervised_loss_sum(hidden[:0], weight, labels[:0])
    loss.backward()
    assert loss.item() == 0.0
    assert weight.grad is not None and not weight.grad.any()


def test_evaluation_computes_no_gradient() -> None:
    hidden, weight, labels = inputs()
    with torch.no_grad():
        loss = supervised_loss_sum(hidden, weight, labels)
    assert not loss.requires_grad
