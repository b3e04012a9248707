"""Cross-entropy of the supervised positions alone, in chunks, so that logits never exist whole.

The gradient of a sum of cross-entropies is known in closed form, so one pass over a chunk of
rows yields its loss, its share of the hidden states' gradient and of the head's. Peak memory is
one chunk of logits instead of [supervised, vocabulary].

Invariant: the result is a SUM over targets; the caller divides by the step's global number of
supervised tokens, which makes any split into micro-batches the same update within rounding.

Limits: heads of the form `scale * hidden @ weight.T`, soft-capped or not. A head with a bias or
any other shape is refused (`verify_head` compares with the model's own logits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from trainer_tui.engine.attention import hidden_states
from trainer_tui.engine.batch import MicroBatch
from trainer_tui.safety.errors import Refused


class HeadRefused(Refused):
    """The model's output head is not one the chunked loss can compute."""


@dataclass(frozen=True, slots=True)
class HeadShape:
    """How logits come from hidden states: `cap * tanh(scale * hidden @ weight.T / cap)`."""

    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class Penalty:
    """A hinge on forbidden tokens: `alpha * relu(log p(F) - log_tau)`, summed over rows.

    It falls silent once p(F) < tau, so it cannot fight cross-entropy for ever.
    """

    token_ids: Tensor  # int64 [forbidden], F
    alpha: float
    log_tau: float
    rows: Tensor | None = None  # float32 [supervised], where it applies; None for everywhere


def _turn_logits_into_gradient(
    logits: Tensor,  # [rows, vocabulary], overwritten by d(loss)/d(raw logits)
    labels: Tensor,  # int64 [rows]
    weights: Tensor | None,  # float32 [rows]
    shape_scale: float,
    softcap: float | None,
    penalties: Sequence[tuple[Tensor, Tensor, float, float, Tensor | None]],
) -> Tensor:
    """Loss of a chunk, float32 scalar. All arithmetic is float32, whatever the logits' type."""
    scores = logits.float()
    if shape_scale != 1.0:
        scores = scores * shape_scale
    if softcap is not None:
        tanh = torch.tanh(scores / softcap)
        scores = softcap * tanh
    normaliser = torch.logsumexp(scores, dim=-1)  # [rows]
    losses = normaliser - scores.gather(-1, labels[:, None])[:, 0]
    if weights is not None:
        losses = losses * weights
    loss = losses.sum()

    mass: Tensor | float = weights[:, None] if weights is not None else 1.0
    target_mass = mass
    for token_ids, is_forbidden, alpha, log_tau, rows in penalties:
        log_p = torch.logsumexp(scores[:, token_ids], dim=-1) - normaliser  # [rows], log p(F)
        strength = torch.full_like(log_p, alpha) if rows is None else alpha * rows
        loss = loss + (strength * torch.relu(log_p - log_tau)).sum()
        strength = torch.where(log_p > log_tau, strength, 0.0)
        # d log p(F) / d z_j = [j in F] p_j / p(F) - p_j
        mass = mass + strength[:, None] * (is_forbidden * torch.exp(-log_p)[:, None] - 1.0)

    gradient = torch.exp(scores - normaliser[:, None]) * mass
    columns = torch.arange(logits.shape[1], device=logits.device)
    gradient = gradient - torch.where(columns == labels[:, None], target_mass, 0.0)
    if softcap is not None:
        gradient = gradient * (1.0 - tanh * tanh)
    if shape_scale != 1.0:
        gradient = gradient * shape_scale
    logits.copy_(gradient)
    return loss


@cache
def _has_kernels(device_type: str) -> bool:
    return device_type == "cuda" and find_spec("triton") is not None


def _chunk_function(device_type: str) -> Callable[..., Tensor]:
    if not _has_kernels(device_type):
        return _turn_logits_into_gradient
    from trainer_tui.engine.fast_loss_kernel import turn_logits_into_gradient

    return turn_logits_into_gradient


