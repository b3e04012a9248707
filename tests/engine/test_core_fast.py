"""What of the fast path can be shown without a GPU: work lists, joined products, FLOP counts."""

from __future__ import annotations

import copy
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from trainer_tui.engine import fast_blocks
from trainer_tui.engine.attention import AttentionRefused, attach_packed_attention
from trainer_tui.engine.fast_blocks import (
    compile_blocks,
    decoder_blocks,
    join_linears_of_one_input,
    recompute_activations,
)
from trainer_tui.engine.fast_packed import FUSED_TOKENS
from trainer_tui.engine.fast_packed_launch import LARGE, SMALL, Tile, blocks, score_tiles
from trainer_tui.engine.fast_qkv import (
    FORWARD,
    KEY_GRADIENT,
    QUERY_GRADIENT,
    SCORE_TOKENS,
    fuse_attention,
)
from trainer_tui.engine.fused_proof import fused_modules, prove_fused, unfuse
from trainer_tui.engine.last_block import last_feed_forward
from trainer_tui.engine.model_math import math_of, model_flops_utilisation

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
}


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("longest_loop_last", [True, False])
def test_work_lists_cover_every_token_once_and_start_with_the_longest_document(
    size: int, longest_loop_last: bool
) -> None:
    lengths = (1, 64, 200, 63, 65, 128, 7)
    table = blocks(lengths, size, longest_loop_last)
    assert table.dtype == np.int32
    seen = np.zeros(sum(lengths), int)
    work = []
    for start, document_start, document_end, *_ in table:
        seen[start : min(start + size, document_end)] += 1
        assert document_start <= start < document_end
        work.append(start - document_start if longest_loop_last else document_end - start)
    assert (seen == 1).all()
    longest_first = list(table[:, 2] - table[:, 1])
    assert longest_first == sorted(longest_first, reverse=True)
    for document in set(table[:, 1]):
        inside = [w for w, row in zip(work, table, strict=True) if row[1] == document]
        assert inside == sorted(inside, reverse=True)


def test_heads_are_stacked_only_where_they_share_a_key_head() -> None:
    tile = Tile(rows=128, columns=64, warps=8, stages=2)
    assert [tile.heads_stacked(group) for group in (1, 2, 3, 4, 7, 8)] == [1, 2, 1, 2, 1, 2]
    assert tile.query_tokens(2) == 64
    for tiles in (LARGE, SMALL):
        for tile in (tiles.forward, tiles.query_gradient):
            assert tile.query_tokens(2) * tile.heads_stacked(2) == tile.rows


def test_the_fused_attention_finds_blocks_of_its_sizes_in_the_work_lists() -> None:
    for plain in (LARGE, SMALL):
        assert plain.key_gradient.rows == SCORE_TOKENS
    for group in (2, 4, 8):
        assert FORWARD.query_tokens(group) == FUSED_TOKENS
        assert QUERY_GRADIENT.query_tokens(group) == KEY_GRADIENT.rows == SCORE_TOKENS


