"""The gated feed-forward of a block with one product for gate and up, and SiLU * up in one pass.

One wide matrix product runs nearer to the chip's peak than two narrow ones, forward and twice
backward, if the gradients of gate and up are written side by side; the backward kernel here does.

Invariant: `down(silu(gate(x)) * up(x))` within rounding, with `silu * up` in float32 inside.

Limits: CUDA with triton; modules named in `FUSABLE` with SiLU and no biases, bf16 or fp16.

Source of the gate: Shazeer, GLU Variants Improve Transformer (arXiv 2002.05202).
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

FUSABLE = {"Qwen3MLP", "Qwen2MLP", "LlamaMLP", "MistralMLP"}
BLOCK = 1024


@torch.library.custom_op("trainer_tui::gated", mutates_args=())
def gated(gate_up: Tensor) -> Tensor:  # [tokens, 2 * inner]
    """silu(gate) * up, [tokens, inner]."""
    from trainer_tui.engine.fast_mlp_kernel import gated_kernel

    tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((tokens, inner), dtype=gate_up.dtype, device=gate_up.device)
    gated_kernel[(tokens, -(-inner // BLOCK))](
        gate_up, out, gate_up.stride(0), inner, BLOCK=BLOCK, num_warps=4
    )
    return out


@gated.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))


@torch.library.custom_op("trainer_tui::gated_backward", mutates_args=())
def gated_backward(upstream: Tensor, gate_up: Tensor) -> Tensor:
    """Gradient of `gated`'s input, [tokens, 2 * inner]."""
    from trainer_tui.engine.fast_mlp_kernel import gated_backward_kernel

    tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((tokens, 2 * inner), dtype=gate_up.dtype, device=gate_up.device)
    gated_backward_kernel[(tokens, -(-inner // BLOCK))](
        upstream, gate_up, out, upstream.stride(0), gate_up.stride(0), inner,
        BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return out


@gated_backward.register_fake
def _(upstream: Tensor, gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape)


def _remember(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _backward(ctx: Any, upstream: Tensor) -> Tensor:
    rows = upstream if upstream.stride(-1) == 1 else upstream.contiguous()
    gradient: Tensor = gated_backward(rows, *ctx.saved_tensors)
    return gradient


gated.register_autograd(_backward, setup_context=_remember)


def _fused_forward(self: Any, x: Tensor) -> Tensor:  # [1, tokens, hidden]
    """The module's forward, in place of transformers' own."""
    weight = torch.cat([self.gate_proj.weight, self.up_proj.weight])
    gate_up = nn.functional.linear(x, weight).flatten(0, -2)
    out: Tensor = self.down_proj(gated(gate_up)).view(x.shape)
    return out


def _fusable(module: Any) -> bool:
    if type(module).__name__ not in FUSABLE or not isinstance(module.act_fn, nn.Module):
        return False
    layers = (module.gate_proj, module.up_proj, module.down_proj)
    plain = all(type(layer) is nn.Linear and layer.bias is None for layer in layers)
    low = module.gate_proj.weight.dtype in (torch.bfloat16, torch.float16)
    return plain and low and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")


def fuse_mlp(module: nn.Module) -> bool:
    """Give a feed-forward module the fused forward where it allows it; says whether it did."""
    if not _fusable(module):
        return False
    module.forward = MethodType(_fused_forward, module)
    return True
