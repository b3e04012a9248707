"""Measure this machine: tokens a second, MFU, peak memory, the largest micro-batch that fits, and
what a checkpoint costs while training goes on.

    python -m trainer_tui.engine.bench [--workspace DIR] [--model DIR | --shape qwen3-0.6b|toy]
        [--steps N] [--json]

The rows are made up (lengths lognormal, the first 40 % of each unsupervised), the steps are the
trainer's own, the checkpoint is written to a temporary folder (`--folder`: on which disk).
`trainer-tui bench` is this with the workspace's model and settings; on a CPU, where those would
take many minutes, it measures the toy shape.

Limits: one device. The weights of `--shape` are random; speed does not depend on their values.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer_tui.engine import loading, rng
from trainer_tui.engine.attention import attach_packed_attention
from trainer_tui.engine.checkpoint import CommitFailed, Committer
from trainer_tui.engine.checkpoint_files import Place
from trainer_tui.engine.fast_blocks import compile_where_it_helps
from trainer_tui.engine.images import weights_once
from trainer_tui.engine.metrics import percentile, resident_bytes
from trainer_tui.engine.model_math import math_of, model_flops_utilisation, peak_flops
from trainer_tui.engine.optimizer import MasterAdamW
from trainer_tui.engine.progress import Identity, Progress
from trainer_tui.engine.step import Stepper, TokenMask
from trainer_tui.safety import clock, locks
from trainer_tui.safety import config as settings
from trainer_tui.safety.errors import TrainerTuiError
from trainer_tui.safety.workspace import Workspace

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "toy": {
        "vocab_size": 448,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
}
WARM_STEPS = 4
LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Report:
    """Medians of steps that ran alone; `…_saving`: means over the steps of one commit."""

    model: str
    device: str
    precision: str
    attention: str
    parameters: int
    tokens_per_step: int
    micro_batch_tokens: int
    largest_micro_batch_tokens: int
    tokens_per_s: float
    supervised_tokens_per_s: float
    step_s: float
    mfu: float | None
    peak_memory_bytes: int
    checkpoint_bytes: int
    checkpoint_s: float
    checkpoint_steps: int
    checkpoint_extra_s: float
    checkpoint_every_50_steps_share: float


def made_up_rows(tokens: int, vocabulary: int, seed: int, longest: int) -> list[TokenMask]:
    """Documents of about `tokens` tokens together."""
    generator = np.random.default_rng(seed)
    rows, total = [], 0
    while total < tokens:
        length = int(np.clip(generator.lognormal(6.0, 0.7), 32, longest))
        ids = generator.integers(1, vocabulary, length).astype(np.int32)
        rows.append((ids, np.arange(length) >= int(0.4 * length)))
        total += length
    return rows


def _model(arguments: argparse.Namespace, dtype: torch.dtype) -> nn.Module:
    if arguments.model:
        return loading.load_model(arguments.model, dtype)
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**SHAPES[arguments.shape], tie_word_embeddings=True, use_cache=False)
    torch.set_default_dtype(dtype)
    try:
        model: nn.Module = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return model.train()


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _largest(stepper: Stepper, vocabulary: int, wanted: int) -> int:
    """Double the micro-batch until it does not fit. The size in use on a CPU."""
    if stepper.device.type != "cuda":
        return wanted
    fits = 0
    for tokens in (wanted * 2**power for power in range(6)):
        stepper.micro_batch_tokens = tokens
        if stepper.preflight(vocabulary, min(LONGEST, tokens)) < tokens:
            break
        fits = tokens
    return fits or stepper.micro_batch_tokens


def measure(arguments: argparse.Namespace) -> Report:
    """Raises Refused: the model cannot be used; torch.OutOfMemoryError: nothing fits."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = loading.plan_precision(arguments.precision, device)
    if not arguments.micro_batch:
        arguments.micro_batch = min(arguments.tokens, plan.micro_batch_tokens)
    rng.seed_all(1)
    model = _model(arguments, plan.weights).to(device)
    vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    attention = attach_packed_attention(
        model, arguments.attention, torch.bfloat16 if plan.autocast else None
    )
    if slower := compile_where_it_helps(model, device, plan.memory_budget):
        print(slower)
    optimizer = MasterAdamW(model, plan.optimizer, moments=plan.moments)
    stepper = Stepper(model, optimizer, device, arguments.micro_batch, 1.0, plan.autocast)
    longest = min(LONGEST, arguments.micro_batch)
    steps = [made_up_rows(arguments.tokens, vocabulary, seed, longest) for seed in range(4)]

    for number in range(WARM_STEPS):
        stepper.run([steps[number % 4]], 1e-5)
    alone_s = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for number in range(arguments.steps):
        _sync(device)
        started_s = clock.monotonic_s()
        stepper.run([steps[number % 4]], 1e-5)
        _sync(device)  # the host waits: this is a measurement
        alone_s.append(clock.monotonic_s() - started_s)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes()
    step_s = percentile(sorted(alone_s), 0.5)
    tokens = sum(len(ids) for rows in steps for ids, _ in rows) / 4
    supervised = sum(int(mask[1:].sum()) for rows in steps for _, mask in rows) / 4
    math = math_of(model)
    flops = sum(math.step_flops([len(i) for i, _ in rows], int(supervised)) for rows in steps) // 4
    saving = _while_saving(arguments, stepper, steps, sum(alone_s) / len(alone_s))
    largest = _largest(stepper, vocabulary, arguments.micro_batch)
    return Report(
        model=str(arguments.model or f"{arguments.shape} shape, random weights"),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        precision=plan.name,
        attention=attention,
        parameters=sum(p.numel() for p in model.parameters()),
        tokens_per_step=int(tokens),
        micro_batch_tokens=arguments.micro_batch,
        largest_micro_batch_tokens=largest,
        tokens_per_s=tokens / step_s,
        supervised_tokens_per_s=supervised / step_s,
        step_s=step_s,
        mfu=model_flops_utilisation(flops, step_s, peak_flops(device)),
        peak_memory_bytes=int(peak),
        **saving,
    )


