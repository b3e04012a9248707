"""How much arithmetic a step is, and what share of the chip's peak that makes.

Only work the model needs is counted: two operations per weight and token forward, four backward,
attention inside each document only (causal half), and the head, and with `last_block.py` the last
feed-forward, only on the rows they ran for.
Recomputation is not counted, so MFU cannot be raised by doing work twice.

Source: Chowdhery et al., PaLM (arXiv 2204.02311), appendix B, for the definition of MFU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer_tui.engine.last_block import last_feed_forward

# Dense bf16 peak by the vendors' datasheets, operations per second, matched on the device name.
# The first hit wins, so the longer names come first.
PEAK_BF16_FLOPS: tuple[tuple[str, float], ...] = (
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("A6000", 155e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("RTX 5090", 210e12),
    ("RTX 4090", 165e12),
    ("RTX 4080", 97e12),
    ("RTX 3090", 71e12),
)


@dataclass(frozen=True, slots=True)
class ModelMath:
    """Per-model constants from which any step's operations follow."""

    block_weights: int  # weights of the matrix products inside the decoder blocks
    head_weights: int  # vocabulary * hidden
    attention_width: int  # heads * head_dim, summed over layers
    windows: tuple[int | None, ...]  # sliding window of each layer, None for full attention
    narrow_weights: int = 0  # of `block_weights`, those that run on supervised rows alone

    def step_flops(self, lengths: Sequence[int], supervised: int) -> int:
        """Operations of forward and backward over documents of these lengths (tokens)."""
        tokens = sum(lengths)
        everywhere = self.block_weights - self.narrow_weights
        somewhere = self.head_weights + self.narrow_weights
        dense = 6 * (everywhere * tokens + somewhere * supervised)
        per_layer = self.attention_width // max(1, len(self.windows))
        # Scores and values: 2 products of 2 operations per visible pair; backward twice that.
        pairs = sum(_visible_pairs(length, w) for w in self.windows for length in lengths)
        return dense + 12 * per_layer * pairs


def _visible_pairs(length: int, window: int | None) -> int:
    if window is None or window >= length:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


def math_of(model: nn.Module) -> ModelMath:
    """Count a causal language model's weights and attention."""
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers = int(config.num_hidden_layers)
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    head = model.get_output_embeddings()  # type: ignore[operator]
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    narrow = last_feed_forward(model)
    inside = set() if narrow is None else set(narrow.modules())
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    windows = tuple(
        window if kinds is None or kinds[i] == "sliding_attention" else None for i in range(layers)
    )
    return ModelMath(
        block_weights=sum(m.weight.numel() for m in linears),
        head_weights=0 if head is None else int(head.weight.numel()),
        attention_width=layers * heads * head_dim,
        windows=windows,
        narrow_weights=sum(m.weight.numel() for m in linears if m in inside),
    )


def peak_flops(device: torch.device | str) -> float | None:
    """The device's dense bf16 peak in operations per second, or None where it is not known."""
    if torch.device(device).type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16_FLOPS if part in name), None)


def model_flops_utilisation(flops: int, seconds: float, peak: float | None) -> float | None:
    """Share of the peak that `flops` in `seconds` is, 0..1, or None without a known peak."""
    return None if peak is None or seconds <= 0 else flops / seconds / peak
