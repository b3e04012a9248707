"""Causal attention over packed documents as one torch operator, with its work lists.

The kernels are in `fast_packed_kernel.py`. Here are the tile sizes, the lists of blocks to run
(made on the host from document lengths, heaviest first so that the last programs to start are
short), and the registration that lets `torch.compile` see the operator as one opaque node.

Limits: CUDA of compute capability 8.0 or newer, bf16 or fp16, head_dim 16, 32, 64 or 128, no
soft-cap, no attention dropout. `window` 0 means full attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer_tui.engine.attention import AttentionRefused, Backend, Demand, refuse_unknown
from trainer_tui.engine.batch import MicroBatch

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Tile:
    """One kernel's launch shape: rows and columns of its tile, warps, pipeline stages."""

    rows: int  # rows of the tile that stays: tokens * stacked heads, or keys
    columns: int  # rows of the tile that streams past
    warps: int
    stages: int
    one_loop: bool = True  # mask every block, instead of a second loop for the unmasked ones


@dataclass(frozen=True, slots=True)
class Tiles:
    forward: Tile
    query_gradient: Tile
    key_gradient: Tile


TILES = Tiles(
    forward=Tile(rows=128, columns=64, warps=8, stages=3),
    query_gradient=Tile(rows=128, columns=64, warps=8, stages=2),
    key_gradient=Tile(rows=64, columns=64, warps=4, stages=2),
)


def stacked_heads(group: int, rows: int) -> int:
    """Query heads of one key/value head that share a tile: a power of two, 64+ rows left each."""
    pack = 1
    while pack < 2 and group % (pack * 2) == 0 and rows // (pack * 2) >= 32:
        pack *= 2
    return pack


def blocks(lengths: tuple[int, ...], size: int, longest_loop_last: bool) -> np.ndarray:
    """Work list, int32 [blocks, 3]: where the block, its document and the document's end are.

    Sorted by work: a query block's grows with its distance from the document's start
    (`longest_loop_last`), a key block's with the distance to its end.
    """
    length = np.asarray(lengths, dtype=np.int64)
    ends = np.cumsum(length)
    starts = ends - length
    counts = -(-length // size)
    document = np.repeat(np.arange(len(length)), counts)
    first = np.cumsum(counts) - counts
    offset = (np.arange(counts.sum()) - np.repeat(first, counts)) * size
    work = offset if longest_loop_last else length[document] - offset
    order = np.argsort(-work, kind="stable")
    document, offset = document[order], offset[order]
    table = np.stack([starts[document] + offset, starts[document], ends[document]], axis=1)
    return table.astype(np.int32)


def _constants(query: Tensor, key: Tensor) -> dict[str, int]:
    heads, kv_heads = query.shape[1], key.shape[1]
    return {"GROUP": heads // kv_heads, "D": query.shape[2]}


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for t in tensors for stride in (t.stride(0), t.stride(1))]


@torch.library.custom_op("trainer_tui::packed_attention", mutates_args=())
def packed_attention(
    query: Tensor,  # [tokens, heads, head_dim]
    key: Tensor,  # [tokens, kv_heads, head_dim]
    value: Tensor,
    query_work: Tensor,  # int32 [blocks, 3]
    query_gradient_work: Tensor,
    key_gradient_work: Tensor,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    """Output [tokens, heads, head_dim] and base-2 log-sum-exp, float32 [heads, tokens]."""
    from trainer_tui.engine.fast_packed_kernel import forward_kernel

    tokens, heads, head_dim = query.shape
    out = torch.empty((tokens, heads, head_dim), dtype=query.dtype, device=query.device)
    lse = torch.empty((heads, tokens), dtype=torch.float32, device=query.device)
    constants = _constants(query, key)
    tile = TILES.forward
    pack = stacked_heads(constants["GROUP"], tile.rows)
    forward_kernel[(heads // pack, query_work.shape[0])](
        query, key, value, out, lse, query_work,
        *_strides(query, key, value), tokens, scale * LOG2_E, window,
        WINDOWED=window > 0, PACK=pack, HEADS=heads, **constants,
        M=tile.rows // pack, N=tile.columns, ONE_LOOP=tile.one_loop,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, lse


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
    from trainer_tui.engine.fast_packed_kernel import key_gradient_kernel, query_gradient_kernel

    tokens, heads, head_dim = query.shape
    kv_heads = key.shape[1]
    dq = torch.empty((tokens, heads, head_dim), dtype=query.dtype, device=query.device)
    dk = torch.empty((tokens, kv_heads, head_dim), dtype=key.dtype, device=key.device)
    dv = torch.empty_like(dk)
    delta = torch.empty_like(lse)
    constants = _constants(query, key)
    tile = TILES.query_gradient
    pack = stacked_heads(constants["GROUP"], tile.rows)
    strides = _strides(query, key, value, out_gradient)
    query_gradient_kernel[(heads // pack, query_work.shape[0])](
        query, key, value, out, lse, out_gradient, dq, delta, query_work,
        *strides, tokens, scale * LOG2_E, scale, window,
        WINDOWED=window > 0, PACK=pack, HEADS=heads, **constants,
        M=tile.rows // pack, N=tile.columns, ONE_LOOP=tile.one_loop,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    tile = TILES.key_gradient
    key_gradient_kernel[(kv_heads, key_work.shape[0])](
        query, key, value, lse, out_gradient, delta, dk, dv, key_work,
        *strides, tokens, scale * LOG2_E, scale, window,
        WINDOWED=window > 0, KV_HEADS=kv_heads, **constants,
        M=tile.columns, N=tile.rows, ONE_LOOP=True,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
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
    q, k, v = (_rows_contiguous(t[0].transpose(0, 1)) for t in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    out, _ = packed_attention(
        q, k, v, query_work, query_gradient_work, key_gradient_work, scale, sliding_window or 0
    )
    return out[None], None


def arguments(batch: MicroBatch, demand: Demand) -> dict[str, Any]:
    """The three work lists on the batch's device."""
    device = batch.input_ids.device

    @cache
    def work(rows: int, for_queries: bool) -> Tensor:
        host = torch.from_numpy(blocks(batch.lengths, rows, for_queries))
        if device.type != "cuda":
            return host.to(device)
        # Queued, not waited for: the list is small and pinned.
        return host.pin_memory().to(device, non_blocking=True)

    def query_tokens(tile: Tile) -> int:
        return tile.rows // stacked_heads(demand.group, tile.rows)

    return {
        "query_work": work(query_tokens(TILES.forward), True),
        "query_gradient_work": work(query_tokens(TILES.query_gradient), True),
        "key_gradient_work": work(TILES.key_gradient.rows, False),
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
