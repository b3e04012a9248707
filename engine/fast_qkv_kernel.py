"""Triton kernels of Qwen3's attention: norm, rotation and packed attention in one, both ways.

Input is the joint projection [tokens, (heads + 2 * kv_heads) * head_dim]: queries, keys, values.
A query tile is read once by the program that owns it, so queries are normalised and rotated in
registers there; keys are streamed past many times and are rotated once beforehand. The query
kernel of the backward pass leaves the rotated queries for the key kernel, and both end with the
gradient of the projection itself. So queries cross memory three times where separate passes
take nine, and nothing of them is kept between forward and backward.

The rotation pairs element i of a head with element i + head_dim / 2: before and after a kernel's
loop tiles are held as two halves, inside it whole.

Invariant: as in `fast_packed_kernel.py`: a row's result depends on its own document alone, every
output element is written by one program in a fixed order, runs are deterministic.

Sources: Dao, FlashAttention-2 (arXiv 2307.08691); Zhang & Sennrich, RMSNorm (arXiv 1910.07467);
Su et al., RoFormer (arXiv 2104.09864), in the "rotate half" layout of transformers.
"""

# Triton's language has no Python types: its kernels stay unannotated.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _halves(ptr, inside, HALF: tl.constexpr):
    """The two halves of rows of a head, as stored; `ptr` points at the first half [rows, HALF]."""
    one = tl.load(ptr, mask=inside[:, None], other=0.0)
    two = tl.load(ptr + HALF, mask=inside[:, None], other=0.0)
    return one, two


@triton.jit
def _whole(one, two, ROWS: tl.constexpr, D: tl.constexpr):
    """Two halves [ROWS, D / 2] side by side, [ROWS, D]."""
    return tl.reshape(tl.permute(tl.join(one, two), (0, 2, 1)), (ROWS, D))


