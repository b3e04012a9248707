"""The last block's feed-forward for the positions that the loss reads, and for no others.

What the last block adds after its attention reaches nothing but its own position's logits. So
where a position is not supervised (the user's turns, the system prompt) its feed-forward, the
norm before it and the final norm are computed for nothing. Here the supervised rows are taken
out right after the last attention, instead of after the last norm.

Invariant: the same rows as the model's own forward, computed by the same operations.

Limits: blocks of the classes in `NARROWABLE`: pre-norm, attention and feed-forward one after the
other. Other models keep their forward, and the rows are taken out at the end.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

NARROWABLE = {
    "Qwen3DecoderLayer",
    "Qwen2DecoderLayer",
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
}


@torch.library.custom_op("trainer_tui::take_rows", mutates_args=())
def take_rows(states: Tensor, rows: Tensor) -> Tensor:
    """`states[rows]`, [rows, hidden]; `rows` int64, each at most once."""
    return states.index_select(0, rows)


@take_rows.register_fake
def _(states: Tensor, rows: Tensor) -> Tensor:
    return states.new_empty((rows.shape[0], states.shape[1]))


@torch.library.custom_op("trainer_tui::put_rows", mutates_args=())
def put_rows(gradient: Tensor, rows: Tensor, count: int) -> Tensor:
    """[count, hidden]: `gradient` in the given rows, zero elsewhere. Written once, in no order."""
    whole = gradient.new_zeros((count, gradient.shape[1]))
    return whole.index_copy_(0, rows, gradient)


@put_rows.register_fake
def _(gradient: Tensor, rows: Tensor, count: int) -> Tensor:
    return gradient.new_empty((count, gradient.shape[1]))


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.count = inputs[0].shape[0]


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
    gradient: Tensor = put_rows(upstream.contiguous(), *ctx.saved_tensors, ctx.count)
    return gradient, None


take_rows.register_autograd(_backward, setup_context=_remember)


def _narrow_forward(
    self: Any, hidden_states: Tensor, *, wanted_rows: Tensor | None = None, **arguments: Any
) -> Tensor:
    """A pre-norm block's forward; [1, tokens, hidden] in, [1, wanted rows, hidden] out."""
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **arguments)
    states = hidden_states + attended
    if wanted_rows is not None:
        states = take_rows(states.squeeze(0), wanted_rows).unsqueeze(0)
    output: Tensor = states + self.mlp(self.post_attention_layernorm(states))
    return output


def _last_block(model: nn.Module) -> Any:
    """The model's last block if its class is one of ours, else None."""
    blocks = getattr(getattr(model, "base_model", model), "layers", None)
    if not isinstance(blocks, nn.ModuleList) or type(blocks[-1]).__name__ not in NARROWABLE:
        return None
    return blocks[-1]


def narrow_last_block(model: nn.Module) -> None:
    """Give the last block a forward that takes `wanted_rows`, where its class allows it."""
    block = _last_block(model)
    if block is not None:
        block.forward = MethodType(_narrow_forward, block)


def last_feed_forward(model: nn.Module) -> nn.Module | None:
    """What `narrow_last_block` made run on wanted rows alone, if it changed this model."""
    block = _last_block(model)
    if block is None or "forward" not in vars(block):
        return None
    feed_forward: nn.Module = block.mlp
    return feed_forward
