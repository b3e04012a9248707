"""Imported once by the fork server: everything a trainer needs, and one thread."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.qwen3 import modeling_qwen3

torch.set_num_threads(1)

__all__ = ["AutoModelForCausalLM", "PreTrainedTokenizerFast", "modeling_qwen3"]
