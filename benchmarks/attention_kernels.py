"""Packed attention alone: every backend on one step's documents, one layer, forward and backward.

`python -m benchmarks.attention_kernels [--sweep] [--out FOLDER]`. Each row is checked first: the
relative error of output and gradients against float32 (one call per document), and that other
documents do not move by one bit when one is perturbed. Times are medians by device events.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import workload
from trainer_tui.engine import fast_packed_launch
from trainer_tui.engine.attention import Demand, sdpa_documents
from trainer_tui.engine.batch import MicroBatch, collate
from trainer_tui.engine.fast_attention import BACKENDS
from trainer_tui.engine.fast_packed_launch import Packed, Tile

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 16, 8, 128, 28
Heads = tuple[Tensor, Tensor, Tensor]


def demand(device: str) -> Demand:
    return Demand(
        torch.device(device), torch.bfloat16, HEAD_DIM, HEADS // KV_HEADS, frozenset(), None, 0.0
    )


def heads(tokens: int, device: str, dtype: torch.dtype) -> Heads:
    """Query, key, value as a model makes them: [1, heads, tokens, head_dim] over token rows."""
    generator = torch.Generator(device).manual_seed(1)

    def one(count: int) -> Tensor:
        flat = torch.randn(1, tokens, count, HEAD_DIM, generator=generator, device=device)
        return flat.to(dtype).transpose(1, 2).requires_grad_()

    return one(HEADS), one(KV_HEADS), one(KV_HEADS)


def median_ms(function: Callable[[], object], repeats: int = 15) -> float:
    for _ in range(3):
        function()
    times = []
    for _ in range(repeats):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return float(np.median(times))


def errors(backend: Callable[[Heads, MicroBatch], Tensor], device: str) -> list[float]:
    """Relative errors of output, dq, dk, dv against float32."""
    generator = np.random.default_rng(3)
    documents = [
        (generator.integers(0, 9, n), np.ones(n, bool)) for n in (32, 700, 129, 1, 513, 64)
    ]
    batch = collate(documents, device)
    low = heads(batch.tokens, device, torch.bfloat16)
    exact = tuple(t.detach().float().requires_grad_() for t in low)
    upstream = torch.randn(1, batch.tokens, HEADS, HEAD_DIM, device=device)
    ours = backend(low, batch)
    theirs, _ = sdpa_documents(torch.nn.Module(), *exact, None, document_lengths=batch.lengths)  # type: ignore[misc]
    got = [ours, *torch.autograd.grad(ours, low, upstream.to(ours.dtype))]
    want = [theirs, *torch.autograd.grad(theirs, exact, upstream)]
    return [float((g.float() - w).norm() / w.norm()) for g, w in zip(got, want, strict=True)]


def isolates(backend: Callable[[Heads, MicroBatch], Tensor], device: str) -> bool:
    """Perturb the middle one of three documents; the others must stay bit-identical."""
    lengths = (333, 470, 221)
    documents = [(np.zeros(n, np.int64), np.ones(n, bool)) for n in lengths]
    batch = collate(documents, device)
    low = tuple(t.detach() for t in heads(batch.tokens, device, torch.bfloat16))
    inside = slice(lengths[0], lengths[0] + lengths[1])
    changed = tuple(t.clone() for t in low)
    for tensor in changed:
        tensor[:, :, inside] += 1.0
    first, second = backend(low, batch), backend(changed, batch)  # type: ignore[arg-type]
    moved = (first != second).flatten(2).any(-1)[0]
    moved[inside] = False
    return not bool(moved.any())


def of_ours(name: str) -> Callable[[Heads, MicroBatch], Tensor]:
    backend = BACKENDS[name]

    def run(given: Heads, batch: MicroBatch) -> Tensor:
        arguments = backend.arguments(batch, demand(given[0].device.type))
        return backend.forward(torch.nn.Module(), *given, None, **arguments)[0]

    return run


def prepared(name: str, given: Heads, batch: MicroBatch) -> Callable[[], Tensor]:
    """The backend with its per-micro-batch arguments made: what one layer pays."""
    backend = BACKENDS[name]
    arguments = backend.arguments(batch, demand(given[0].device.type))
    return lambda: backend.forward(torch.nn.Module(), *given, None, **arguments)[0]


def flash_attention_4(given: Heads, batch: MicroBatch) -> Tensor:
    """The `flash-attn-4` package's variable-length attention."""
    from flash_attn.cute.interface import flash_attn_varlen_func

    q, k, v = (t[0].transpose(0, 1) for t in given)
    starts = batch.document_starts
    out = flash_attn_varlen_func(
        q, k, v, cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_q=batch.longest,
        max_seqlen_k=batch.longest, softmax_scale=HEAD_DIM**-0.5, causal=True,
    )  # fmt: skip
    tensor: Tensor = out[0] if isinstance(out, tuple) else out
    return tensor[None]


