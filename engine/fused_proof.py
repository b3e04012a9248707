"""A fused operator is believed once it gave what the model's own module gives, on this machine.

Each module is compared on the very input that it gets inside the model, and what goes on to the
next one is the model's own: a difference is that of one operator's rounding, however deep the
model, and not what dozens of blocks made of it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from trainer_tui.engine.attention import AttentionRefused, hidden_states, sample_batch
from trainer_tui.engine.last_block import NARROWABLE

# Relative norm. Two ways through one module in bf16 (8 bits of mantissa) differ by 0.2 to 0.5 %.
TOLERANCE = 2e-2
SMALLEST = 1e-30  # of a module that puts out zeros, as one does whose last product starts at zero


def fused_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Attention and feed-forward modules whose forward was replaced, by their names."""
    return {
        name: module
        for name, module in model.named_modules()
        if "forward" in vars(module) and type(module).__name__ not in NARROWABLE
    }


def unfuse(model: nn.Module) -> None:
    """Give every module its own forward back. Call before anything is compiled."""
    for module in fused_modules(model).values():
        del module.forward


@torch.no_grad()
def prove_fused(model: nn.Module, tolerance: float = TOLERANCE) -> float:
    """Compare every fused module with its own forward; the host waits here, once.

    Returns:
        The largest relative norm of a difference.

    Raises:
        AttentionRefused: one differs by more than rounding, was not reached, or does not run.
    """
    fused = fused_modules(model)
    kept = [vars(module)["forward"] for module in fused.values()]
    differences: dict[nn.Module, Tensor] = {}
    for module, forward in zip(fused.values(), kept, strict=True):
        module.forward = MethodType(_compared(forward, differences), module)
    try:
        hidden_states(model, sample_batch(model))
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:
        first = (str(problem) or type(problem).__name__).splitlines()[0]
        raise AttentionRefused(
            f"The fused operators of {type(model).__name__} do not run here: {first}.",
            "Report this, with the card's name.",
        ) from problem
    finally:
        for module, forward in zip(fused.values(), kept, strict=True):
            module.forward = forward
    found = {name: float(differences.get(m, torch.tensor(torch.nan))) for name, m in fused.items()}
    bad = {name: value for name, value in found.items() if not value <= tolerance}
    if bad:
        name = next(iter(bad))
        raise AttentionRefused(
            f"{len(bad)} of {len(found)} fused operators of {type(model).__name__} differ from the "
            f"model's own, {name} by {bad[name]:.1%}.",
            "Report this, with the card's name.",
        )
    return max(found.values(), default=0.0)


def _compared(forward: Callable[..., Any], differences: dict[nn.Module, Tensor]) -> Any:
    def both(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        theirs = type(self).forward(self, *inputs, **named)
        expected = _states(theirs)
        ours = _states(forward(*inputs, **named))
        differences[self] = (ours - expected).norm() / expected.norm().clamp_min(SMALLEST)
        return theirs

    return both


def _states(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first.float()
