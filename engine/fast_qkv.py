"""Queries and keys normalised, rotated and attended in one operator, for blocks like Qwen3's.

Between the projection and the attention kernel a Qwen3 block normalises queries and keys per
head and rotates them. Here that happens inside the attention kernels (`fast_qkv_kernel.py`), and
the gradients of queries, keys and values are written side by side, ready for one matrix product.

Invariant: the same function as the block's own forward within rounding; `fused_proof.py`
compares them on the model at hand. Documents stay isolated: each works on one document's tokens
alone.

Limits: the `triton` backend; attention modules of the classes in `FUSABLE`, without biases and
sliding window, with 2, 4 or 8 query heads per key head and the default rotary layout over the
whole head. Backward needs room for the score gradients (`SCORE_BYTES`).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from trainer_tui.engine.attention import (
    attached_backend,
)
from trainer_tui.engine.fast_blocks import decoder_blocks
from trainer_tui.engine.fast_mlp import fuse_mlp
from trainer_tui.engine.fast_packed_launch import LOG2_E, Tile, has_large_blocks

FUSABLE = {"Qwen3Attention"}
TOKENS_PER_PROGRAM = 32
SCORE_TOKENS = 64  # queries and keys of a tile of score gradients (`fast_qkv_kernel.TOKENS`)
# Bytes that the score gradients of one launch may take; more heads than fit wait their turn.
SCORE_BYTES = {True: 1 << 30, False: 1 << 28}  # by `has_large_blocks`
# Measured on an H200 (`gpu_step_h200_parts.md`). All fit the shared memory of an RTX 3090.
FORWARD = Tile(rows=64, columns=32, warps=4, stages=3, registers=168)
QUERY_GRADIENT = Tile(rows=SCORE_TOKENS, columns=SCORE_TOKENS, warps=4, stages=3, stack=1)
KEY_GRADIENT = Tile(rows=SCORE_TOKENS, columns=32, warps=4, stages=3)


@dataclass(frozen=True, slots=True)
class Rotary:
    """What all kernels share besides the work lists."""

    qkv: Tensor  # [tokens, (heads + 2 * kv_heads) * head_dim]
    q_weight: Tensor  # [head_dim]
    k_weight: Tensor
    cos: Tensor  # [tokens, head_dim], the second half like the first
    sin: Tensor
    kv_heads: int
    eps: float
    scale: float

    @property
    def head_dim(self) -> int:
        return self.q_weight.shape[0]

    @property
    def heads(self) -> int:
        return self.qkv.shape[1] // self.head_dim - 2 * self.kv_heads

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    def parts(self, joint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The query, key and value columns of a tensor laid out like `qkv`."""
        keys, values = self.heads * self.head_dim, (self.heads + self.kv_heads) * self.head_dim
        return joint[:, :keys], joint[:, keys:values], joint[:, values:]


