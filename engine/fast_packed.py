"""Causal attention over packed documents as one torch operator: the `triton` backend.

The kernels are in `fast_packed_kernel.py`, their launches and work lists in
`fast_packed_launch.py`. Here is the registration that lets `torch.compile` see the operator as
one opaque node, and transformers' calling convention around it.

Limits: CUDA of compute capability 8.0 or newer, bf16 or fp16, head_dim 16, 32, 64 or 128, no
soft-cap, no attention dropout. `window` 0 means full attention.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from trainer_tui.engine import fast_packed_launch as launch
from trainer_tui.engine.attention import (
    AttentionRefused,
    Backend,
    Demand,
    in_compute_type,
    refuse_unknown,
)
from trainer_tui.engine.batch import MicroBatch
from trainer_tui.engine.fast_packed_launch import Packed, tiles_for

FUSED_TOKENS = 32  # queries of a block of `fast_qkv`'s forward pass


@torch.library.custom_op("trainer_tui::packed_attention", mutates_args=())
def packed_attention(
    query: Tensor,  # [tokens, heads, head_dim]
    key: Tensor,  # [tokens, kv_heads, head_dim]
    value: Tensor,
    query_work: Tensor,  # int32 [blocks, 5]
    query_gradient_work: Tensor,
    key_gradient_work: Tensor,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    """Output [tokens, heads, head_dim] and base-2 log-sum-exp, float32 [heads, tokens]."""
    tile = tiles_for(query.device).forward
    return launch.forward(Packed(query, key, value, scale, window), query_work, tile)


@packed_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, query_work: Tensor, query_gradient_work: Tensor,
    key_gradient_work: Tensor, scale: float, window: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tokens, heads, head_dim = query.shape
    return query.new_empty((tokens, heads, head_dim)), query.new_empty(
        (heads, tokens), dtype=torch.float32
    )


@torch.library.custom_op("trainer_tui::packed_attention_backward", mutates_args=())
def packed_attention_backward(
    out_gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    query_work: Tensor, key_work: Tensor, scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value, contiguous."""
    packed, tiles = Packed(query, key, value, scale, window), tiles_for(query.device)
    # In this order: the first also leaves what the second needs.
    dq, delta = launch.query_gradient(
        packed, out, lse, out_gradient, query_work, tiles.query_gradient
    )
    dk, dv = launch.key_gradient(packed, lse, delta, out_gradient, key_work, tiles.key_gradient)
    return dq, dk, dv


@packed_attention_backward.register_fake
def _(
    out_gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    query_work: Tensor, key_work: Tensor, scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    new = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value)]
    return new[0], new[1], new[2]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, _, query_gradient_work, key_gradient_work, scale, window = inputs
    out, lse = output
    ctx.save_for_backward(query, key, value, out, lse, query_gradient_work, key_gradient_work)
    ctx.scale, ctx.window = scale, window
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, out_gradient: Tensor, lse_gradient: Tensor | None) -> tuple[Any, ...]:
    query, key, value, out, lse, query_work, key_work = ctx.saved_tensors
    dq, dk, dv = packed_attention_backward(
        _rows_contiguous(out_gradient), query, key, value, out, lse, query_work, key_work,
        ctx.scale, ctx.window,
    )  # fmt: skip
    return dq, dk, dv, None, None, None, None, None


packed_attention.register_autograd(_backward, setup_context=_remember)


def _rows_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def attention(
    module: nn.Module,
    query: Tensor,  # [1, heads, tokens, head_dim]
    key: Tensor,  # [1, kv_heads, tokens, head_dim]
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    query_work: Tensor,
    query_gradient_work: Tensor,
    key_gradient_work: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature around the operator; [1, tokens, heads, head_dim]."""
    refuse_unknown(unused)
    if softcap is not None or dropout > 0:
        raise AttentionRefused("The `triton` attention knows no soft-cap and no dropout.")
    q, k, v = (
        _rows_contiguous(t.squeeze(0).transpose(0, 1)) for t in in_compute_type(query, key, value)
    )
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    out, _ = packed_attention(
        q, k, v, query_work, query_gradient_work, key_gradient_work, scale, sliding_window or 0
    )
    return out[None], None


def arguments(batch: MicroBatch, demand: Demand) -> dict[str, Any]:
    """The work lists on the batch's device; the first two entries are for `fast_qkv` alone, whose
    modules are called with the same arguments."""
    device = batch.input_ids.device

    @cache
    def work(rows: int, for_queries: bool) -> Tensor:
        host = torch.from_numpy(launch.blocks(batch.lengths, rows, for_queries))
        if device.type != "cuda":
            return host.to(device)
        # Queued, not waited for: the list is small and pinned.
        return host.pin_memory().to(device, non_blocking=True)

    group, tiles = demand.group, tiles_for(device)
    score_tiles = launch.score_tiles(batch.lengths, tiles.key_gradient.rows)
    return {
        "fused_work": work(FUSED_TOKENS, True),
        "score_tiles": torch.empty(score_tiles, dtype=torch.int8, device=device),
        "query_work": work(tiles.forward.query_tokens(group), True),
        "query_gradient_work": work(tiles.query_gradient.query_tokens(group), True),
        "key_gradient_work": work(tiles.key_gradient.rows, False),
    }


def why_not(demand: Demand) -> str | None:
    if demand.device.type != "cuda" or not torch.cuda.is_available():
        return f"it needs a CUDA device, this is `{demand.device.type}`"
    if torch.cuda.get_device_capability(demand.device) < (8, 0):
        return "it needs compute capability 8.0 or newer"
    if find_spec("triton") is None:
        return "triton is not installed"
    if demand.dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bfloat16 or float16, not {demand.dtype}"
    if demand.head_dim not in (16, 32, 64, 128):
        return f"a head dimension of {demand.head_dim} is not 16, 32, 64 or 128"
    if demand.softcap is not None:
        return "the model soft-caps its attention scores"
    return "the model drops out attention weights" if demand.dropout > 0 else None


TRITON = Backend(
    name="triton", forward=attention, arguments=arguments, why_not=why_not, compiles=True
)
