"""Triton kernels for causal attention over packed documents, forward and backward.

One program owns one block of one document and one key/value head; the blocks come from a work
list, so no program is started for nothing and no block straddles two documents. The query heads
that share a key/value head are stacked into one tile: 64 tokens of 2 heads fill a 128-row matrix
instruction, where a 128-token block would waste half its work on the short documents of chat data.

Invariant: a row's result depends on its own document alone. Keys past the document's end lie
after every valid query, so the causal mask hides them; queries past the end are never stored.
Every output element is written by one program in a fixed order: runs are deterministic.

Limits: bf16/fp16, head_dim a power of two from 16 to 128, heads * head_dim contiguous per token.

Sources: Dao, FlashAttention-2 (arXiv 2307.08691), for the recurrences; base-2 exponentials as in
Triton's fused-attention tutorial.
"""

# Triton's language has no Python types: its kernels stay unannotated.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _visible(query_at, key_at, window, WINDOWED: tl.constexpr):
    seen = query_at[:, None] >= key_at[None, :]
    if WINDOWED:
        seen = seen & (query_at[:, None] - key_at[None, :] < window)
    return seen


@triton.jit
def _forward_block(
    out, row_max, row_sum, query, k_ptr, v_ptr, stride_k, stride_v,
    key_start, document_end, query_at, scale, window,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    at = key_start + tl.arange(0, N)
    dims = tl.arange(0, D)
    k_at = k_ptr + at[:, None] * stride_k + dims[None, :]
    v_at = v_ptr + at[:, None] * stride_v + dims[None, :]
    if MASKED:
        inside = (at < document_end)[:, None]
        key = tl.load(k_at, mask=inside, other=0.0)
        value = tl.load(v_at, mask=inside, other=0.0)
    else:
        key = tl.load(k_at)
        value = tl.load(v_at)
    scores = tl.dot(query, tl.trans(key))
    if MASKED:
        scores = tl.where(_visible(query_at, at, window, WINDOWED), scores, -1.0e6)
    new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
    # Scaled here and not above: one fused multiply-add per element instead of two operations.
    weights = tl.math.exp2(scores * scale - new_max[:, None])
    shrink = tl.math.exp2(row_max - new_max)
    row_sum = row_sum * shrink + tl.sum(weights, 1)
    out = tl.dot(weights.to(value.dtype), value, out * shrink[:, None])
    return out, new_max, row_sum


@triton.jit(do_not_specialize=["tokens", "window"])
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, work_ptr,
    stride_q, stride_qh, stride_k, stride_kh, stride_v, stride_vh, tokens, scale, window,
    WINDOWED: tl.constexpr, PACK: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, ONE_LOOP: tl.constexpr,
):  # fmt: skip
    first_head = tl.program_id(0) * PACK
    kv_head = first_head // GROUP
    item = work_ptr + tl.program_id(1) * 5
    query_start = tl.load(item)
    document_start = tl.load(item + 1)
    document_end = tl.load(item + 2)
    rows = tl.arange(0, PACK * M)
    query_at = query_start + rows % M
    head = first_head + rows // M
    dims = tl.arange(0, D)
    inside = query_at < document_end
    q_at = q_ptr + query_at[:, None] * stride_q + head[:, None] * stride_qh + dims[None, :]
    query = tl.load(q_at, mask=inside[:, None], other=0.0)
    k_ptr += kv_head * stride_kh
    v_ptr += kv_head * stride_vh

    row_max = tl.full([PACK * M], -1.0e6, tl.float32)
    row_sum = tl.zeros([PACK * M], tl.float32)
    out = tl.zeros([PACK * M, D], tl.float32)
    first = document_start
    unmasked_from = document_start
    if WINDOWED:
        # Keys before `first` are outside every query's window; those before `unmasked_from`
        # outside some query's.
        first += tl.maximum(query_start - window + 1 - document_start, 0) // N * N
        edge = tl.maximum(query_start + M - window - document_start, 0)
        unmasked_from += (edge + N - 1) // N * N
    diagonal = document_start + (query_start - document_start) // N * N
    last = tl.minimum(query_start + M, document_end)
    if ONE_LOOP:
        diagonal = first
        unmasked_from = last
    if WINDOWED and not ONE_LOOP:
        for at in tl.range(first, tl.minimum(unmasked_from, diagonal), N):
            out, row_max, row_sum = _forward_block(
                out, row_max, row_sum, query, k_ptr, v_ptr, stride_k, stride_v,
                at, document_end, query_at, scale, window, True, True, D, N,
            )  # fmt: skip
    if not ONE_LOOP:
        for at in tl.range(unmasked_from, diagonal, N):
            out, row_max, row_sum = _forward_block(
                out, row_max, row_sum, query, k_ptr, v_ptr, stride_k, stride_v,
                at, document_end, query_at, scale, window, False, False, D, N,
            )  # fmt: skip
    for at in tl.range(diagonal, last, N):
        out, row_max, row_sum = _forward_block(
            out, row_max, row_sum, query, k_ptr, v_ptr, stride_k, stride_v,
            at, document_end, query_at, scale, window, True, WINDOWED, D, N,
        )  # fmt: skip
    out = out / row_sum[:, None]
    o_at = out_ptr + query_at[:, None] * (HEADS * D) + head[:, None] * D + dims[None, :]
    tl.store(o_at, out.to(out_ptr.dtype.element_ty), mask=inside[:, None])
    lse = row_max + tl.math.log2(row_sum)  # base 2, as the backward wants it
    tl.store(lse_ptr + head * tokens + query_at, lse, mask=inside)


