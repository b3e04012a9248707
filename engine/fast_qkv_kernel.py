"""Triton kernels of Qwen3's attention: norm, rotation and packed attention in one, both ways.

Input is the joint projection [tokens, (heads + 2 * kv_heads) * head_dim]: queries, keys, values.
Forward, a query tile is read once by the program that owns it, so queries are normalised and
rotated in registers there; keys are streamed past many times and are rotated once beforehand.

Backward there are three kernels. `prepare_queries_kernel` rotates the queries again (nothing of
them is kept from the forward pass) and sums dO * O. `key_gradient_kernel` computes the weights
and the gradient of the scores, block by block, uses both for keys and values, and leaves the
gradient of the scores in memory, bf16. `query_gradient_kernel` then is one matrix product with
it: where it would compute scores and weights a second time (two products of three, and the
exponentials), it reads 2 bytes per pair of tokens. That pays while documents are short, as chat is.

The gradient of the scores lies in tiles of TOKENS x TOKENS of one document and one head, [query,
key]; those of a document in the order of a lower triangle, the heads of one place side by side.

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

TOKENS = tl.constexpr(64)  # queries and keys of a tile of score gradients


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
    x_ptr, out_ptr, weight_ptr, cos_ptr, sin_ptr, tokens, eps,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    QKV: tl.constexpr = KV_HEADS * (GROUP + 2) * D  # elements of a token
    head = tl.program_id(1)
    HALF: tl.constexpr = D // 2
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < tokens
    first = head * D + tl.arange(0, HALF)[None, :]
    x1, x2 = _halves(x_ptr + at[:, None] * QKV + first, inside, HALF)
    w1, w2 = _weights(weight_ptr, HALF)
    cos, sin = _angles(cos_ptr, sin_ptr, at, inside, HALF)
    y1, y2 = _rotated(x1, x2, w1, w2, cos, sin, eps, HALF, out_ptr.dtype.element_ty)
    to = out_ptr + at[:, None] * (KV_HEADS * D) + first
    tl.store(to, y1, mask=inside[:, None])
    tl.store(to + HALF, y2, mask=inside[:, None])


@triton.jit(do_not_specialize=["tokens"])
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, work_ptr, weight_ptr, cos_ptr, sin_ptr,
    tokens, scale, eps,
    PACK: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """`q_ptr` raw queries, `k_ptr` rotated keys, `v_ptr` raw values; `scale` for base-2."""
    HALF: tl.constexpr = D // 2
    QKV: tl.constexpr = KV_HEADS * (GROUP + 2) * D
    OUT: tl.constexpr = KV_HEADS * GROUP * D
    first_head = tl.program_id(0) * PACK
    kv_head = first_head // GROUP
    item = work_ptr + tl.program_id(1) * 5
    query_start = tl.load(item)
    document_start = tl.load(item + 1)
    document_end = tl.load(item + 2)
    rows = tl.arange(0, PACK * M)
    query_at = query_start + rows % M
    head = first_head + rows // M
    half_dims = tl.arange(0, HALF)
    dims = tl.arange(0, D)
    inside = query_at < document_end
    q_at = q_ptr + query_at[:, None] * QKV + head[:, None] * D + half_dims[None, :]
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
        key = tl.load(k_ptr + at[:, None] * (KV_HEADS * D) + dims[None, :], mask=valid, other=0.0)
        value = tl.load(v_ptr + at[:, None] * QKV + dims[None, :], mask=valid, other=0.0)
        scores = tl.dot(query, tl.trans(key))
        scores = tl.where(query_at[:, None] >= at[None, :], scores, -1.0e6)
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
        weights = tl.math.exp2(scores * scale - new_max[:, None])
        shrink = tl.math.exp2(row_max - new_max)
        row_sum = row_sum * shrink + tl.sum(weights, 1)
        out = tl.dot(weights.to(value.dtype), value, out * shrink[:, None])
        row_max = new_max
    out = out / row_sum[:, None]
    o_at = out_ptr + query_at[:, None] * OUT + head[:, None] * D + dims[None, :]
    tl.store(o_at, out.to(out_ptr.dtype.element_ty), mask=inside[:, None])
    tl.store(lse_ptr + head * tokens + query_at, row_max + tl.math.log2(row_sum), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def prepare_queries_kernel(
    q_ptr, out_ptr, out_gradient_ptr, lse_ptr, work_ptr, weight_ptr, cos_ptr, sin_ptr,
    rotated_ptr, rows_ptr, tokens, eps,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """What the backward kernels want of the queries: rotated, and for each row its log-sum-exp and
    rowsum(dO * O), [blocks, heads, 2, TOKENS], blocks in the documents' order."""
    HALF: tl.constexpr = D // 2
    QKV: tl.constexpr = KV_HEADS * (GROUP + 2) * D
    OUT: tl.constexpr = KV_HEADS * GROUP * D
    head = tl.program_id(0)
    item = work_ptr + tl.program_id(1) * 5
    start = tl.load(item)
    block = tl.load(item + 3) + (start - tl.load(item + 1)) // TOKENS
    in_block = tl.arange(0, TOKENS)
    at = start + in_block
    inside = at < tl.load(item + 2)
    half_dims = tl.arange(0, HALF)[None, :]
    q1, q2 = _halves(q_ptr + at[:, None] * QKV + head * D + half_dims, inside, HALF)
    o_at = at[:, None] * OUT + head * D + half_dims
    o1, o2 = _halves(out_ptr + o_at, inside, HALF)
    g1, g2 = _halves(out_gradient_ptr + o_at, inside, HALF)
    # An infinite normaliser makes the weights of rows past the document's end zero.
    lse = tl.load(lse_ptr + head * tokens + at, mask=inside, other=float("inf"))
    w1, w2 = _weights(weight_ptr, HALF)
    cos, sin = _angles(cos_ptr, sin_ptr, at, inside, HALF)
    q1, q2 = _rotated(q1, q2, w1, w2, cos, sin, eps, HALF, q_ptr.dtype.element_ty)
    tl.store(rotated_ptr + o_at, q1, mask=inside[:, None])
    tl.store(rotated_ptr + o_at + HALF, q2, mask=inside[:, None])
    delta = tl.sum(o1.to(tl.float32) * g1.to(tl.float32), 1)
    delta += tl.sum(o2.to(tl.float32) * g2.to(tl.float32), 1)
    rows_ptr += (block * tl.num_programs(0) + head) * (2 * TOKENS)
    tl.store(rows_ptr + in_block, lse)
    tl.store(rows_ptr + TOKENS + in_block, delta)


