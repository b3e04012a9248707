"""Triton kernels that normalise and rotate queries and keys, forward and backward, in one pass.

Input is the joint projection [tokens, (heads + 2 * kv_heads) * head_dim]: queries, keys, values.
A program owns a block of tokens of one query or key head. Sums are float32 and each output is
written once in a fixed order, so runs are deterministic.

Sources: Zhang & Sennrich, RMSNorm (arXiv 1910.07467); Su et al., RoFormer (arXiv 2104.09864), in
the "rotate half" layout of transformers.
"""

# Triton's language has no Python types: its kernels stay unannotated.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _halves(ptr, at, stride, inside, HALF: tl.constexpr):
    """The two halves of rows [block, 2 * HALF], float32."""
    dims = tl.arange(0, HALF)
    first = ptr + at[:, None] * stride + dims[None, :]
    one = tl.load(first, mask=inside[:, None], other=0.0).to(tl.float32)
    two = tl.load(first + HALF, mask=inside[:, None], other=0.0).to(tl.float32)
    return one, two


@triton.jit
def _norm_weight(q_weight_ptr, k_weight_ptr, is_query, HALF: tl.constexpr):
    dims = tl.arange(0, HALF)
    one = tl.load(q_weight_ptr + dims, mask=is_query, other=0.0).to(tl.float32)
    one += tl.load(k_weight_ptr + dims, mask=not is_query, other=0.0).to(tl.float32)
    two = tl.load(q_weight_ptr + HALF + dims, mask=is_query, other=0.0).to(tl.float32)
    two += tl.load(k_weight_ptr + HALF + dims, mask=not is_query, other=0.0).to(tl.float32)
    return one[None, :], two[None, :]


@triton.jit(do_not_specialize=["tokens"])
def rotate_kernel(
    qkv_ptr, out_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr,
    stride_qkv, stride_out, tokens, eps,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    HALF: tl.constexpr = D // 2
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < tokens
    x1, x2 = _halves(qkv_ptr + head * D, at, stride_qkv, inside, HALF)
    w1, w2 = _norm_weight(q_weight_ptr, k_weight_ptr, head < HEADS, HALF)
    cos1, cos2 = _halves(cos_ptr, at, D, inside, HALF)
    sin1, sin2 = _halves(sin_ptr, at, D, inside, HALF)
    inverse = tl.rsqrt((tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / D + eps)[:, None]
    n1 = x1 * inverse * w1
    n2 = x2 * inverse * w2
    dims = tl.arange(0, HALF)
    to = out_ptr + at[:, None] * stride_out + head * D + dims[None, :]
    kind = out_ptr.dtype.element_ty
    tl.store(to, (n1 * cos1 - n2 * sin1).to(kind), mask=inside[:, None])
    tl.store(to + HALF, (n2 * cos2 + n1 * sin2).to(kind), mask=inside[:, None])


@triton.jit(do_not_specialize=["tokens"])
def rotate_backward_kernel(
    upstream_ptr, qkv_ptr, gradient_ptr, partial_ptr,
    q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr,
    stride_up, stride_qkv, stride_gradient, tokens, eps,
    HEADS: tl.constexpr, ALL_HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    HALF: tl.constexpr = D // 2
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < tokens
    y1, y2 = _halves(upstream_ptr + head * D, at, stride_up, inside, HALF)
    x1, x2 = _halves(qkv_ptr + head * D, at, stride_qkv, inside, HALF)
    w1, w2 = _norm_weight(q_weight_ptr, k_weight_ptr, head < HEADS, HALF)
    cos1, cos2 = _halves(cos_ptr, at, D, inside, HALF)
    sin1, sin2 = _halves(sin_ptr, at, D, inside, HALF)
    inverse = tl.rsqrt((tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / D + eps)[:, None]
    x1 *= inverse
    x2 *= inverse
    n1 = y1 * cos1 + y2 * sin2  # gradient of the normalised, weighted halves
    n2 = y2 * cos2 - y1 * sin1
    dims = tl.arange(0, HALF)
    share = partial_ptr + (tl.program_id(0) * ALL_HEADS + head) * D + dims
    tl.store(share, tl.sum(n1 * x1, 0))
    tl.store(share + HALF, tl.sum(n2 * x2, 0))
    n1 *= w1
    n2 *= w2
    mean = ((tl.sum(n1 * x1, 1) + tl.sum(n2 * x2, 1)) / D)[:, None]
    to = gradient_ptr + at[:, None] * stride_gradient + head * D + dims[None, :]
    kind = gradient_ptr.dtype.element_ty
    tl.store(to, ((n1 - x1 * mean) * inverse).to(kind), mask=inside[:, None])
    tl.store(to + HALF, ((n2 - x2 * mean) * inverse).to(kind), mask=inside[:, None])
