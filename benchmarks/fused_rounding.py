"""How far the fused operators are from the model's own modules, alone and through a whole model.

    python -m benchmarks.fused_rounding

Needs a GPU. Random weights in Qwen3 shapes, bf16. `alone` is what `fused_proof.py` judges: the
largest relative norm of one operator's difference on its own input. `together`: of the last hidden
states, where every block adds to what the ones before it rounded.
"""

from __future__ import annotations

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from trainer_tui.engine.attention import attach_packed_attention, hidden_states, sample_batch
from trainer_tui.engine.fast_qkv import fuse_attention
from trainer_tui.engine.fused_proof import TOLERANCE, fused_modules, prove_fused, unfuse

SHAPES = [(2048, 6144, depth) for depth in (4, 12, 19, 20, 28)] + [(1024, 3072, 28)]
VOCABULARY = 448


def main() -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; limit {TOLERANCE:.1%} alone")
    print("| hidden | blocks | fused | alone | together |\n|---|---|---|---|---|")
    for hidden, inner, depth in SHAPES:
        model = _model(hidden, inner, depth)
        count = fuse_attention(model)
        alone = prove_fused(model, tolerance=1.0)
        together = _through_the_model(model)
        print(f"| {hidden} | {depth} | {count} | {alone:.2%} | {together:.2%} |", flush=True)


def _model(hidden: int, inner: int, depth: int) -> Qwen3ForCausalLM:
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=inner,
        num_hidden_layers=depth, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    attach_packed_attention(model, "auto")
    return model


@torch.no_grad()
def _through_the_model(model: Qwen3ForCausalLM) -> float:
    batch = sample_batch(model)
    ours = hidden_states(model, batch).float()
    assert fused_modules(model)
    unfuse(model)
    theirs = hidden_states(model, batch).float()
    return float((ours - theirs).norm() / theirs.norm())


if __name__ == "__main__":
    main()