@triton.jit
def _parted(whole, ROWS: tl.constexpr, D: tl.constexpr):
    """The two halves of [ROWS, D]."""
    return tl.split(tl.permute(tl.reshape(whole, (ROWS, 2, D // 2)), (0, 2, 1)))


@triton.jit
def _normalised(x1, x2, eps, HALF: tl.constexpr):
    """Rows of unit root mean square, float32, and what they were divided by, inverted."""
    x1 = x1.to(tl.float32)
    x2 = x2.to(tl.float32)
    inverse = tl.rsqrt((tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / (2 * HALF) + eps)[:, None]
    return x1 * inverse, x2 * inverse, inverse


@triton.jit
def _angles(cos_ptr, sin_ptr, at, inside, HALF: tl.constexpr):
    """cos and sin of the rows' positions, [rows, HALF]; the second half of a head has the same."""
    place = at[:, None] * (2 * HALF) + tl.arange(0, HALF)[None, :]
    cos = tl.load(cos_ptr + place, mask=inside[:, None], other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + place, mask=inside[:, None], other=0.0).to(tl.float32)
    return cos, sin


@triton.jit
def _weights(ptr, HALF: tl.constexpr):
    dims = tl.arange(0, HALF)
    one = tl.load(ptr + dims).to(tl.float32)[None, :]
    two = tl.load(ptr + HALF + dims).to(tl.float32)[None, :]
    return one, two


@triton.jit
def _rotated(x1, x2, w1, w2, cos, sin, eps, HALF: tl.constexpr, KIND: tl.constexpr):
    """Normalised, weighted and rotated halves in the type `KIND`."""
    n1, n2, _ = _normalised(x1, x2, eps, HALF)
    n1 *= w1
    n2 *= w2
    return (n1 * cos - n2 * sin).to(KIND), (n2 * cos + n1 * sin).to(KIND)


@triton.jit
def _norm_gradient(
    g1, g2, x_ptr, to_ptr, share_ptr, w1, w2, cos, sin, inside, eps, HALF: tl.constexpr
):
    """From the gradient of rotated rows to that of the raw ones, stored at `to_ptr`.

    `share_ptr` receives this program's part of the norm weight's gradient, float32 [2 * HALF].
    """
    x1, x2 = _halves(x_ptr, inside, HALF)
    x1, x2, inverse = _normalised(x1, x2, eps, HALF)
    n1 = g1 * cos + g2 * sin  # gradient of the normalised, weighted halves
    n2 = g2 * cos - g1 * sin
    dims = tl.arange(0, HALF)
    tl.store(share_ptr + dims, tl.sum(n1 * x1, 0))
    tl.store(share_ptr + HALF + dims, tl.sum(n2 * x2, 0))
    n1 *= w1
    n2 *= w2
    mean = ((tl.sum(n1 * x1, 1) + tl.sum(n2 * x2, 1)) / (2 * HALF))[:, None]
    kind = to_ptr.dtype.element_ty
    tl.store(to_ptr, ((n1 - x1 * mean) * inverse).to(kind), mask=inside[:, None])
    tl.store(to_ptr + HALF, ((n2 - x2 * mean) * inverse).to(kind), mask=inside[:, None])


@triton.jit(do_not_specialize=["tokens"])
def rotate_keys_kernel(
    x_ptr, out_ptr, weight_ptr, cos_ptr, sin_ptr, stride_x, stride_out, tokens, eps,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    HALF: tl.constexpr = D // 2
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < tokens
    first = head * D + tl.arange(0, HALF)[None, :]
    x1, x2 = _halves(x_ptr + at[:, None] * stride_x + first, inside, HALF)
    w1, w2 = _weights(weight_ptr, HALF)
    cos, sin = _angles(cos_ptr, sin_ptr, at, inside, HALF)
    y1, y2 = _rotated(x1, x2, w1, w2, cos, sin, eps, HALF, out_ptr.dtype.element_ty)
    to = out_ptr + at[:, None] * stride_out + first
    tl.store(to, y1, mask=inside[:, None])
    tl.store(to + HALF, y2, mask=inside[:, None])


@triton.jit(do_not_specialize=["tokens"])
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, work_ptr, weight_ptr, cos_ptr, sin_ptr,
    stride_qkv, stride_k, tokens, scale, eps,
    PACK: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`q_ptr` raw queries, `k_ptr` rotated keys, `v_ptr` raw values; `scale` for base-2."""
    HALF: tl.constexpr = D // 2
    first_head = tl.program_id(0) * PACK
    kv_head = first_head // GROUP
    item = work_ptr + tl.program_id(1) * 3
    query_start = tl.load(item)
    document_start = tl.load(item + 1)
    document_end = tl.load(item + 2)
    rows = tl.arange(0, PACK * M)
    query_at = query_start + rows % M
    head = first_head + rows // M
    half_dims = tl.arange(0, HALF)
    dims = tl.arange(0, D)
    inside = query_at < document_end
    q_at = q_ptr + query_at[:, None] * stride_qkv + head[:, None] * D + half_dims[None, :]
    q1, q2 = _halves(q_at, inside, HALF)
    w1, w2 = _weights(weight_ptr, HALF)
    cos, sin = _angles(cos_ptr, sin_ptr, query_at, inside, HALF)
    q1, q2 = _rotated(q1, q2, w1, w2, cos, sin, eps, HALF, q_ptr.dtype.element_ty)
    query = _whole(q1, q2, PACK * M, D)
    k_ptr += kv_head * D
    v_ptr += kv_head * D

    row_max = tl.full([PACK * M], -1.0e6, tl.float32)
    row_sum = tl.zeros([PACK * M], tl.float32)
    out = tl.zeros([PACK * M, D], tl.float32)
    # Every block is masked: with short documents a second loop for the unmasked ones costs more.
    for start in tl.range(document_start, tl.minimum(query_start + M, document_end), N):
        at = start + tl.arange(0, N)
        valid = (at < document_end)[:, None]
        key = tl.load(k_ptr + at[:, None] * stride_k + dims[None, :], mask=valid, other=0.0)
        value = tl.load(v_ptr + at[:, None] * stride_qkv + dims[None, :], mask=valid, other=0.0)
        scores = tl.dot(query, tl.trans(key))
        scores = tl.where(query_at[:, None] >= at[None, :], scores, -1.0e6)
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
        weights = tl.math.exp2(scores * scale - new_max[:, None])
        shrink = tl.math.exp2(row_max - new_max)
        row_sum = row_sum * shrink + tl.sum(weights, 1)
        out = tl.dot(weights.to(value.dtype), value, out * shrink[:, None])
        row_max = new_max
    out = out / row_sum[:, None]
    o_at = out_ptr + query_at[:, None] * (HEADS * D) + head[:, None] * D + dims[None, :]
    tl.store(o_at, out.to(out_ptr.dtype.element_ty), mask=inside[:, None])
    tl.store(lse_ptr + head * tokens + query_at, row_max + tl.math.log2(row_sum), mask=inside)


@triton.jit
def _query_gradient_block(
    gradient, query, out_gradient, lse, delta, k_ptr, v_ptr, stride_k, stride_v,
    key_start, document_end, query_at, scale,
    MASKED: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    at = key_start + tl.arange(0, N)
    dims = tl.arange(0, D)
    k_at = k_ptr + at[:, None] * stride_k + dims[None, :]
    v_at = v_ptr + at[:, None] * stride_v + dims[None, :]
    if MASKED:
        valid = (at < document_end)[:, None]
        key = tl.load(k_at, mask=valid, other=0.0)
        value = tl.load(v_at, mask=valid, other=0.0)
    else:
        key = tl.load(k_at)
        value = tl.load(v_at)
    weights = tl.math.exp2(tl.dot(query, tl.trans(key)) * scale - lse[:, None])
    if MASKED:
        weights = tl.where(query_at[:, None] >= at[None, :], weights, 0.0)
    weight_gradient = tl.dot(out_gradient, tl.trans(value))
    score_gradient = weights * (weight_gradient - delta[:, None])
    return tl.dot(score_gradient.to(key.dtype), key, gradient)


@triton.jit(do_not_specialize=["tokens"])
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, out_gradient_ptr, work_ptr,
    weight_ptr, cos_ptr, sin_ptr, gradient_ptr, rotated_ptr, delta_ptr, share_ptr,
    stride_qkv, stride_k, stride_g, tokens, scale, natural_scale, eps,
    PACK: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Gradient of the raw queries and of their norm's weight; leaves the rotated queries and
    rowsum(dO * O) for `key_gradient_kernel`."""
    HALF: tl.constexpr = D // 2
    first_head = tl.program_id(0) * PACK
    kv_head = first_head // GROUP
    item = work_ptr + tl.program_id(1) * 3
    query_start = tl.load(item)
    document_start = tl.load(item + 1)
    document_end = tl.load(item + 2)
    rows = tl.arange(0, PACK * M)
    query_at = query_start + rows % M
    head = first_head + rows // M
    half_dims = tl.arange(0, HALF)
    dims = tl.arange(0, D)
    inside = query_at < document_end
    raw_at = query_at[:, None] * stride_qkv + head[:, None] * D + half_dims[None, :]
    o_at = query_at[:, None] * (HEADS * D) + head[:, None] * D
    g_at = out_gradient_ptr + query_at[:, None] * stride_g + head[:, None] * D + dims[None, :]
    # All loads before the first store, so that their latencies overlap.
    q1, q2 = _halves(q_ptr + raw_at, inside, HALF)
    w1, w2 = _weights(weight_ptr, HALF)
    cos, sin = _angles(cos_ptr, sin_ptr, query_at, inside, HALF)
    out_gradient = tl.load(g_at, mask=inside[:, None], other=0.0)
    out = tl.load(out_ptr + o_at + dims[None, :], mask=inside[:, None], other=0.0)
    lse = tl.load(lse_ptr + head * tokens + query_at, mask=inside, other=0.0)
    delta = tl.sum(out.to(tl.float32) * out_gradient.to(tl.float32), 1)
    q1, q2 = _rotated(q1, q2, w1, w2, cos, sin, eps, HALF, q_ptr.dtype.element_ty)
    query = _whole(q1, q2, PACK * M, D)
    rotated_at = rotated_ptr + o_at + half_dims[None, :]
    tl.store(rotated_at, q1, mask=inside[:, None])
    tl.store(rotated_at + HALF, q2, mask=inside[:, None])
    tl.store(delta_ptr + head * tokens + query_at, delta, mask=inside)
    k_ptr += kv_head * D
    v_ptr += kv_head * D

    gradient = tl.zeros([PACK * M, D], tl.float32)
    diagonal = document_start + (query_start - document_start) // N * N
    for start in tl.range(document_start, diagonal, N):
        gradient = _query_gradient_block(
            gradient, query, out_gradient, lse, delta, k_ptr, v_ptr, stride_k, stride_qkv,
            start, document_end, query_at, scale, False, D, N,
        )  # fmt: skip
    for start in tl.range(diagonal, tl.minimum(query_start + M, document_end), N):
        gradient = _query_gradient_block(
            gradient, query, out_gradient, lse, delta, k_ptr, v_ptr, stride_k, stride_qkv,
            start, document_end, query_at, scale, True, D, N,
        )  # fmt: skip
    g1, g2 = _parted(gradient * natural_scale, PACK * M, D)
    # Read again rather than kept: registers are what the loop above is short of.
    w1, w2 = _weights(weight_ptr, HALF)
    cos, sin = _angles(cos_ptr, sin_ptr, query_at, inside, HALF)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    _norm_gradient(
        g1, g2, q_ptr + raw_at, gradient_ptr + raw_at,
        share_ptr + program * D, w1, w2, cos, sin, inside, eps, HALF,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens"])
def key_gradient_kernel(
    rotated_ptr, k_ptr, raw_k_ptr, v_ptr, lse_ptr, out_gradient_ptr, delta_ptr, work_ptr,
    weight_ptr, cos_ptr, sin_ptr, dk_ptr, dv_ptr, share_ptr,
    stride_qkv, stride_q, stride_k, stride_g, tokens, scale, natural_scale, eps,
    GROUP: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Gradients of the raw keys, of their norm's weight and of the values."""
    HALF: tl.constexpr = D // 2
    kv_head = tl.program_id(0)
    item = work_ptr + tl.program_id(1) * 3
    key_start = tl.load(item)
    document_end = tl.load(item + 2)
    key_at = key_start + tl.arange(0, N)
    half_dims = tl.arange(0, HALF)
    dims = tl.arange(0, D)
    inside = key_at < document_end
    k_at = key_at[:, None] * stride_k + kv_head * D + dims[None, :]
    key = tl.load(k_ptr + k_at, mask=inside[:, None], other=0.0)
    v_at = key_at[:, None] * stride_qkv + kv_head * D + dims[None, :]
    value = tl.load(v_ptr + v_at, mask=inside[:, None], other=0.0)
    key_gradient = tl.zeros([N, D], tl.float32)
    value_gradient = tl.zeros([N, D], tl.float32)
    count = (document_end - key_start + M - 1) // M
    # A loop runs over (query head, block): its pipeline is filled once, not once per head.
    for step in tl.range(0, count * GROUP):
        head = kv_head * GROUP + step // count
        at = key_start + step % count * M + tl.arange(0, M)
        valid = at < document_end
        q_at = rotated_ptr + at[:, None] * stride_q + head * D + dims[None, :]
        query = tl.load(q_at, mask=valid[:, None], other=0.0)
        g_at = out_gradient_ptr + at[:, None] * stride_g + head * D + dims[None, :]
        out_gradient = tl.load(g_at, mask=valid[:, None], other=0.0)
        # An infinite normaliser makes the weights of queries past the document's end zero.
        lse = tl.load(lse_ptr + head * tokens + at, mask=valid, other=float("inf"))
        delta = tl.load(delta_ptr + head * tokens + at, mask=valid, other=0.0)
        weights = tl.math.exp2(tl.dot(key, tl.trans(query)) * scale - lse[None, :])  # [N, M]
        weights = tl.where(at[None, :] >= key_at[:, None], weights, 0.0)
        value_gradient = tl.dot(weights.to(out_gradient.dtype), out_gradient, value_gradient)
        weight_gradient = tl.dot(value, tl.trans(out_gradient))
        score_gradient = weights * (weight_gradient - delta[None, :])
        key_gradient = tl.dot(score_gradient.to(query.dtype), query, key_gradient)
    kind = dv_ptr.dtype.element_ty
    tl.store(dv_ptr + v_at, value_gradient.to(kind), mask=inside[:, None])
    g1, g2 = _parted(key_gradient * natural_scale, N, D)
    w1, w2 = _weights(weight_ptr, HALF)
    cos, sin = _angles(cos_ptr, sin_ptr, key_at, inside, HALF)
    raw_at = key_at[:, None] * stride_qkv + kv_head * D + half_dims[None, :]
    program = tl.program_id(1) * tl.num_programs(0) + kv_head
    _norm_gradient(
        g1, g2, raw_k_ptr + raw_at, dk_ptr + raw_at,
        share_ptr + program * D, w1, w2, cos, sin, inside, eps, HALF,
    )  # fmt: skip
