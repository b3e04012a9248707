"""Compiling a decoder block by block, and recomputing activations where memory is short.

Invariant: results are those of the uncompiled model within rounding; one compilation serves all
blocks and all micro-batch lengths (`dynamic=True`), so nothing is compiled again between steps.

The whole model at once would take five times longer to compile and run no faster: what there is
to fuse lies inside a block, and the output head is computed elsewhere (`head_loss.py`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from trainer_tui.engine.attention import AttentionRefused, attached_backend


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The model's repeated blocks, in order.

    Raises:
        AttentionRefused: the decoder keeps them under a name we do not know.
    """
    decoder = model.base_model
    for name in ("layers", "h", "blocks"):
        blocks = getattr(decoder, name, None)
        if isinstance(blocks, nn.ModuleList):
            return blocks
    raise AttentionRefused(f"{type(model).__name__} keeps its blocks under an unknown name.")


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile every decoder block in place; the first step pays for it.

    Raises:
        AttentionRefused: the attached attention backend cannot be compiled.
    """
    attention = attached_backend(model)
    if not attention.compiles:
        raise AttentionRefused(f"The attention backend `{attention.name}` runs uncompiled only.")
    for block in decoder_blocks(model):
        block.compile(dynamic=True, backend=backend)


def recompute_activations(model: nn.Module, every: int = 1) -> None:
    """Keep only the inputs of every `every`-th block and compute it again in the backward pass.

    1 recomputes all blocks (about a third more arithmetic, least memory), 2 every other one, and
    so on; 0 none.
    """
    if every <= 0:
        return
    model.gradient_checkpointing_enable(  # type: ignore[operator]
        gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    for number, block in enumerate(decoder_blocks(model)):
        flagged: Any = block
        flagged.gradient_checkpointing = number % every == 0
