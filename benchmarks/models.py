"""The models that are measured: seeded random weights in the shapes of real ones."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

SEED = 7
QWEN3 = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
}
SHAPES: dict[str, dict[str, int]] = {
    "qwen3-0.6b": QWEN3,
    "qwen3-0.6b, 4 layers": QWEN3 | {"num_hidden_layers": 4},
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
    },
}


def build(shape: str, dtype: torch.dtype, device: str) -> nn.Module:
    """The same weights for every contender on one device."""
    config = Qwen3Config(
        **SHAPES[shape], tie_word_embeddings=True, rope_theta=1e6, bos_token_id=None, pad_token_id=0
    )
    config.dtype = dtype
    torch.manual_seed(SEED)
    with torch.device(device):
        model = Qwen3ForCausalLM(config)
    return model.to(dtype)