def _while_saving(
    arguments: argparse.Namespace,
    stepper: Stepper,
    steps: list[list[TokenMask]],
    alone_s: float,
) -> dict[str, Any]:
    """Commit once to warm up, then once while training goes on: what the steps lost by it."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.folder) as name:
        root = Path(name)
        (root / "ledger").mkdir()
        lock = locks.acquire(root / ".writer")
        assert lock is not None
        committer = Committer(
            Place(root, root / "ledger"),
            lock.fd,
            weights_once(stepper.model),
            stepper.optimizer,
            {},
            Identity("", "", "", "bench"),
        )
        stepper.before_update = committer.hold_optimizer
        try:
            committer.begin(Progress(global_step=1), {}, "bench")
            _raise_if_failed(committer.finish(lambda written: None))
            _sync(stepper.device)
            started_s = clock.monotonic_s()
            committer.begin(Progress(global_step=2), {}, "bench")
            count, done = 0, None
            while done is None:
                stepper.run([steps[count % 4]], 1e-5)
                count += 1
                _sync(stepper.device)
                done = committer.poll()
            _raise_if_failed(done)
            seconds = clock.monotonic_s() - started_s
            size = sum(p.stat().st_size for p in (root / "checkpoint-2").iterdir())
        finally:
            committer.close()
            stepper.before_update = lambda: None
        extra_s = seconds - count * alone_s
        return {
            "checkpoint_bytes": size,
            "checkpoint_s": seconds,
            "checkpoint_steps": count,
            "checkpoint_extra_s": extra_s,
            "checkpoint_every_50_steps_share": extra_s / (50 * alone_s),
        }


def _raise_if_failed(answer: object) -> None:
    if isinstance(answer, CommitFailed):
        raise OSError(answer.error_number, answer.text)


def _print(report: Report) -> None:
    lines = {
        "model": f"{report.model}, {report.parameters:,} parameters",
        "device": f"{report.device}, {report.precision}, {report.attention} attention",
        "speed": f"{report.tokens_per_s:,.0f} tokens/s, {report.step_s * 1e3:.0f} ms a step of "
        f"{report.tokens_per_step:,}",
        "MFU": "not known for this device" if report.mfu is None else f"{report.mfu:.1%}",
        "peak memory": f"{report.peak_memory_bytes / 1e9:.1f} GB",
        "micro_batch_tokens": f"{report.largest_micro_batch_tokens:,} fit",
        "checkpoint": f"{report.checkpoint_bytes / 1e9:.2f} GB in {report.checkpoint_s:.1f} s; "
        f"every 50 steps it would cost {report.checkpoint_every_50_steps_share:.2%}",
    }
    for name, text in lines.items():
        print(f"{name:>20}  {text}")


def _from_workspace(arguments: argparse.Namespace) -> None:
    """What the command line leaves open, from the workspace's settings; its model, if it is there.

    Raises:
        TrainerTuiError: the settings cannot be read.
    """
    config = settings.load(Workspace(arguments.workspace).config_file)
    base = settings.base_model_folder(config, arguments.workspace)
    if not arguments.model and not arguments.shape and base.is_dir():
        arguments.model = base
    arguments.precision = arguments.precision or config.precision
    arguments.attention = arguments.attention or config.attention
    arguments.tokens = arguments.tokens or config.tokens_per_step
    arguments.micro_batch = arguments.micro_batch or config.micro_batch_tokens


def main() -> int:
    parser = argparse.ArgumentParser(description="measure this machine with our own steps")
    parser.add_argument("--model", type=Path, help="a Hugging Face model folder")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="")
    parser.add_argument("--workspace", type=Path, help="take model and settings from here")
    parser.add_argument("--precision", default="")
    parser.add_argument("--attention", default="")
    parser.add_argument("--tokens", type=int, default=0, help="tokens in one optimizer step")
    parser.add_argument("--micro-batch", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    try:
        if arguments.workspace and on_gpu:
            _from_workspace(arguments)
    except TrainerTuiError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    arguments.precision = arguments.precision or "auto"
    arguments.attention = arguments.attention or "auto"
    arguments.shape = arguments.shape or ("qwen3-0.6b" if on_gpu else "toy")
    arguments.tokens = arguments.tokens or (32768 if on_gpu else 2048)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    try:
        report = measure(arguments)
    except TrainerTuiError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    if arguments.json:
        print(json.dumps(asdict(report)))
    else:
        _print(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