@triton.jit
def _first_tile(tiles_before, row):
    """Number of the first tile of a document's row of tiles, 64 bits: it addresses gigabytes."""
    return (tiles_before + (row * (row + 1) >> 1)).to(tl.int64)


@triton.jit
def key_gradient_kernel(
    rotated_ptr, k_ptr, raw_k_ptr, v_ptr, out_gradient_ptr, rows_ptr, work_ptr,
    weight_ptr, cos_ptr, sin_ptr, dk_ptr, dv_ptr, share_ptr, scores_ptr,
    scale, natural_scale, eps, first_kv_head,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Gradients of the raw keys, of their norm's weight and of the values; leaves that of the
    scores for `query_gradient_kernel`."""
    HALF: tl.constexpr = D // 2
    QKV: tl.constexpr = KV_HEADS * (GROUP + 2) * D
    OUT: tl.constexpr = KV_HEADS * GROUP * D
    SHIFT: tl.constexpr = 1 if GROUP == 2 else 2 if GROUP == 4 else 3
    tl.static_assert(N == TOKENS and TOKENS == 64 and TOKENS % M == 0 and GROUP == 1 << SHIFT)
    kv_head = first_kv_head + tl.program_id(0)
    item = work_ptr + tl.program_id(1) * 5
    key_start = tl.load(item)
    document_start = tl.load(item + 1)
    document_end = tl.load(item + 2)
    blocks_before = tl.load(item + 3)
    tiles_before = tl.load(item + 4)
    key_at = key_start + tl.arange(0, N)
    half_dims = tl.arange(0, HALF)
    dims = tl.arange(0, D)
    inside = key_at < document_end
    k_at = key_at[:, None] * (KV_HEADS * D) + kv_head * D + dims[None, :]
    key = tl.load(k_ptr + k_at, mask=inside[:, None], other=0.0)
    v_at = key_at[:, None] * QKV + kv_head * D + dims[None, :]
    value = tl.load(v_ptr + v_at, mask=inside[:, None], other=0.0)
    key_gradient = tl.zeros([N, D], tl.float32)
    value_gradient = tl.zeros([N, D], tl.float32)
    left = document_end - key_start
    column = (key_start - document_start) // TOKENS
    rows = tl.arange(0, M)
    columns = tl.arange(0, N)
    # What is the same in every step stays outside the loop: it is short of registers and of time.
    in_tile = rows[None, :] * TOKENS + columns[:, None]  # [key, query] of a [query, key] tile
    in_rows = rows[:, None] * OUT + dims[None, :]
    first = key_start * OUT + kv_head * GROUP * D
    rotated_ptr += first
    out_gradient_ptr += first
    rows_ptr += ((blocks_before + column) * KV_HEADS + kv_head) * (GROUP * 2 * TOKENS)
    heads_here = tl.num_programs(0) * GROUP
    scores_ptr += tl.program_id(0) * (GROUP * TOKENS * TOKENS)
    # One loop over (block, query head): its pipeline is filled once, not once per head.
    for step in tl.range(0, (left + M - 1) // M * GROUP):
        head = step & (GROUP - 1)
        passed = (step >> SHIFT) * M
        row = passed >> 6
        start = passed * OUT + head * D
        valid = (rows < left - passed)[:, None]
        query = tl.load(rotated_ptr + start + in_rows, mask=valid, other=0.0)
        out_gradient = tl.load(out_gradient_ptr + start + in_rows, mask=valid, other=0.0)
        in_block = passed - row * TOKENS
        of_rows = rows_ptr + (row * (KV_HEADS * GROUP) + head) * (2 * TOKENS) + in_block
        lse = tl.load(of_rows + rows)
        delta = tl.load(of_rows + TOKENS + rows)
        weights = tl.math.exp2(tl.dot(key, tl.trans(query)) * scale - lse[None, :])  # [N, M]
        weights = tl.where(rows[None, :] >= (columns - passed)[:, None], weights, 0.0)
        value_gradient = tl.dot(weights.to(out_gradient.dtype), out_gradient, value_gradient)
        weight_gradient = tl.dot(value, tl.trans(out_gradient))
        score_gradient = (weights * (weight_gradient - delta[None, :])).to(query.dtype)
        key_gradient = tl.dot(score_gradient, query, key_gradient)
        tile = (_first_tile(tiles_before, column + row) + column) * heads_here + head
        place = scores_ptr + tile * (TOKENS * TOKENS) + in_block * TOKENS
        tl.store(place + in_tile, score_gradient)
    kind = dv_ptr.dtype.element_ty
    tl.store(dv_ptr + v_at, value_gradient.to(kind), mask=inside[:, None])
    g1, g2 = _parted(key_gradient * natural_scale, N, D)
    w1, w2 = _weights(weight_ptr, HALF)
    cos, sin = _angles(cos_ptr, sin_ptr, key_at, inside, HALF)
    raw_at = key_at[:, None] * QKV + kv_head * D + half_dims[None, :]
    program = kv_head * tl.num_programs(1) + tl.program_id(1)
    _norm_gradient(
        g1, g2, raw_k_ptr + raw_at, dk_ptr + raw_at,
        share_ptr + program * D, w1, w2, cos, sin, inside, eps, HALF,
    )  # fmt: skip


@triton.jit
def query_gradient_kernel(
    q_ptr, k_ptr, scores_ptr, work_ptr, weight_ptr, cos_ptr, sin_ptr, gradient_ptr, share_ptr,
    natural_scale, eps, first_kv_head,
    PACK: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradient of the raw queries and of their norm's weight, from that of the scores."""
    HALF: tl.constexpr = D // 2
    QKV: tl.constexpr = KV_HEADS * (GROUP + 2) * D
    first_local = tl.program_id(0) * PACK
    first_head = first_kv_head * GROUP + first_local
    kv_head = first_head // GROUP
    item = work_ptr + tl.program_id(1) * 5
    query_start = tl.load(item)
    document_start = tl.load(item + 1)
    document_end = tl.load(item + 2)
    row = (query_start - document_start) // TOKENS
    heads_here = tl.num_programs(0) * PACK
    first_tile = _first_tile(tl.load(item + 4), row) * heads_here + first_local
    rows = tl.arange(0, PACK * TOKENS)
    keys = tl.arange(0, TOKENS)
    dims = tl.arange(0, D)
    scores_ptr += first_tile * (TOKENS * TOKENS)
    score_at = rows[:, None] * TOKENS + keys[None, :]
    k_ptr += kv_head * D
    gradient = tl.zeros([PACK * TOKENS, D], tl.float32)
    for column in tl.range(0, row + 1):
        at = document_start + column * TOKENS + keys
        key = tl.load(
            k_ptr + at[:, None] * (KV_HEADS * D) + dims[None, :],
            mask=(at < document_end)[:, None], other=0.0,
        )  # fmt: skip
        # Rows past the document's end hold what was there before; they reach no row that is kept.
        tile = scores_ptr + column * (heads_here * TOKENS * TOKENS)
        score_gradient = tl.load(tile + score_at)
        gradient = tl.dot(score_gradient, key, gradient)
    g1, g2 = _parted(gradient * natural_scale, PACK * TOKENS, D)
    query_at = query_start + rows % TOKENS
    head = first_head + rows // TOKENS
    inside = query_at < document_end
    half_dims = tl.arange(0, HALF)
    raw_at = query_at[:, None] * QKV + head[:, None] * D + half_dims[None, :]
    w1, w2 = _weights(weight_ptr, HALF)
    cos, sin = _angles(cos_ptr, sin_ptr, query_at, inside, HALF)
    # A row that is not kept may hold anything, and the weight's gradient sums over rows.
    g1 = tl.where(inside[:, None], g1, 0.0)
    g2 = tl.where(inside[:, None], g2, 0.0)
    program = first_head // PACK * tl.num_programs(1) + tl.program_id(1)
    _norm_gradient(
        g1, g2, q_ptr + raw_at, gradient_ptr + raw_at,
        share_ptr + program * D, w1, w2, cos, sin, inside, eps, HALF,
    )  # fmt: skip
