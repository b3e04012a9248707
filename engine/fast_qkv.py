"""Queries and keys normalised, rotated and attended in one operator, for blocks like Qwen3's.

Between the projection and the attention kernel a Qwen3 block normalises queries and keys per
head and rotates them. Here that happens inside the attention kernels (`fast_qkv_kernel.py`), and
the gradients of queries, keys and values are written side by side, ready for one matrix product.

Invariant: the same function as the block's own forward within rounding (`prove_fused` compares
them on the model at hand). Documents stay isolated: each works on one document's tokens alone.

Limits: the `triton` backend; attention modules of the classes in `FUSABLE`, without biases and
sliding window, with the default rotary layout over the whole head.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from trainer_tui.engine.attention import (
    AttentionRefused,
    attached_backend,
    hidden_states,
    sample_batch,
)
from trainer_tui.engine.fast_blocks import decoder_blocks
from trainer_tui.engine.fast_mlp import fuse_mlp
from trainer_tui.engine.fast_packed_launch import (
    LARGE,
    LOG2_E,
    SMALL,
    Tile,
    Tiles,
    has_large_blocks,
)

FUSABLE = {"Qwen3Attention"}
TOKENS_PER_PROGRAM = 32
# Measured on an H100. Rows and stacking are those of `fast_packed`, whose work lists are used.
QKV_LARGE = Tiles(
    forward=Tile(rows=LARGE.forward.rows, columns=64, warps=8, stages=4),
    query_gradient=LARGE.query_gradient,
    key_gradient=Tile(rows=LARGE.key_gradient.rows, columns=32, warps=4, stages=3),
)


def _tiles(device: torch.device) -> Tiles:
    return QKV_LARGE if has_large_blocks(device) else SMALL


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
        given.parts(qkv)[1], out, given.k_weight, given.cos, given.sin,
        qkv.stride(0), out.stride(0), tokens, given.eps,
        D=given.head_dim, BLOCK=TOKENS_PER_PROGRAM, num_warps=4,
    )  # fmt: skip
    return out


def forward(given: Rotary, keys: Tensor, work: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """Output [tokens, heads, head_dim] and base-2 log-sum-exp, float32 [heads, tokens]."""
    from trainer_tui.engine.fast_qkv_kernel import forward_kernel

    qkv, tokens, heads = given.qkv, given.qkv.shape[0], given.heads
    out = qkv.new_empty((tokens, heads, given.head_dim))
    lse = qkv.new_empty((heads, tokens), dtype=torch.float32)
    queries, _, values = given.parts(qkv)
    stacked = tile.heads_stacked(given.group)
    forward_kernel[(heads // stacked, work.shape[0])](
        queries, keys, values, out, lse, work, given.q_weight, given.cos, given.sin,
        qkv.stride(0), keys.stride(0), tokens, given.scale * LOG2_E, given.eps,
        PACK=stacked, GROUP=given.group, HEADS=heads, D=given.head_dim,
        M=tile.rows // stacked, N=tile.columns,
        num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers,
    )  # fmt: skip
    return out, lse


def query_gradient(
    given: Rotary, keys: Tensor, out: Tensor, lse: Tensor, out_gradient: Tensor, joint: Tensor,
    work: Tensor, tile: Tile,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Writes the queries' columns of `joint`; returns rotated queries [tokens, heads, head_dim],
    rowsum(dO * O), float32 [heads, tokens], and shares of the norm weight's gradient."""
    from trainer_tui.engine.fast_qkv_kernel import query_gradient_kernel

    qkv, tokens, heads = given.qkv, given.qkv.shape[0], given.heads
    stacked = tile.heads_stacked(given.group)
    grid = (heads // stacked, work.shape[0])
    rotated, delta = torch.empty_like(out), torch.empty_like(lse)
    shares = qkv.new_empty((grid[0] * grid[1], given.head_dim), dtype=torch.float32)
    queries, _, values = given.parts(qkv)
    query_gradient_kernel[grid](
        queries, keys, values, out, lse, out_gradient, work,
        given.q_weight, given.cos, given.sin, given.parts(joint)[0], rotated, delta, shares,
        qkv.stride(0), keys.stride(0), out_gradient.stride(0),
        tokens, given.scale * LOG2_E, given.scale, given.eps,
        PACK=stacked, GROUP=given.group, HEADS=heads, D=given.head_dim,
        M=tile.rows // stacked, N=tile.columns,
        num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers,
    )  # fmt: skip
    return rotated, delta, shares


def key_gradient(
    given: Rotary, rotated: Tensor, keys: Tensor, lse: Tensor, delta: Tensor, out_gradient: Tensor,
    joint: Tensor, work: Tensor, tile: Tile,
) -> Tensor:  # fmt: skip
    """Writes the keys' and values' columns of `joint`; returns shares of the norm weight's
    gradient, float32 [programs, head_dim]."""
    from trainer_tui.engine.fast_qkv_kernel import key_gradient_kernel

    qkv, tokens = given.qkv, given.qkv.shape[0]
    shares = qkv.new_empty((given.kv_heads * work.shape[0], given.head_dim), dtype=torch.float32)
    _, raw_keys, values = given.parts(qkv)
    _, to_keys, to_values = given.parts(joint)
    key_gradient_kernel[(given.kv_heads, work.shape[0])](
        rotated, keys, raw_keys, values, lse, out_gradient, delta, work,
        given.k_weight, given.cos, given.sin, to_keys, to_values, shares,
        qkv.stride(0), rotated.stride(0), keys.stride(0), out_gradient.stride(0),
        tokens, given.scale * LOG2_E, given.scale, given.eps,
        GROUP=given.group, D=given.head_dim, M=tile.columns, N=tile.rows,
        num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers,
    )  # fmt: skip
    return shares


@torch.library.custom_op("trainer_tui::qkv_attention", mutates_args=())
def qkv_attention(
    qkv: Tensor,  # [tokens, (heads + 2 * kv_heads) * head_dim]
    q_weight: Tensor,  # [head_dim]
    k_weight: Tensor,
    cos: Tensor,  # [tokens, head_dim]
    sin: Tensor,
    query_work: Tensor,
    query_gradient_work: Tensor,
    key_gradient_work: Tensor,
    kv_heads: int,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention output [tokens, heads, head_dim], log-sum-exp, rotated keys."""
    given = Rotary(qkv, q_weight, k_weight, cos, sin, kv_heads, eps, scale)
    keys = rotate_keys(given)
    out, lse = forward(given, keys, query_work, _tiles(qkv.device).forward)
    return out, lse, keys


@qkv_attention.register_fake
def _(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    query_work: Tensor, query_gradient_work: Tensor, key_gradient_work: Tensor,
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
    sin: Tensor, out: Tensor, lse: Tensor, keys: Tensor, query_work: Tensor, key_work: Tensor,
    kv_heads: int, eps: float, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of qkv, q_weight and k_weight."""
    given = Rotary(qkv, q_weight, k_weight, cos, sin, kv_heads, eps, scale)
    joint, tiles = torch.empty_like(qkv), _tiles(qkv.device)
    # In this order: the first also leaves what the second needs.
    rotated, delta, q_shares = query_gradient(
        given, keys, out, lse, out_gradient, joint, query_work, tiles.query_gradient
    )
    k_shares = key_gradient(
        given, rotated, keys, lse, delta, out_gradient, joint, key_work, tiles.key_gradient
    )
    return joint, q_shares.sum(0).to(q_weight.dtype), k_shares.sum(0).to(k_weight.dtype)


@qkv_attention_backward.register_fake
def _(
    out_gradient: Tensor, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor,
    sin: Tensor, out: Tensor, lse: Tensor, keys: Tensor, query_work: Tensor, key_work: Tensor,
    kv_heads: int, eps: float, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        torch.empty_like(qkv),
        q_weight.new_empty(q_weight.shape),
        k_weight.new_empty(k_weight.shape),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, q_weight, k_weight, cos, sin, _, query_work, key_work, *constants = inputs
    ctx.save_for_backward(qkv, q_weight, k_weight, cos, sin, *output, query_work, key_work)
    ctx.constants = constants
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
    query_work: Tensor,
    query_gradient_work: Tensor,
    key_gradient_work: Tensor,
    **unused: Any,
) -> tuple[Tensor, None]:
    """The attention module's forward, in place of transformers' own."""
    weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
    qkv = nn.functional.linear(hidden_states, weight).squeeze(0)
    cos, sin = (table.squeeze(0) for table in position_embeddings)
    out, _, _ = qkv_attention(
        qkv, self.q_norm.weight, self.k_norm.weight, cos, sin,
        query_work, query_gradient_work, key_gradient_work,
        self.k_proj.weight.shape[0] // self.head_dim, self.q_norm.variance_epsilon, self.scaling,
    )  # fmt: skip
    return self.o_proj(out.flatten(1).unsqueeze(0)), None


def _fusable(module: nn.Module) -> bool:
    attention: Any = module
    if type(module).__name__ not in FUSABLE or attention.attention_dropout:
        return False
    if attention.sliding_window:
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


@torch.no_grad()
def prove_fused(model: nn.Module, tolerance: float = 3e-2) -> None:
    """Compare the fused model's hidden states with those of the modules' own forward.

    Args:
        tolerance: relative norm of the difference. Two bf16 forward passes of 28 blocks that
            round in different places differ by about 1e-2.

    Raises:
        AttentionRefused: they differ by more than rounding (relative norm).
    """
    batch = sample_batch(model)
    ours = hidden_states(model, batch).float()
    modules: list[Any] = [m for block in decoder_blocks(model) for m in block.children()]
    fused = [module for module in modules if "forward" in vars(module)]
    kept = [vars(module).pop("forward") for module in fused]
    theirs = hidden_states(model, batch).float()
    for module, forward in zip(fused, kept, strict=True):
        module.forward = forward
    # The host waits here, once, before the first step.
    if not bool((ours - theirs).norm() <= tolerance * theirs.norm()):
        raise AttentionRefused(
            f"The fused attention of {type(model).__name__} differs from the model's own.",
            "Leave it out (fuse_attention) and report this.",
        )