@triton.jit
def _query_gradient_block(
    gradient, query, out_gradient, lse, delta, k_ptr, v_ptr, stride_k, stride_v,
    key_start, document_end, query_at, scale, window,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    at = key_start + tl.arange(0, N)
    dims = tl.arange(0, D)
    k_at = k_ptr + at[:, None] * stride_k + dims[None, :]
    v_at = v_ptr + at[:, None] * stride_v + dims[None, :]
    if MASKED:
        inside = (at < document_end)[:, None]
        key = tl.load(k_at, mask=inside, other=0.0)
        value = tl.load(v_at, mask=inside, other=0.0)
    else:
        key = tl.load(k_at)
        value = tl.load(v_at)
    weights = tl.math.exp2(tl.dot(query, tl.trans(key)) * scale - lse[:, None])
    if MASKED:
        weights = tl.where(_visible(query_at, at, window, WINDOWED), weights, 0.0)
    weight_gradient = tl.dot(out_gradient, tl.trans(value))
    score_gradient = weights * (weight_gradient - delta[:, None])
    return tl.dot(score_gradient.to(key.dtype), key, gradient)


@triton.jit(do_not_specialize=["tokens", "window"])
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, out_gradient_ptr, gradient_ptr, delta_ptr, work_ptr,
    stride_q, stride_qh, stride_k, stride_kh, stride_v, stride_vh, stride_g, stride_gh, stride_dq,
    tokens, scale, natural_scale, window,
    WINDOWED: tl.constexpr, PACK: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, ONE_LOOP: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries; also leaves rowsum(dO * O) for the other kernel."""
    first_head = tl.program_id(0) * PACK
    kv_head = first_head // GROUP
    item = work_ptr + tl.program_id(1) * 5
    query_start = tl.load(item)
    document_start = tl.load(item + 1)
    document_end = tl.load(item + 2)
    rows = tl.arange(0, PACK * M)
    query_at = query_start + rows % M
    head = first_head + rows // M
    dims = tl.arange(0, D)
    inside = query_at < document_end
    q_at = q_ptr + query_at[:, None] * stride_q + head[:, None] * stride_qh + dims[None, :]
    g_at = out_gradient_ptr + query_at[:, None] * stride_g + head[:, None] * stride_gh
    o_at = query_at[:, None] * (HEADS * D) + head[:, None] * D + dims[None, :]
    query = tl.load(q_at, mask=inside[:, None], other=0.0)
    out_gradient = tl.load(g_at + dims[None, :], mask=inside[:, None], other=0.0)
    out = tl.load(out_ptr + o_at, mask=inside[:, None], other=0.0)
    lse = tl.load(lse_ptr + head * tokens + query_at, mask=inside, other=0.0)
    delta = tl.sum(out.to(tl.float32) * out_gradient.to(tl.float32), 1)
    tl.store(delta_ptr + head * tokens + query_at, delta, mask=inside)
    k_ptr += kv_head * stride_kh
    v_ptr += kv_head * stride_vh

    gradient = tl.zeros([PACK * M, D], tl.float32)
    first = document_start
    unmasked_from = document_start
    if WINDOWED:
        first += tl.maximum(query_start - window + 1 - document_start, 0) // N * N
        edge = tl.maximum(query_start + M - window - document_start, 0)
        unmasked_from += (edge + N - 1) // N * N
    diagonal = document_start + (query_start - document_start) // N * N
    last = tl.minimum(query_start + M, document_end)
    if ONE_LOOP:
        diagonal = first
        unmasked_from = last
    if WINDOWED and not ONE_LOOP:
        for at in tl.range(first, tl.minimum(unmasked_from, diagonal), N):
            gradient = _query_gradient_block(
                gradient, query, out_gradient, lse, delta, k_ptr, v_ptr, stride_k, stride_v,
                at, document_end, query_at, scale, window, True, True, D, N,
            )  # fmt: skip
    if not ONE_LOOP:
        for at in tl.range(unmasked_from, diagonal, N):
            gradient = _query_gradient_block(
                gradient, query, out_gradient, lse, delta, k_ptr, v_ptr, stride_k, stride_v,
                at, document_end, query_at, scale, window, False, False, D, N,
            )  # fmt: skip
    for at in tl.range(diagonal, last, N):
        gradient = _query_gradient_block(
            gradient, query, out_gradient, lse, delta, k_ptr, v_ptr, stride_k, stride_v,
            at, document_end, query_at, scale, window, True, WINDOWED, D, N,
        )  # fmt: skip
    gradient *= natural_scale
    dq_at = query_at[:, None] * stride_dq + head[:, None] * D + dims[None, :]
    tl.store(gradient_ptr + dq_at, gradient.to(gradient_ptr.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _key_gradient_block(
    key_gradient, value_gradient, key, value, q_ptr, g_ptr, lse_ptr, delta_ptr,
    stride_q, stride_g, query_start, document_end, key_at, scale, window,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, D: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    at = query_start + tl.arange(0, M)
    dims = tl.arange(0, D)
    inside = at < document_end
    query = tl.load(q_ptr + at[:, None] * stride_q + dims[None, :], mask=inside[:, None], other=0.0)
    out_gradient = tl.load(
        g_ptr + at[:, None] * stride_g + dims[None, :], mask=inside[:, None], other=0.0
    )
    # An infinite normaliser makes the weights of queries past the document's end zero.
    lse = tl.load(lse_ptr + at, mask=inside, other=float("inf"))
    delta = tl.load(delta_ptr + at, mask=inside, other=0.0)
    weights = tl.math.exp2(tl.dot(key, tl.trans(query)) * scale - lse[None, :])  # [N, M]
    if MASKED:
        seen = at[None, :] >= key_at[:, None]
        if WINDOWED:
            seen = seen & (at[None, :] - key_at[:, None] < window)
        weights = tl.where(seen, weights, 0.0)
    value_gradient = tl.dot(weights.to(value.dtype), out_gradient, value_gradient)
    weight_gradient = tl.dot(value, tl.trans(out_gradient))
    score_gradient = weights * (weight_gradient - delta[None, :])
    key_gradient = tl.dot(score_gradient.to(query.dtype), query, key_gradient)
    return key_gradient, value_gradient


@triton.jit(do_not_specialize=["tokens", "window"])
def key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, lse_ptr, out_gradient_ptr, delta_ptr, dk_ptr, dv_ptr, work_ptr,
    stride_q, stride_qh, stride_k, stride_kh, stride_v, stride_vh, stride_g, stride_gh,
    stride_dk, stride_dv, tokens, scale, natural_scale, window,
    WINDOWED: tl.constexpr, GROUP: tl.constexpr,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, ONE_LOOP: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, summed over the query heads that share them."""
    kv_head = tl.program_id(0)
    item = work_ptr + tl.program_id(1) * 5
    key_start = tl.load(item)
    document_end = tl.load(item + 2)
    key_at = key_start + tl.arange(0, N)
    dims = tl.arange(0, D)
    inside = (key_at < document_end)[:, None]
    k_at = k_ptr + kv_head * stride_kh + key_at[:, None] * stride_k + dims[None, :]
    v_at = v_ptr + kv_head * stride_vh + key_at[:, None] * stride_v + dims[None, :]
    key = tl.load(k_at, mask=inside, other=0.0)
    value = tl.load(v_at, mask=inside, other=0.0)
    key_gradient = tl.zeros([N, D], tl.float32)
    value_gradient = tl.zeros([N, D], tl.float32)
    last = document_end
    if WINDOWED:  # queries from here on see none of these keys
        last = tl.minimum(document_end, key_start + N - 1 + window)
    count = (last - key_start + M - 1) // M
    masked = count
    if not WINDOWED and not ONE_LOOP:
        masked = tl.minimum(count, (N + M - 1) // M)  # the diagonal
    # A loop runs over (query head, block): its pipeline is filled once, not once per head.
    for step in tl.range(0, masked * GROUP):
        head = kv_head * GROUP + step // masked
        at = key_start + step % masked * M
        key_gradient, value_gradient = _key_gradient_block(
            key_gradient, value_gradient, key, value,
            q_ptr + head * stride_qh, out_gradient_ptr + head * stride_gh,
            lse_ptr + head * tokens, delta_ptr + head * tokens,
            stride_q, stride_g, at, document_end, key_at, scale, window,
            True, WINDOWED, D, M,
        )  # fmt: skip
    if not WINDOWED and not ONE_LOOP:
        rest = count - masked
        for step in tl.range(0, rest * GROUP):
            head = kv_head * GROUP + step // rest
            at = key_start + (masked + step % rest) * M
            key_gradient, value_gradient = _key_gradient_block(
                key_gradient, value_gradient, key, value,
                q_ptr + head * stride_qh, out_gradient_ptr + head * stride_gh,
                lse_ptr + head * tokens, delta_ptr + head * tokens,
                stride_q, stride_g, at, document_end, key_at, scale, window,
                False, False, D, M,
            )  # fmt: skip
    key_gradient *= natural_scale
    kind = dk_ptr.dtype.element_ty
    column = kv_head * D + dims[None, :]
    tl.store(dk_ptr + key_at[:, None] * stride_dk + column, key_gradient.to(kind), mask=inside)
    tl.store(dv_ptr + key_at[:, None] * stride_dv + column, value_gradient.to(kind), mask=inside)
