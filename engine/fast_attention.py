"""The attention backends, and the order in which `auto` tries them.

Every entry isolates documents by construction: it is handed the cumulative document lengths and
never a padded mask. What each needs is in its `why_not`; what each costs is in docs/speed.md.

`varlen` is torch's FlashAttention-2, `flex` torch's flex attention with a document block mask,
`triton` our own kernel (`fast_packed.py`).
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from trainer_tui.engine.attention import (
    SDPA_DOCUMENTS,
    AttentionRefused,
    Backend,
    Demand,
    in_compute_type,
    refuse_unknown,
)
from trainer_tui.engine.batch import MicroBatch
from trainer_tui.engine.fast_packed import TRITON


def _why_no_gpu(demand: Demand) -> str | None:
    if demand.device.type != "cuda" or not torch.cuda.is_available():
        return f"it needs a CUDA device, this is `{demand.device.type}`"
    if demand.dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bfloat16 or float16, not {demand.dtype}"
    return "the model drops out attention weights" if demand.dropout > 0 else None


@cache
def _takes_grouped_flag() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def varlen(
    module: nn.Module,
    query: Tensor,  # [1, heads, tokens, head_dim]
    key: Tensor,  # [1, kv_heads, tokens, head_dim]
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    document_starts: Tensor,
    longest: int,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """torch's own variable-length attention; [1, tokens, heads, head_dim]."""
    from torch.nn.attention.varlen import varlen_attn

    refuse_unknown(unused)
    if softcap is not None or dropout > 0:
        raise AttentionRefused("The `varlen` attention knows no soft-cap and no dropout.")
    q, k, v = (t.squeeze(0).transpose(0, 1) for t in in_compute_type(query, key, value))
    grouped: dict[str, Any] = (
        {"enable_gqa": True} if _takes_grouped_flag() and q.shape[1] != k.shape[1] else {}
    )
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    out: Any = varlen_attn(
        q, k, v, document_starts, document_starts, longest, longest,
        scale=scaling, window_size=window, **grouped,
    )  # fmt: skip
    return out[None], None


def _varlen_arguments(batch: MicroBatch, demand: Demand) -> dict[str, Any]:
    # Rounded up: a Python integer that changes every step would recompile the block every step.
    longest = max(128, 1 << (batch.longest - 1).bit_length())
    return {"document_starts": batch.document_starts, "longest": longest}


def _why_no_varlen(demand: Demand) -> str | None:
    reason = _why_no_gpu(demand)
    if reason is not None:
        return reason
    if demand.softcap is not None:
        return "the model soft-caps its attention scores"
    return "a head dimension above 256" if demand.head_dim > 256 else None


def flex(
    module: nn.Module,
    query: Tensor,  # [1, heads, tokens, head_dim]
    key: Tensor,  # [1, kv_heads, tokens, head_dim]
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    block_masks: dict[int, Any],
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """torch's flex attention under a compiled document mask; [1, tokens, heads, head_dim]."""
    from torch.nn.attention.flex_attention import flex_attention

    refuse_unknown(unused)
    if dropout > 0:
        raise AttentionRefused("The `flex` attention knows no dropout.")

    cap = softcap or 1.0

    def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    function = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    q, k, v = in_compute_type(query, key, value)
    out = function(
        q,
        k,
        v,
        score_mod=None if softcap is None else capped,
        block_mask=block_masks[sliding_window or 0],
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2), None


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


@cache
def _compiled_block_mask() -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask, dynamic=True)


def _flex_arguments(batch: MicroBatch, demand: Demand) -> dict[str, Any]:
    tokens = batch.tokens
    positions = torch.arange(tokens, device=batch.input_ids.device)
    document = torch.searchsorted(batch.document_starts[1:], positions, right=True)  # [tokens]
    return {
        "block_masks": {
            window: _block_mask(document, window, tokens) for window in {0, *demand.windows}
        }
    }


def _block_mask(document: Tensor, window: int, tokens: int) -> Any:
    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (q >= k) & (document[q] == document[k])
        return seen & (q - k < window) if window else seen

    return _compiled_block_mask()(visible, None, None, tokens, tokens, device=document.device)


VARLEN = Backend("varlen", varlen, _varlen_arguments, _why_no_varlen, compiles=True)
FLEX = Backend("flex", flex, _flex_arguments, _why_no_gpu, compiles=True)

BACKENDS: dict[str, Backend] = {b.name: b for b in (TRITON, FLEX, VARLEN, SDPA_DOCUMENTS)}
AUTO_ORDER: tuple[str, ...] = ("triton", "flex", "varlen", "sdpa_documents")