def _accumulate(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """`total + left @ right` in `total`'s place, summed in float32; a new tensor for None."""
    if left.dtype != torch.float32 and not left.is_cuda:
        left, right = left.float(), right.float()
    if left.dtype == torch.float32:
        return left @ right if total is None else total.addmm_(left, right)
    if total is None:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.addmm(total, left, right, out_dtype=torch.float32, out=total)


def _scaled(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scaled and rounded in one pass: the head's gradient is the largest tensor of the step."""
    if _has_kernels(values.device.type):
        from trainer_tui.engine.fast_loss_kernel import scaled

        return scaled(values, scale, dtype)
    return torch.mul(values, scale, out=torch.empty_like(values, dtype=dtype))


class _SupervisedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        chunk_rows: int,
        head: HeadShape,
        penalties: Sequence[Penalty],
    ) -> Tensor:
        device = hidden.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        with torch.autocast(device, enabled=False):
            rows_in = hidden.to(low) if low else hidden
            weight = head_weight.to(low) if low else head_weight
            hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
            # In float32: rounding every chunk's share to bf16 before adding them biases training.
            weight_sums: Tensor | None = None
            loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
            marks = [_indicator(penalty, weight.shape[0]) for penalty in penalties]
            chunk_of = _chunk_function(device)
            for start in range(0, len(labels), chunk_rows):
                rows = slice(start, start + chunk_rows)
                logits = rows_in[rows] @ weight.t()  # [chunk, vocabulary]
                loss += chunk_of(
                    logits,
                    labels[rows],
                    None if weights is None else weights[rows],
                    head.scale,
                    head.softcap,
                    [
                        (p.token_ids, mark, p.alpha, p.log_tau, _slice(p.rows, rows))
                        for p, mark in zip(penalties, marks, strict=True)
                    ],
                )
                if hidden_gradient is not None:
                    hidden_gradient[rows] = logits @ weight
                if wants_weight:
                    weight_sums = _accumulate(weight_sums, logits.t(), rows_in[rows])
                del logits  # before the next chunk's are made: the peak is one chunk
            if wants_weight and weight_sums is None:  # no supervised rows
                weight_sums = torch.zeros_like(weight, dtype=torch.float32)
        ctx.save_for_backward(hidden_gradient, weight_sums)
        ctx.weight_dtype = head_weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_sums = ctx.saved_tensors
        weight_gradient = None
        if hidden_gradient is not None:
            hidden_gradient = hidden_gradient.mul_(upstream)
        if weight_sums is not None:
            weight_gradient = _scaled(weight_sums, upstream, ctx.weight_dtype)
        return hidden_gradient, weight_gradient, None, None, None, None, None


def _slice(rows: Tensor | None, where: slice) -> Tensor | None:
    return None if rows is None else rows[where]


def _indicator(penalty: Penalty, vocabulary: int) -> Tensor:
    marks = torch.zeros(vocabulary, dtype=torch.float32, device=penalty.token_ids.device)
    return marks.index_fill_(0, penalty.token_ids, 1.0)


def supervised_loss_sum(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    chunk_rows: int = 4096,
    weights: Tensor | None = None,
    head: HeadShape | None = None,
    penalties: Sequence[Penalty] = (),
) -> Tensor:
    """Sum of (weighted) cross-entropies of the given rows, float32 scalar, differentiable once.

    Args:
        hidden: [supervised, hidden], only rows whose next token is a target.
        head_weight: [vocabulary, hidden].
        labels: int64 [supervised].
        chunk_rows: rows whose logits exist at one time.
        weights: float32 [supervised], or None for 1.
        head: scale and soft-cap of the logits.
        penalties: hinges over forbidden tokens, added to the sum.

    The backward pass may run once: it scales the stored gradients in place.
    """
    loss: Tensor = _SupervisedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head_weight, labels, weights, chunk_rows, head or HeadShape(), tuple(penalties)
    )
    return loss


def head_of(model: nn.Module) -> tuple[Tensor, HeadShape]:
    """The output head's weight [vocabulary, hidden] and shape.

    Raises:
        HeadRefused: the head has a bias or is missing.
    """
    layer = model.get_output_embeddings()  # type: ignore[operator]
    name = type(model).__name__
    if layer is None:
        raise HeadRefused(f"{name} has no output head.")
    if getattr(layer, "bias", None) is not None:
        raise HeadRefused(f"{name}'s output head has a bias, which the chunked loss lacks.")
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return layer.weight, HeadShape(scale, None if softcap is None else float(softcap))


@torch.no_grad()
def verify_head(model: nn.Module, tokens: int = 8) -> None:
    """Compare our logits with the model's own on a few tokens, once, before the first step.

    Raises:
        HeadRefused: they differ by more than rounding, so the loss would be of another model.
    """
    device = next(model.parameters()).device
    ids = torch.arange(tokens, device=device)[None]
    arguments: dict[str, Any] = {"position_ids": ids.clone(), "use_cache": False}
    was_training = model.training
    model.eval()
    from trainer_tui.engine.attention import document_arguments

    starts = torch.tensor([0, tokens], dtype=torch.int32, device=device)
    empty = ids[0, :0]
    batch = MicroBatch(ids, ids.clone(), starts, tokens, empty, empty, (tokens,))
    arguments |= document_arguments(model, batch)
    theirs = model(input_ids=ids, **arguments).logits[0].float()
    weight, head = head_of(model)
    ours = (hidden_states(model, batch) @ weight.t()).float() * head.scale
    if head.softcap is not None:
        ours = head.softcap * torch.tanh(ours / head.softcap)
    model.train(was_training)
    # The host waits here, once, before the first step.
    if not torch.allclose(ours, theirs, rtol=2e-2, atol=2e-2 * float(theirs.abs().max())):
        raise HeadRefused(
            f"{type(model).__name__} computes its logits in a way the chunked loss does not know.",
            "Use a model with a plain linear head.",
        )


def forward_loss_sum(
    model: nn.Module,
    batch: MicroBatch,
    penalties: Sequence[Penalty] = (),
    chunk_rows: int = 4096,
) -> Tensor:
    """Summed loss of a micro-batch, float32 scalar; divide by the step's supervised tokens.

    The decoder runs over all positions, the head over the supervised ones only.

    Raises:
        AttentionRefused: no packed attention is attached to the model.
        HeadRefused: the head is not one we can compute.
    """
    weight, head = head_of(model)
    rows = hidden_states(model, batch, batch.predict_from)
    return supervised_loss_sum(
        rows, weight, batch.labels, chunk_rows, batch.weights, head, penalties
    )
