"""Queries and keys normalised, rotated and attended in one operator, for blocks like Qwen3's.

Between the projection and the attention kernel a Qwen3 block normalises queries and keys per
head and rotates them. Compiled separately that is nine passes over them a layer (10 ms of a 250 ms
step on an H200); here it is one forward and one backward, and the gradients of queries, keys and
values are written side by side, ready for one matrix product.

Invariant: the same function as the block's own forward within rounding (`prove_fused` compares
them on the model at hand). Documents stay isolated: the attention kernels are those of
`fast_packed.py`, the rest works on one token at a time.

Limits: the `triton` backend; attention modules of the classes in `FUSABLE`, without biases, with
the default rotary layout over the whole head.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from trainer_tui.engine import fast_packed_launch as launch
from trainer_tui.engine.attention import (
    AttentionRefused,
    attached_backend,
    hidden_states,
    sample_batch,
)
from trainer_tui.engine.fast_blocks import decoder_blocks
from trainer_tui.engine.fast_mlp import fuse_mlp
from trainer_tui.engine.fast_packed_launch import TILES, Packed

FUSABLE = {"Qwen3Attention"}
TOKENS_PER_PROGRAM = 32


def _rotated(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    heads: int, kv_heads: int, eps: float,
) -> Tensor:  # fmt: skip
    """Queries and keys as attention wants them, [tokens, heads + kv_heads, head_dim]."""
    from trainer_tui.engine.fast_qkv_kernel import rotate_kernel

    tokens, head_dim = qkv.shape[0], q_weight.shape[0]
    both = heads + kv_heads
    out = torch.empty((tokens, both, head_dim), dtype=qkv.dtype, device=qkv.device)
    rotate_kernel[(-(-tokens // TOKENS_PER_PROGRAM), both)](
        qkv, out, q_weight, k_weight, cos, sin, qkv.stride(0), out.stride(0), tokens, eps,
        HEADS=heads, D=head_dim, BLOCK=TOKENS_PER_PROGRAM, num_warps=4,
    )  # fmt: skip
    return out


def _packed(
    rotated: Tensor, qkv: Tensor, heads: int, kv_heads: int, scale: float, window: int
) -> Packed:
    head_dim = rotated.shape[2]
    value = qkv[:, (heads + kv_heads) * head_dim :].view(-1, kv_heads, head_dim)
    return Packed(rotated[:, :heads], rotated[:, heads:], value, scale, window)


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
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention output [tokens, heads, head_dim], log-sum-exp, rotated queries and keys."""
    heads = qkv.shape[1] // q_weight.shape[0] - 2 * kv_heads
    rotated = _rotated(qkv, q_weight, k_weight, cos, sin, heads, kv_heads, eps)
    packed = _packed(rotated, qkv, heads, kv_heads, scale, window)
    out, lse = launch.forward(packed, query_work, TILES.forward)
    return out, lse, rotated


@qkv_attention.register_fake
def _(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    query_work: Tensor, query_gradient_work: Tensor, key_gradient_work: Tensor,
    kv_heads: int, eps: float, scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    tokens, head_dim = qkv.shape[0], q_weight.shape[0]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    return (
        qkv.new_empty((tokens, heads, head_dim)),
        qkv.new_empty((heads, tokens), dtype=torch.float32),
        qkv.new_empty((tokens, heads + kv_heads, head_dim)),
    )


@torch.library.custom_op("trainer_tui::qkv_attention_backward", mutates_args=())
def qkv_attention_backward(
    out_gradient: Tensor, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor,
    sin: Tensor, out: Tensor, lse: Tensor, rotated: Tensor, query_work: Tensor, key_work: Tensor,
    kv_heads: int, eps: float, scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of qkv, q_weight and k_weight."""
    from trainer_tui.engine.fast_qkv_kernel import rotate_backward_kernel

    tokens, head_dim = qkv.shape[0], q_weight.shape[0]
    heads = out.shape[1]
    both = heads + kv_heads
    packed = _packed(rotated, qkv, heads, kv_heads, scale, window)
    joint = torch.empty((tokens, qkv.shape[1]), dtype=qkv.dtype, device=qkv.device)
    upstream = torch.empty_like(rotated)
    _, delta = launch.query_gradient(
        packed, out, lse, out_gradient, query_work, TILES.query_gradient, upstream[:, :heads]
    )
    value_gradient = joint[:, both * head_dim :].view(tokens, kv_heads, head_dim)
    launch.key_gradient(
        packed, lse, delta, out_gradient, key_work, TILES.key_gradient,
        (upstream[:, heads:], value_gradient),
    )  # fmt: skip
    programs = -(-tokens // TOKENS_PER_PROGRAM)
    partial = torch.empty((programs, both, head_dim), dtype=torch.float32, device=qkv.device)
    rotate_backward_kernel[(programs, both)](
        upstream, qkv, joint, partial, q_weight, k_weight, cos, sin,
        upstream.stride(0), qkv.stride(0), joint.stride(0), tokens, eps,
        HEADS=heads, ALL_HEADS=both, D=head_dim, BLOCK=TOKENS_PER_PROGRAM, num_warps=4,
    )  # fmt: skip
    shares = partial.sum(0)  # [heads + kv_heads, head_dim]
    q_share = shares[:heads].sum(0).to(q_weight.dtype)
    return joint, q_share, shares[heads:].sum(0).to(k_weight.dtype)


@qkv_attention_backward.register_fake
def _(
    out_gradient: Tensor, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor,
    sin: Tensor, out: Tensor, lse: Tensor, rotated: Tensor, query_work: Tensor, key_work: Tensor,
    kv_heads: int, eps: float, scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        qkv.new_empty(qkv.shape),
        q_weight.new_empty(q_weight.shape),
        k_weight.new_empty(k_weight.shape),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, q_weight, k_weight, cos, sin, _, query_work, key_work, *constants = inputs
    ctx.save_for_backward(qkv, q_weight, k_weight, cos, sin, *output, query_work, key_work)
    ctx.constants = constants
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, out_gradient: Tensor, *unused: Tensor | None) -> tuple[Any, ...]:
    gradient = out_gradient if out_gradient.stride(-1) == 1 else out_gradient.contiguous()
    joint, q_share, k_share = qkv_attention_backward(gradient, *ctx.saved_tensors, *ctx.constants)
    return (joint, q_share, k_share, *[None] * 9)


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
        self.k_proj.weight.shape[0] // self.head_dim,
        self.q_norm.variance_epsilon, self.scaling, self.sliding_window or 0,
    )  # fmt: skip
    return self.o_proj(out.flatten(1).unsqueeze(0)), None


def _fusable(module: nn.Module) -> bool:
    attention: Any = module
    if type(module).__name__ not in FUSABLE or attention.attention_dropout:
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