def test_every_block_has_a_number_and_every_pair_of_blocks_a_tile_of_its_own() -> None:
    lengths, size = (1, 64, 200, 63, 65, 128, 7), 64
    queries, keys = blocks(lengths, size, True), blocks(lengths, size, False)
    assert {tuple(row) for row in queries} == {tuple(row) for row in keys}
    seen, numbers = [], []
    for start, document_start, _, blocks_before, before in queries:
        row = (start - document_start) // size
        numbers.append(blocks_before + row)
        seen += [before + row * (row + 1) // 2 + column for column in range(row + 1)]
    assert sorted(seen) == list(range(score_tiles(lengths, size)))
    assert sorted(numbers) == list(range(len(queries)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(8, n, bias=False) for n in (16, 8, 8))
        self.gate, self.up = nn.Linear(8, 32, bias=False), nn.Linear(8, 32, bias=False)
        self.biased = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        narrow = torch.cat([self.q(x), self.k(x) * self.v(x)], -1)
        return narrow.sum() + (self.gate(x) * self.up(x)).sum() + self.biased(x).sum()


def test_narrow_products_of_one_input_are_joined_and_nothing_changes() -> None:
    joined: list[int] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        joined.append(join_linears_of_one_input(module.graph))
        module.recompile()
        return module.forward

    plain = Block()
    block = copy.deepcopy(plain)
    x = torch.randn(2, 5, 8)
    torch._dynamo.reset()
    compiled = torch.compile(block, backend=backend, dynamic=True)
    ours, theirs = compiled(x), plain(x)
    ours.backward()
    theirs.backward()
    assert joined == [3]  # q, k, v; gate and up are wide, the last has a bias
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(block.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_what_cannot_be_compiled_is_refused() -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    attach_packed_attention(model, "sdpa_documents")
    with pytest.raises(AttentionRefused, match="uncompiled only"):
        compile_blocks(model)
    assert fuse_attention(model) == 0


def _rounded(self: Any, x: torch.Tensor) -> torch.Tensor:
    return type(self).forward(self, x).bfloat16().float()


def _wrong(self: Any, x: torch.Tensor) -> torch.Tensor:
    return type(self).forward(self, x) * 1.05


def _broken(self: Any, x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("out of resource: shared memory\nmore lines")


def test_a_fused_module_is_believed_when_only_rounding_tells_it_from_the_models_own() -> None:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    attach_packed_attention(model, "sdpa_documents")
    assert last_feed_forward(model) is not None
    blocks = decoder_blocks(model)
    for block in blocks:
        block.mlp.forward = MethodType(_rounded, block.mlp)
    assert 0 < prove_fused(model) < 4e-3
    assert set(fused_modules(model)) == {"model.layers.0.mlp", "model.layers.1.mlp"}
    assert vars(blocks[0].mlp)["forward"].__func__ is _rounded, "it stays fused"

    blocks[1].mlp.forward = MethodType(_wrong, blocks[1].mlp)
    with pytest.raises(AttentionRefused, match=r"1 of 2 fused .* model.layers.1.mlp by 5.0%"):
        prove_fused(model)
    blocks[1].mlp.forward = MethodType(_broken, blocks[1].mlp)
    with pytest.raises(AttentionRefused, match="do not run here: out of resource"):
        prove_fused(model)
    unfuse(model)
    for block in blocks:
        block.mlp.down_proj.weight.data.zero_()
        block.mlp.forward = MethodType(_rounded, block.mlp)
    assert prove_fused(model) == 0.0, "two that put out zeros are equal"
    unfuse(model)
    assert not fused_modules(model) and last_feed_forward(model) is not None
    assert prove_fused(model) == 0.0


def test_a_fused_operator_that_fails_its_proof_is_left_out_and_training_goes_on(
    monkeypatch,
) -> None:
    """Where the proof fails, the model's own modules are compiled, and the reason is told."""
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    attach_packed_attention(model, "sdpa_documents")
    compiled: list[bool] = []

    def compile_blocks(model: nn.Module, *, fuse: bool = True, memory_budget: float) -> int:
        compiled.append(fuse)
        if fuse:
            mlp = decoder_blocks(model)[0].mlp
            mlp.forward = MethodType(_wrong, mlp)
            prove_fused(model)
        return 0

    monkeypatch.setattr(fast_blocks, "compile_blocks", compile_blocks)
    monkeypatch.setattr(fast_blocks, "attached_backend", lambda model: SimpleNamespace(compiles=1))
    told = fast_blocks.compile_where_it_helps(model, torch.device("cuda"), 1.0)
    assert compiled == [True, False] and not fused_modules(model)
    assert told.startswith("slower than it could be: 1 of 1 fused operators")


def test_blocks_are_found_and_flagged_for_recomputation() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    assert len(decoder_blocks(model)) == 2
    recompute_activations(model, every=2)
    flags = [bool(block.gradient_checkpointing) for block in decoder_blocks(model)]  # type: ignore[arg-type]
    assert flags == [True, False]
    with pytest.raises(AttentionRefused, match="unknown name"):
        fast_blocks.decoder_blocks(nn.Module())


def test_flops_count_what_ran_and_nothing_else() -> None:
    math = math_of(Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True)))
    per_layer = 16 * (16 + 8 + 8) + 16 * 16 + 3 * 16 * 48
    assert math.block_weights == 2 * per_layer
    assert math.head_weights == 50 * 16
    pairs = 3 * 4 // 2 + 5 * 6 // 2
    expected = 6 * (math.block_weights * 8 + math.head_weights * 4) + 12 * 16 * 2 * pairs
    assert math.step_flops([3, 5], supervised=4) == expected
    narrow = Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True))
    attach_packed_attention(narrow, "sdpa_documents")
    not_run = 6 * (3 * 16 * 48) * (8 - 4)
    assert math_of(narrow).step_flops([3, 5], supervised=4) == expected - not_run
    assert model_flops_utilisation(10, 2.0, None) is None
    assert model_flops_utilisation(10, 2.0, 20.0) == 0.25