def compare(batch: MicroBatch, report: Callable[[str], None]) -> None:
    """One line per backend."""
    contenders: dict[str, Callable[[Heads, MicroBatch], Tensor]] = {
        name: of_ours(name) for name in ("triton", "flex", "varlen")
    }
    if find_spec("flash_attn") is not None:
        contenders["flash-attn-4"] = flash_attention_4
    given = heads(batch.tokens, "cuda", torch.bfloat16)
    upstream = torch.randn(1, batch.tokens, HEADS, HEAD_DIM, device="cuda").bfloat16()
    report("| backend | forward ms | forward + backward ms | x28 layers | errors | isolates |")
    report("|---|---|---|---|---|---|")
    for name, function in contenders.items():
        try:
            error = errors(function, "cuda")
            sealed = isolates(function, "cuda")
            once = (
                prepared(name, given, batch)
                if name in BACKENDS
                else (lambda f=function: f(given, batch))  # type: ignore[misc]
            )

            def both(once: Callable[[], Tensor] = once) -> None:
                torch.autograd.grad(once(), given, upstream)

            with torch.no_grad():
                forward = median_ms(once)
            whole = median_ms(both)
            shown = " ".join(f"{e:.1e}" for e in error)
            report(
                f"| {name} | {forward:.3f} | {whole:.3f} | {LAYERS * whole:.1f} | {shown} "
                f"| {'yes' if sealed else 'NO'} |"
            )
        except Exception:  # noqa: BLE001  a contender that cannot run is a row of the table
            report(f"| {name} | failed: {traceback.format_exc(limit=-1).splitlines()[-1][:300]} |")
            traceback.print_exc()


FORWARD_TILES = (
    [Tile(128, 32, 8, s, o) for s in (3, 4, 5) for o in (True, False)]
    + [Tile(64, 32, 4, s, o) for s in (3, 4) for o in (True, False)]
    + [Tile(128, 64, 8, 3, False), Tile(64, 64, 4, 3, False), Tile(64, 64, 4, 3, True)]
)
QUERY_TILES = (
    [Tile(128, 64, 8, 3, o) for o in (True, False)]
    + [Tile(64, 32, 4, s, o) for s in (3, 4) for o in (True, False)]
    + [Tile(128, 32, 8, s, o) for s in (2, 4) for o in (True, False)]
    + [Tile(64, 64, 4, 2, False)]
)
KEY_TILES = (
    [Tile(64, 64, 4, s, True) for s in (1, 2)]
    + [Tile(64, 32, 4, s, o) for s in (3, 4) for o in (True, False)]
    + [Tile(128, 64, 8, 2, o) for o in (True, False)]
    + [Tile(128, 32, 8, s, False) for s in (2, 3)]
    + [Tile(64, 16, 4, 4, True)]
)


def sweep(batch: MicroBatch, report: Callable[[str], None]) -> None:
    """Every tile shape of each of the three kernels, in milliseconds per layer."""
    q, k, v = (t.detach()[0].transpose(0, 1) for t in heads(batch.tokens, "cuda", torch.bfloat16))
    packed = Packed(q, k, v, HEAD_DIM**-0.5, 0)
    group = HEADS // KV_HEADS

    def work(rows: int, queries: bool) -> Tensor:
        table = fast_packed_launch.blocks(batch.lengths, rows, queries)
        return torch.from_numpy(table).cuda()

    upstream = torch.randn_like(q)
    tile = fast_packed_launch.LARGE.forward
    out, lse = fast_packed_launch.forward(packed, work(tile.query_tokens(group), True), tile)
    tile = fast_packed_launch.LARGE.query_gradient
    _, delta = fast_packed_launch.query_gradient(
        packed, out, lse, upstream, work(tile.query_tokens(group), True), tile
    )
    kernels: list[tuple[str, list[Tile], Callable[[Tile], Callable[[], object]]]] = [
        ("forward", FORWARD_TILES, lambda t: _bind(
            fast_packed_launch.forward, packed, work(t.query_tokens(group), True), t)),
        ("query gradient", QUERY_TILES, lambda t: _bind(
            fast_packed_launch.query_gradient, packed, out, lse, upstream,
            work(t.query_tokens(group), True), t)),
        ("key gradient", KEY_TILES, lambda t: _bind(
            fast_packed_launch.key_gradient, packed, lse, delta, upstream, work(t.rows, False), t)),
    ]  # fmt: skip
    report("| kernel | tile | ms |")
    report("|---|---|---|")
    for name, tiles, bound in kernels:
        lines = []
        for candidate in tiles:
            try:
                lines.append((median_ms(bound(candidate), 9), candidate))
            except Exception as problem:  # noqa: BLE001  too much shared memory, for one
                lines.append((float("inf"), replace(candidate)))
                report(f"| {name} | {candidate} | {type(problem).__name__} |")
        for ms, candidate in sorted(lines, key=lambda line: line[0]):
            report(f"| {name} | {candidate} | {ms:.4f} |")


def _bind(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: function(*arguments)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true", help="also time every tile shape")
    parser.add_argument("--out", type=Path, help="folder for attention.md")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("attention_kernels needs a CUDA device")
    batch = collate(workload.steps(workload.Workload(steps=4))[3], "cuda")
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    report(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, {batch.tokens} tokens in "
           f"{len(batch.lengths)} documents, longest {batch.longest}")  # fmt: skip
    compare(batch, report)
    if chosen.sweep:
        sweep(batch, report)
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "attention.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
