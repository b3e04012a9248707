"""Launching the packed-attention kernels: tile sizes, lists of blocks to run, grids.

A work list names every block of every document, made on the host from the document lengths. Tile
sizes were measured on an H200 (docs/speed.md); other values change the speed only, if the card
has the shared memory.

Invariant: the lists cover every token once, whatever the tile sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Tile:
    """One kernel's launch shape."""

    rows: int  # rows of the tile that stays: tokens * stacked heads, or keys
    columns: int  # rows of the tile that streams past
    warps: int
    stages: int
    one_loop: bool = True  # mask every block, instead of a second loop for the unmasked ones
    stack: int = 2  # query heads of one key/value head that may share a tile
    registers: int | None = None  # most per thread; None: the compiler's choice

    def heads_stacked(self, group: int) -> int:
        """Heads in one tile when `group` query heads share a key/value head: a power of two."""
        stacked = 1
        while stacked < self.stack and group % (stacked * 2) == 0 and self.rows // stacked > 32:
            stacked *= 2
        return stacked

    def query_tokens(self, group: int) -> int:
        """Tokens a query tile covers."""
        return self.rows // self.heads_stacked(group)


@dataclass(frozen=True, slots=True)
class Tiles:
    forward: Tile
    query_gradient: Tile
    key_gradient: Tile


# By the shared memory a block may have (bytes, head_dim 128): the first needs 164,000, which
# data-centre cards have (A100, H100, H200); the second 98,816 at most, for an RTX 3090 or 4090.
LARGE = Tiles(
    forward=Tile(rows=128, columns=32, warps=8, stages=4),
    query_gradient=Tile(rows=128, columns=64, warps=8, stages=3, one_loop=False),
    key_gradient=Tile(rows=64, columns=64, warps=4, stages=2),
)
SMALL = Tiles(
    forward=LARGE.forward,
    query_gradient=Tile(rows=64, columns=32, warps=4, stages=3, one_loop=False),
    key_gradient=Tile(rows=64, columns=32, warps=4, stages=3),
)
LARGE_NEEDS_BYTES = 163_840


@cache
def has_large_blocks(device: torch.device) -> bool:
    """Whether a block on this device may have the shared memory that `LARGE` needs."""
    if device.type != "cuda":
        return False
    from triton.runtime import driver

    index = torch.cuda.current_device() if device.index is None else device.index
    properties = driver.active.utils.get_device_properties(index)
    return int(properties["max_shared_mem"]) >= LARGE_NEEDS_BYTES


def tiles_for(device: torch.device) -> Tiles:
    """The launch shapes that fit the device."""
    return LARGE if has_large_blocks(device) else SMALL


@dataclass(frozen=True, slots=True)
class Packed:
    """Tensors and constants all three kernels share."""

    query: Tensor  # [tokens, heads, head_dim]
    key: Tensor  # [tokens, kv_heads, head_dim]
    value: Tensor
    scale: float
    window: int  # 0 for full attention

    @property
    def group(self) -> int:
        return self.query.shape[1] // self.key.shape[1]

    @property
    def strides(self) -> tuple[int, ...]:
        tensors = (self.query, self.key, self.value)
        return tuple(stride for t in tensors for stride in t.stride()[:2])


