"""Triton kernels of `fast_mlp`: SiLU(gate) * up and its gradient, one program per row and block."""

# Triton's language has no Python types: its kernels stay unannotated.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gated_kernel(gate_up_ptr, out_ptr, stride, inner, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < inner
    gate = tl.load(gate_up_ptr + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride + inner + at, mask=inside, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * inner + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def gated_backward_kernel(
    upstream_ptr, gate_up_ptr, out_ptr, stride_up, stride, inner, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < inner
    gate = tl.load(gate_up_ptr + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride + inner + at, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(upstream_ptr + row * stride_up + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    kind = out_ptr.dtype.element_ty
    to = out_ptr + row * 2 * inner + at
    gate_gradient = given * up * (sigmoid + silu * (1.0 - sigmoid))
    tl.store(to, gate_gradient.to(kind), mask=inside)
    tl.store(to + inner, (given * silu).to(kind), mask=inside)
