"""Triton kernel of the chunked loss: logits in, their gradient out, in the same memory.

One program owns one row of logits. It reads the row for its log-sum-exp, and again, from the
cache, to overwrite it with the gradient, so device memory is read once and written once.

With penalties the two halves run apart (`statistics`, `gradient`): what a penalty adds depends on
the row's normaliser, and changes the row's mass.

Source: Hsu et al., Liger Kernel (arXiv 2410.10989), for the gradient in place of the logits.
"""

# Triton's language has no Python types: its kernels stay unannotated.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)
BLOCK = 8192


@triton.jit
def _scores(row_ptr, at, columns, scale, softcap, CAPPED: tl.constexpr):
    raw = tl.load(row_ptr + at, mask=at < columns, other=0.0).to(tl.float32) * scale
    if CAPPED:
        raw = softcap * (2.0 * tl.sigmoid(2.0 * raw / softcap) - 1.0)  # tanh
    return raw


@triton.jit
def _loss_kernel(
    logits_ptr, labels_ptr, weights_ptr, mass_ptr, losses_ptr, normalisers_ptr,
    stride, columns, scale, softcap,
    STATISTICS: tl.constexpr, GRADIENT: tl.constexpr, WEIGHTED: tl.constexpr,
    MASS: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    label = tl.load(labels_ptr + row)
    weight = 1.0
    if WEIGHTED:
        weight = tl.load(weights_ptr + row)
    if STATISTICS:
        # Read first: the barriers of the sums below keep it ahead of the gradient's stores.
        at_label = tl.load(row_ptr + label).to(tl.float32) * scale
        if CAPPED:
            at_label = softcap * (2.0 * tl.sigmoid(2.0 * at_label / softcap) - 1.0)
        largest = float("-inf")
        total = 0.0
        for start in tl.range(0, columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            z = _scores(row_ptr, at, columns, scale, softcap, CAPPED) * LOG2_E
            z = tl.where(at < columns, z, float("-inf"))
            new = tl.maximum(largest, tl.max(z, 0))
            total = total * tl.math.exp2(largest - new) + tl.sum(tl.math.exp2(z - new), 0)
            largest = new
        normaliser = largest + tl.math.log2(total)  # base 2
        tl.store(losses_ptr + row, weight * (normaliser / LOG2_E - at_label))
        tl.store(normalisers_ptr + row, normaliser)
    else:
        normaliser = tl.load(normalisers_ptr + row)
    if GRADIENT:
        mass = weight
        if MASS:
            mass = tl.load(mass_ptr + row)
        for start in tl.range(0, columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            z = _scores(row_ptr, at, columns, scale, softcap, CAPPED)
            gradient = tl.math.exp2(z * LOG2_E - normaliser) * mass
            gradient -= tl.where(at == label, weight, 0.0)
            if CAPPED:
                gradient *= 1.0 - (z / softcap) * (z / softcap)
            gradient *= scale
            tl.store(row_ptr + at, gradient.to(logits_ptr.dtype.element_ty), mask=at < columns)


@triton.jit(do_not_specialize=["count"])
def _scaled_kernel(from_ptr, scale_ptr, to_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(from_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    value *= tl.load(scale_ptr).to(tl.float32)
    tl.store(to_ptr + at, value.to(to_ptr.dtype.element_ty), mask=at < count)


def scaled(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`values * scale`, a scalar on the device, in `dtype`: one pass in wide accesses.

    torch's own product with a scalar on the device moves single elements: 0.66 ms for the head's
    gradient where this takes 0.25 (H200).
    """
    out = torch.empty_like(values, dtype=dtype)
    block = 4096
    _scaled_kernel[(-(-values.numel() // block),)](
        values, scale, out, values.numel(), BLOCK=block, num_warps=8
    )
    return out


def _launch(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    mass: Tensor | None,
    losses: Tensor,
    normalisers: Tensor,
    scale: float,
    softcap: float | None,
    statistics: bool,
    gradient: bool,
) -> None:
    _loss_kernel[(logits.shape[0],)](
        logits, labels, labels if weights is None else weights, labels if mass is None else mass,
        losses, normalisers, logits.stride(0), logits.shape[1], scale, softcap or 1.0,
        STATISTICS=statistics, GRADIENT=gradient, WEIGHTED=weights is not None,
        MASS=mass is not None, CAPPED=softcap is not None, BLOCK=BLOCK, num_warps=16,
    )  # fmt: skip


def turn_logits_into_gradient(
    logits: Tensor,  # [rows, vocabulary], overwritten by d(loss)/d(raw logits)
    labels: Tensor,  # int64 [rows]
    weights: Tensor | None,  # float32 [rows]
    scale: float,
    softcap: float | None,
    penalties: list[tuple[Tensor, Tensor, float, float, Tensor | None]],
) -> Tensor:
    """The kernel's form of `head_loss._turn_logits_into_gradient`: same arguments and result."""
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    normalisers = torch.empty_like(losses)
    common = (losses, normalisers, scale, softcap)
    if not penalties:
        _launch(logits, labels, weights, None, *common, True, True)
        return losses.sum()
    _launch(logits, labels, weights, None, *common, True, False)
    loss = losses.sum()
    mass = torch.ones_like(losses) if weights is None else weights.clone()
    corrections = []
    for token_ids, _, alpha, log_tau, rows in penalties:
        raw = logits[:, token_ids].float() * scale  # [rows, forbidden]
        scores = raw if softcap is None else softcap * torch.tanh(raw / softcap)
        total = torch.logsumexp(scores, -1)
        log_p = total - normalisers / LOG2_E.value
        strength = torch.full_like(log_p, alpha) if rows is None else alpha * rows
        loss = loss + (strength * torch.relu(log_p - log_tau)).sum()
        strength = torch.where(log_p > log_tau, strength, 0.0)
        mass -= strength
        extra = strength[:, None] * torch.exp(scores - total[:, None]) * scale
        if softcap is not None:
            extra = extra * (1.0 - (scores / softcap) ** 2)
        corrections.append((token_ids, extra))
    _launch(logits, labels, weights, mass, *common, False, True)
    for token_ids, extra in corrections:
        logits[:, token_ids] += extra.to(logits.dtype)
    return loss