def blocks(lengths: tuple[int, ...], size: int, longest_loop_last: bool) -> np.ndarray:
    """Work list, int32 [blocks, 5]: where the block, its document and the document's end are, how
    many blocks the documents before it have, and how many tiles their lower triangles have.

    The longest document comes first, so that the last programs to start are short; its blocks
    follow one another, so that programs that run at the same time read the same tokens, which
    then come from the second-level cache. Within a document the most work comes first: a query
    block's grows with its distance from the document's start (`longest_loop_last`), a key
    block's with the distance to its end.
    """
    length = np.asarray(lengths, dtype=np.int64)
    ends = np.cumsum(length)
    starts = ends - length
    counts = -(-length // size)
    document = np.repeat(np.arange(len(length)), counts)
    first = np.cumsum(counts) - counts
    offset = (np.arange(counts.sum()) - np.repeat(first, counts)) * size
    work = offset if longest_loop_last else length[document] - offset
    order = np.lexsort((-work, document, -length[document]))
    document, offset = document[order], offset[order]
    tiles = triangle(counts)
    tiles = np.cumsum(tiles) - tiles
    per_document = (starts[document], ends[document], first[document], tiles[document])
    table = np.stack([starts[document] + offset, *per_document], axis=1)
    return table.astype(np.int32)


def triangle(rows: np.ndarray) -> np.ndarray:
    """Tiles of a lower triangle of so many rows of tiles, the diagonal's included."""
    tiles: np.ndarray = rows * (rows + 1) // 2
    return tiles


def score_tiles(lengths: tuple[int, ...], size: int) -> int:
    """Tiles of `size` x `size` that the documents' causal scores need, one head."""
    return int(triangle(-(-np.asarray(lengths, dtype=np.int64) // size)).sum())


def forward(packed: Packed, work: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """Output [tokens, heads, head_dim] and base-2 log-sum-exp, float32 [heads, tokens]."""
    from trainer_tui.engine.fast_packed_kernel import forward_kernel

    query = packed.query
    tokens, heads, head_dim = query.shape
    out = torch.empty((tokens, heads, head_dim), dtype=query.dtype, device=query.device)
    lse = torch.empty((heads, tokens), dtype=torch.float32, device=query.device)
    stacked = tile.heads_stacked(packed.group)
    forward_kernel[(heads // stacked, work.shape[0])](
        query, packed.key, packed.value, out, lse, work,
        *packed.strides, tokens, packed.scale * LOG2_E, packed.window,
        WINDOWED=packed.window > 0, PACK=stacked, GROUP=packed.group, HEADS=heads, D=head_dim,
        M=tile.rows // stacked, N=tile.columns, ONE_LOOP=tile.one_loop,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, lse


def query_gradient(
    packed: Packed,
    out: Tensor,
    lse: Tensor,
    out_gradient: Tensor,
    work: Tensor,
    tile: Tile,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """dQ [tokens, heads, head_dim] and rowsum(dO * O), float32 [heads, tokens].

    `into` receives dQ; its tokens may lie apart, its heads must follow one another.
    """
    from trainer_tui.engine.fast_packed_kernel import query_gradient_kernel

    query = packed.query
    tokens, heads, head_dim = query.shape
    if into is None:
        into = torch.empty((tokens, heads, head_dim), dtype=query.dtype, device=query.device)
    delta = torch.empty_like(lse)
    stacked = tile.heads_stacked(packed.group)
    query_gradient_kernel[(heads // stacked, work.shape[0])](
        query, packed.key, packed.value, out, lse, out_gradient, into, delta, work,
        *packed.strides, *out_gradient.stride()[:2], into.stride(0),
        tokens, packed.scale * LOG2_E, packed.scale, packed.window,
        WINDOWED=packed.window > 0, PACK=stacked, GROUP=packed.group, HEADS=heads, D=head_dim,
        M=tile.rows // stacked, N=tile.columns, ONE_LOOP=tile.one_loop,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return into, delta


def key_gradient(
    packed: Packed,
    lse: Tensor,
    delta: Tensor,
    out_gradient: Tensor,
    work: Tensor,
    tile: Tile,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """dK and dV, each [tokens, kv_heads, head_dim]; `into` as for `query_gradient`."""
    from trainer_tui.engine.fast_packed_kernel import key_gradient_kernel

    tokens, kv_heads, head_dim = packed.key.shape
    if into is None:
        dk = torch.empty((tokens, kv_heads, head_dim), dtype=packed.key.dtype, device=lse.device)
        into = dk, torch.empty_like(dk)
    dk, dv = into
    key_gradient_kernel[(kv_heads, work.shape[0])](
        packed.query, packed.key, packed.value, lse, out_gradient, delta, dk, dv, work,
        *packed.strides, *out_gradient.stride()[:2], dk.stride(0), dv.stride(0),
        tokens, packed.scale * LOG2_E, packed.scale, packed.window,
        WINDOWED=packed.window > 0, GROUP=packed.group, D=head_dim,
        M=tile.columns, N=tile.rows, ONE_LOOP=tile.one_loop,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return dk, dv
