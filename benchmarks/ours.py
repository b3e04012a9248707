"""Our own step on the workload: packed documents, compiled blocks, supervised rows only."""

from __future__ import annotations

import gc
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import models, workload
from benchmarks.measuring import Clock, Measurement, device_name, versions
from trainer_tui.engine.attention import attach_packed_attention, prove_isolation
from trainer_tui.engine.batch import MicroBatch, collate
from trainer_tui.engine.fast_blocks import compile_blocks, recompute_activations
from trainer_tui.engine.head_loss import forward_loss_sum
from trainer_tui.engine.model_math import math_of
from trainer_tui.engine.optimizer import MasterAdamW


@dataclass(frozen=True, slots=True)
class Settings:
    """How our step runs; everything a table's row may differ in."""

    name: str = "ours"
    shape: str = "qwen3-0.6b"
    device: str = "cuda"
    precision: str = "pure_bf16"  # or split, fp32
    moments: str = "float32"
    attention: str = "auto"
    compiled: bool = True
    micro_batches: int = 1  # per step
    chunk_rows: int = 4096
    recompute_every: int = 0
    join: bool = True  # linear layers of one input as one product
    fused: bool = True  # norm, rotation and attention of queries and keys as one operator
    lr: float = 1e-4
    max_norm: float = 1.0
    warm_steps: int = 5
    steps_per_repeat: int = 8
    profile: bool = False
    memory_budget: float = 1.0  # share of activations kept
    prove: bool = False  # that documents are isolated, on this model and card


def micro_batches(step: list[workload.Document], count: int, device: str) -> list[MicroBatch]:
    """Split a step's rows, in order, into `count` parts of about equal tokens."""
    if count == 1:
        return [collate(step, device)]
    share = workload.tokens_in(step) / count
    parts: list[list[workload.Document]] = [[] for _ in range(count)]
    filled = 0
    for row in step:
        parts[min(count - 1, int((filled + len(row[0]) / 2) / share))].append(row)
        filled += len(row[0])
    return [collate(part, device) for part in parts if part]


def run(settings: Settings, work: workload.Workload) -> Measurement:
    """Train through the workload and report."""
    dtype = torch.float32 if settings.precision == "fp32" else torch.bfloat16
    model = models.build(settings.shape, dtype, settings.device).train()
    on_cuda = settings.device == "cuda"
    autocast = on_cuda and settings.precision == "fp32"
    backend = attach_packed_attention(
        model, settings.attention, torch.bfloat16 if autocast else None
    )
    recompute_activations(model, settings.recompute_every)
    if settings.prove:
        prove_isolation(model)
    fused = 0
    if settings.compiled and on_cuda:
        fused = compile_blocks(
            model, join=settings.join, fuse=settings.fused, memory_budget=settings.memory_budget
        )
    optimizer = MasterAdamW(
        model,
        settings.precision,  # type: ignore[arg-type]
        moments=settings.moments,  # type: ignore[arg-type]
    )
    steps = workload.steps(work)
    arithmetic = math_of(model)
    measurement = Measurement(settings.name, device_name())
    measurement.flops_per_step = sum(
        arithmetic.step_flops([len(ids) for ids, _ in s], workload.supervised_in(s)) for s in steps
    ) / len(steps)
    measurement.notes = {
        "attention": backend + (" fused" if fused else ""),
        **versions("torch", "triton", "transformers"),
    }
    supervised = [workload.supervised_in(step) for step in steps]
    clock = Clock(
        measurement,
        [workload.tokens_in(step) for step in steps],
        supervised,
        settings.warm_steps,
        settings.steps_per_repeat,
    )
    losses: list[Tensor] = []
    profiler = _profiler() if settings.profile else None
    # What exists now lives to the end: the collector need not look through it in mid-step.
    gc.collect()
    gc.freeze()
    batches = micro_batches(steps[0], settings.micro_batches, settings.device)
    for number in range(len(steps)):
        if profiler is not None and number == len(steps) - 2:
            profiler.start()
        optimizer.zero_grad()
        total = torch.zeros((), device=settings.device)
        for batch in batches:
            with torch.autocast(settings.device, torch.bfloat16, enabled=autocast):
                loss = forward_loss_sum(model, batch, chunk_rows=settings.chunk_rows)
            loss.backward()
            total += loss.detach()
        optimizer.clip_and_step(settings.lr, float(supervised[number]), settings.max_norm)
        losses.append(total / supervised[number])
        if number + 1 < len(steps):  # while the device works; the peers' loaders do likewise
            batches = micro_batches(steps[number + 1], settings.micro_batches, settings.device)
        clock.step_done()
    if profiler is not None:
        _write_profile(profiler, settings.name)
    clock.finish()
    measurement.losses = [float(loss) for loss in losses]
    return measurement


def _profiler() -> Any:
    from torch.profiler import ProfilerActivity, profile

    return profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU])


def _write_profile(profiler: Any, name: str) -> None:
    """Kernels by time, the pauses between them, and what the host did longest."""
    torch.cuda.synchronize()
    profiler.stop()
    averages = profiler.key_averages()
    parts = [
        averages.table(sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=110),
        *_pauses(profiler),
        averages.table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=80),
    ]
    file_name = f"profile-{re.sub(r'[^a-z0-9]+', '_', name)}.txt"
    (Path(os.environ.get("BENCH_OUT", ".")) / file_name).write_text("\n".join(parts))


def _pauses(profiler: Any, least_us: float = 50.0) -> list[str]:
    """Where the device had nothing to do: the longest pauses and the kernels around them."""
    on_device = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    spans = sorted((e.time_range.start, e.time_range.end, e.name) for e in on_device)
    if not spans:
        return []
    busy_until, last = spans[0][1], spans[0][2]
    pauses, total = [], 0.0
    for start, end, name in spans[1:]:
        if start > busy_until:
            total += start - busy_until
            if start - busy_until > least_us:
                pauses.append((start - busy_until, last, name))
        if end > busy_until:
            busy_until, last = end, name
    whole = busy_until - spans[0][0]
    lines = [f"device idle {total / 1e3:.1f} of {whole / 1e3:.1f} ms; pauses over {least_us} us:"]
    lines += [f"{us:9.0f} us  {a[:70]} -> {b[:70]}" for us, a, b in sorted(pauses)[::-1][:40]]
    return lines
