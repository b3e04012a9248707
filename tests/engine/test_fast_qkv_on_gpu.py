"""Qwen3's fused attention against plain float32 arithmetic: right, isolated, the same every time.

`python -m pytest --gpu tests/engine/test_fast_qkv_on_gpu.py` runs it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainer_tui.engine import fast_qkv
from trainer_tui.engine.attention import sdpa_documents
from trainer_tui.engine.fast_packed import FUSED_TOKENS
from trainer_tui.engine.fast_packed_launch import blocks, score_tiles
from trainer_tui.engine.fast_qkv import SCORE_TOKENS, Rotary

pytestmark = pytest.mark.gpu
HEADS, KV_HEADS, HEAD_DIM = 16, 8, 128
LENGTHS = (32, 700, 129, 1, 513, 64)
SECOND = slice(32, 732)
ROOM = 1 << 30


def given() -> tuple[Rotary, Tensor]:
    """A joint projection and the gradient of the attention's output."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    tokens = sum(LENGTHS)
    at = torch.cat([torch.arange(n, device="cuda") for n in LENGTHS]).float()
    inverse = 1e6 ** (-torch.arange(0, HEAD_DIM, 2, device="cuda") / HEAD_DIM)
    angles = (at[:, None] * inverse).repeat(1, 2)
    rotary = Rotary(
        qkv=normal(tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM).bfloat16(),
        q_weight=(1 + 0.1 * normal(HEAD_DIM)).bfloat16(),
        k_weight=(1 + 0.1 * normal(HEAD_DIM)).bfloat16(),
        cos=angles.cos().bfloat16(),
        sin=angles.sin().bfloat16(),
        kv_heads=KV_HEADS,
        eps=1e-6,
        scale=HEAD_DIM**-0.5,
    )
    return rotary, normal(tokens, HEADS, HEAD_DIM).bfloat16()


def ours(rotary: Rotary, upstream: Tensor, score_bytes: int = ROOM) -> list[Tensor]:
    """Output and the gradients of qkv, q_weight and k_weight."""

    def work(rows: int, for_queries: bool) -> Tensor:
        return torch.from_numpy(blocks(LENGTHS, rows, for_queries)).cuda()

    keys = fast_qkv.rotate_keys(rotary)
    out, lse = fast_qkv.forward(rotary, keys, work(FUSED_TOKENS, True))
    # What the allocator hands out next is full of NaN: what is not written is seen.
    torch.full((64, 1 << 20), float("nan"), device="cuda")
    gradients = fast_qkv.gradients(
        rotary, out, lse, keys, upstream, work(SCORE_TOKENS, False),
        score_tiles(LENGTHS, SCORE_TOKENS), score_bytes,
    )  # fmt: skip
    return [out, *gradients]


def plain(rotary: Rotary, upstream: Tensor) -> list[Tensor]:
    """The same in float32, one operation after the other."""
    leaves = [t.float().requires_grad_() for t in (rotary.qkv, rotary.q_weight, rotary.k_weight)]
    cos, sin = rotary.cos.float()[:, None], rotary.sin.float()[:, None]

    def turned(x: Tensor, weight: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + rotary.eps) * weight
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    q, k, v = (part.unflatten(1, (-1, HEAD_DIM)) for part in rotary.parts(leaves[0]))
    heads = [t.transpose(0, 1)[None] for t in (turned(q, leaves[1]), turned(k, leaves[2]), v)]
    out, _ = sdpa_documents(torch.nn.Module(), *heads, None, document_lengths=LENGTHS)
    return [out[0], *torch.autograd.grad(out[0], leaves, upstream.float())]


def test_the_fused_attention_is_that_of_plain_arithmetic_and_runs_repeat_it() -> None:
    rotary, upstream = given()
    got, again = ours(rotary, upstream), ours(rotary, upstream)
    for mine, other, once_more in zip(got, plain(rotary, upstream), again, strict=True):
        assert float((mine.float() - other).norm() / other.norm()) < 1e-2
        assert torch.equal(mine, once_more)


def test_another_document_changes_no_bit_of_output_or_gradient() -> None:
    rotary, upstream = given()
    changed = rotary.qkv.clone()
    changed[SECOND] += 1.0
    pair = zip(
        ours(rotary, upstream)[:2],
        ours(replace(rotary, qkv=changed), upstream)[:2],
        strict=True,
    )
    for before, after in pair:
        moved = (before != after).flatten(1).any(-1)
        assert bool(moved[SECOND].any())
        moved[SECOND] = False
        assert not bool(moved.any())


def test_heads_that_take_turns_for_want_of_room_give_the_same_bits() -> None:
    rotary, upstream = given()
    all_at_once = ours(rotary, upstream)
    tile = SCORE_TOKENS * SCORE_TOKENS * 2
    three_key_heads = 3 * score_tiles(LENGTHS, SCORE_TOKENS) * (HEADS // KV_HEADS) * tile
    for room in (1, three_key_heads):
        for one, other in zip(all_at_once, ours(rotary, upstream, room), strict=True):
            assert torch.equal(one, other)