def rotate_keys(given: Rotary) -> Tensor:
    """Keys as attention wants them, [tokens, kv_heads * head_dim]."""
    from trainer_tui.engine.fast_qkv_kernel import rotate_keys_kernel

    qkv, tokens = given.qkv, given.qkv.shape[0]
    out = qkv.new_empty((tokens, given.kv_heads * given.head_dim))
    rotate_keys_kernel[(-(-tokens // TOKENS_PER_PROGRAM), given.kv_heads)](
        given.parts(qkv)[1], out, given.k_weight, given.cos, given.sin, tokens, given.eps,
        KV_HEADS=given.kv_heads, GROUP=given.group, D=given.head_dim,
        BLOCK=TOKENS_PER_PROGRAM, num_warps=4,
    )  # fmt: skip
    return out


def forward(
    given: Rotary, keys: Tensor, work: Tensor, tile: Tile = FORWARD
) -> tuple[Tensor, Tensor]:
    """Output [tokens, heads, head_dim] and base-2 log-sum-exp, float32 [heads, tokens]."""
    from trainer_tui.engine.fast_qkv_kernel import forward_kernel

    qkv, tokens, heads = given.qkv, given.qkv.shape[0], given.heads
    out = qkv.new_empty((tokens, heads, given.head_dim))
    lse = qkv.new_empty((heads, tokens), dtype=torch.float32)
    queries, _, values = given.parts(qkv)
    stacked = tile.heads_stacked(given.group)
    forward_kernel[(heads // stacked, work.shape[0])](
        queries, keys, values, out, lse, work, given.q_weight, given.cos, given.sin,
        tokens, given.scale * LOG2_E, given.eps,
        PACK=stacked, KV_HEADS=given.kv_heads, GROUP=given.group, D=given.head_dim,
        M=tile.rows // stacked, N=tile.columns,
        num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers,
    )  # fmt: skip
    return out, lse


def prepare_queries(
    given: Rotary, out: Tensor, lse: Tensor, out_gradient: Tensor, work: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotated queries [tokens, heads, head_dim]; of each row its log-sum-exp and rowsum(dO * O),
    float32 [blocks, heads, 2, SCORE_TOKENS]."""
    from trainer_tui.engine.fast_qkv_kernel import prepare_queries_kernel

    qkv, heads = given.qkv, given.heads
    rotated = torch.empty_like(out)
    rows = qkv.new_empty((work.shape[0], heads, 2, SCORE_TOKENS), dtype=torch.float32)
    prepare_queries_kernel[(heads, work.shape[0])](
        given.parts(qkv)[0], out, out_gradient, lse, work, given.q_weight, given.cos, given.sin,
        rotated, rows, qkv.shape[0], given.eps,
        KV_HEADS=given.kv_heads, GROUP=given.group, D=given.head_dim, num_warps=4,
    )  # fmt: skip
    return rotated, rows


def gradients(
    given: Rotary, out: Tensor, lse: Tensor, keys: Tensor, out_gradient: Tensor,
    work: Tensor, score_tiles: int, score_bytes: int,
    for_queries: Tile = QUERY_GRADIENT, for_keys: Tile = KEY_GRADIENT,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of `qkv` and, in float32, of the norms' weights.

    `work` lists blocks of SCORE_TOKENS. Key heads are taken in turns whose score gradients take
    at most `score_bytes`, one at least.
    """
    from trainer_tui.engine.fast_qkv_kernel import key_gradient_kernel, query_gradient_kernel

    qkv, group = given.qkv, given.group
    joint = torch.empty_like(qkv)
    to_queries, to_keys, to_values = given.parts(joint)
    queries, raw_keys, values = given.parts(qkv)
    rotated, rows = prepare_queries(given, out, lse, out_gradient, work)
    stacked = for_queries.heads_stacked(group)
    programs = given.heads // stacked  # of the query kernel, one block of tokens
    shares = qkv.new_empty(
        (programs + given.kv_heads, work.shape[0], given.head_dim), dtype=torch.float32
    )
    elements = score_tiles * group * SCORE_TOKENS**2  # of one key head
    at_once = min(given.kv_heads, max(1, score_bytes // (elements * qkv.element_size())))
    scores = qkv.new_empty(at_once * elements)
    sizes = {"KV_HEADS": given.kv_heads, "GROUP": group, "D": given.head_dim}
    for first in range(0, given.kv_heads, at_once):
        heads = min(at_once, given.kv_heads - first)
        key_gradient_kernel[(heads, work.shape[0])](
            rotated, keys, raw_keys, values, out_gradient, rows, work,
            given.k_weight, given.cos, given.sin, to_keys, to_values, shares[programs:], scores,
            given.scale * LOG2_E, given.scale, given.eps, first,
            **sizes, M=for_keys.columns, N=for_keys.rows, num_warps=for_keys.warps,
            num_stages=for_keys.stages, maxnreg=for_keys.registers,
        )  # fmt: skip
        query_gradient_kernel[(heads * group // stacked, work.shape[0])](
            queries, keys, scores, work, given.q_weight, given.cos, given.sin,
            to_queries, shares, given.scale, given.eps, first,
            **sizes, PACK=stacked, num_warps=for_queries.warps,
            num_stages=for_queries.stages, maxnreg=for_queries.registers,
        )  # fmt: skip
    # In one sum: there are few elements in a weight, too few to fill the card with one of them.
    of_heads = shares.sum(1)
    return joint, of_heads[:programs].sum(0), of_heads[programs:].sum(0)


@torch.library.custom_op("trainer_tui::qkv_attention", mutates_args=())
def qkv_attention(
    qkv: Tensor,  # [tokens, (heads + 2 * kv_heads) * head_dim]
    q_weight: Tensor,  # [head_dim]
    k_weight: Tensor,
    cos: Tensor,  # [tokens, head_dim]
    sin: Tensor,
    query_work: Tensor,  # int32 [blocks, 5], of the forward pass
    work: Tensor,  # of SCORE_TOKENS
    score_tiles: Tensor,  # [tiles]: only its size is used, which is no constant of a graph
    kv_heads: int,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention output [tokens, heads, head_dim], log-sum-exp, rotated keys."""
    given = Rotary(qkv, q_weight, k_weight, cos, sin, kv_heads, eps, scale)
    keys = rotate_keys(given)
    out, lse = forward(given, keys, query_work)
    return out, lse, keys


@qkv_attention.register_fake
def _(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    query_work: Tensor, work: Tensor, score_tiles: Tensor,
    kv_heads: int, eps: float, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    tokens, head_dim = qkv.shape[0], q_weight.shape[0]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    return (
        qkv.new_empty((tokens, heads, head_dim)),
        qkv.new_empty((heads, tokens), dtype=torch.float32),
        qkv.new_empty((tokens, kv_heads * head_dim)),
    )


@torch.library.custom_op("trainer_tui::qkv_attention_backward", mutates_args=())
def qkv_attention_backward(
    out_gradient: Tensor, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor,
    sin: Tensor, out: Tensor, lse: Tensor, keys: Tensor, work: Tensor,
    score_tiles: Tensor, kv_heads: int, eps: float, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of qkv, q_weight and k_weight."""
    given = Rotary(qkv, q_weight, k_weight, cos, sin, kv_heads, eps, scale)
    joint, q_gradient, k_gradient = gradients(
        given, out, lse, keys, out_gradient, work, score_tiles.shape[0],
        SCORE_BYTES[has_large_blocks(qkv.device)],
    )  # fmt: skip
    return joint, q_gradient.to(q_weight.dtype), k_gradient.to(k_weight.dtype)


@qkv_attention_backward.register_fake
def _(
    out_gradient: Tensor, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor,
    sin: Tensor, out: Tensor, lse: Tensor, keys: Tensor, work: Tensor,
    score_tiles: Tensor, kv_heads: int, eps: float, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        torch.empty_like(qkv),
        q_weight.new_empty(q_weight.shape),
        k_weight.new_empty(k_weight.shape),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, q_weight, k_weight, cos, sin, _, work, score_tiles, kv_heads, eps, scale = inputs
    ctx.save_for_backward(qkv, q_weight, k_weight, cos, sin, *output, work, score_tiles)
    ctx.constants = kv_heads, eps, scale
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, out_gradient: Tensor, *unused: Tensor | None) -> tuple[Any, ...]:
    joint, q_share, k_share = qkv_attention_backward(
        out_gradient.contiguous(), *ctx.saved_tensors, *ctx.constants
    )
    return (joint, q_share, k_share, *[None] * 8)


qkv_attention.register_autograd(_backward, setup_context=_remember)


def _fused_forward(
    self: Any,
    hidden_states: Tensor,  # [1, tokens, hidden]
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    *,
    fused_work: Tensor,
    key_gradient_work: Tensor,
    score_tiles: Tensor,
    **unused: Any,
) -> tuple[Tensor, None]:
    """The attention module's forward, in place of transformers' own."""
    weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
    qkv = nn.functional.linear(hidden_states, weight).squeeze(0)
    cos, sin = (table.squeeze(0) for table in position_embeddings)
    out, _, _ = qkv_attention(
        qkv, self.q_norm.weight, self.k_norm.weight, cos, sin,
        fused_work, key_gradient_work, score_tiles,
        self.k_proj.weight.shape[0] // self.head_dim, self.q_norm.variance_epsilon, self.scaling,
    )  # fmt: skip
    return self.o_proj(out.flatten(1).unsqueeze(0)), None


def _fusable(module: nn.Module) -> bool:
    attention: Any = module
    if type(module).__name__ not in FUSABLE or attention.attention_dropout:
        return False
    if attention.sliding_window or attention.num_key_value_groups not in (2, 4, 8):
        return False
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    plain = all(type(layer) is nn.Linear and layer.bias is None for layer in layers)
    return plain and attention.q_proj.weight.dtype in (torch.bfloat16, torch.float16)


def fuse_attention(model: nn.Module) -> int:
    """Give every block's attention and feed-forward the fused forward where they allow it.

    Returns how many modules changed. `compile_blocks` calls it. With parameters in float32
    (autocast) or another attention backend nothing is changed.
    """
    if attached_backend(model).name != "triton":
        return 0
    changed = 0
    for block in decoder_blocks(model):
        module = getattr(block, "self_attn", None)
        if module is not None and _fusable(module):
            module.forward = MethodType(_fused_forward, module)
            changed += 1
        mlp = getattr(block, "mlp", None)
        if mlp is not None:
            changed += fuse_mlp(mlp)
    return changed
