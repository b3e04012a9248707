"""The training step on a GPU: ours, its peers and the bare matrix products, one after the other.

`python -m benchmarks.gpu_step [--only NAME,…] [--out FOLDER]` runs each contender in its own
process on the same card and writes one table, the loss curves and the raw figures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measuring import Measurement
from benchmarks.model_peaks import peak_share

Result = Measurement | str  # figures, or why there are none
SPLIT = {"precision": "split"}
LEAN = {
    **SPLIT,
    "moments": "bfloat16",
    "micro_batches": 4,
    "chunk_rows": 2048,
    "memory_budget": 0.9,
}
STOCK = {"kind": "stock", "warm_steps": 3, "steps_per_repeat": 4}
PADDED_ROWS = (10, 6, 5, 4, 3)  # tried downwards until one fits
STEPS = {"warm_steps": 5, "steps_per_repeat": 6}
# For loss curves: with all 28 layers and 32k tokens the peer's loss is not a number.
FOUR_LAYERS = {"shape": "qwen3-0.6b, 4 layers", "warm_steps": 5, "steps_per_repeat": 25}


def _peer(name: str, **settings: Any) -> dict[str, Any]:
    return {"who": "peer", "settings": {"name": name, **settings}}


def _ours(name: str, **settings: Any) -> dict[str, Any]:
    return {"who": "ours", "settings": {"name": f"ours, {name}", **settings}}


CONTENDERS: dict[str, dict[str, Any]] = {
    "bound": {"who": "bound", "settings": {}},
    "trl": _peer("TRL packed, flex, Liger", pad_to=128, **STEPS),
    "pure": _ours("pure bf16", prove=True, **STEPS),
    "split": _ours("fp32 master (split)", **SPLIT, **STEPS),
    "stock": _peer("stock Trainer, padded, SDPA", **STOCK),
    "lean": _ours("lean (4 micro-batches, bf16 moments)", **LEAN, **STEPS),
    "split-2": _ours("fp32 master, 2 micro-batches", micro_batches=2, **SPLIT, **STEPS),
    "pure-90": _ours("pure bf16, 90 % of activations kept", memory_budget=0.9, **STEPS),
    "pure-flex": _ours("pure bf16, flex attention", attention="flex", **STEPS),
    "trl-unpadded": _peer("TRL packed, flex, Liger, length as it comes", **STEPS),
    "trl-no-liger": _peer("TRL packed, flex", pad_to=128, liger=False, **STEPS),
    "ours-4-layers": _ours("pure bf16, 4 layers", **FOUR_LAYERS),
    "trl-4-layers": _peer("TRL packed, flex, Liger, 4 layers", pad_to=128, **FOUR_LAYERS),
    "trl-compiled": _peer("TRL, flex, Liger, compiled", pad_to=128, torch_compile=True, **STEPS),
}


def _expanded(names: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Contenders in order, the stock Trainer once per batch size to try."""
    specs = []
    for name in names:
        spec = CONTENDERS[name]
        if name != "stock":
            settings = spec["settings"]
            repeats = settings.get("steps_per_repeat", 1)
            steps = settings.get("warm_steps", 0) + 3 * repeats
            specs.append((name, {**spec, "work": {"steps": steps}}))
            continue
        for rows in PADDED_ROWS:
            padded = {**spec["settings"], "padded_rows": rows}
            padded["name"] = f"{padded['name']}, {rows} rows"
            work = {"steps": 2 + rows * 15 // 40}
            specs.append((name, {**spec, "settings": padded, "work": work}))
    return specs


class Contender:
    """A child process that imports at once and runs when it is told to."""

    def __init__(self, spec: dict[str, Any], folder: Path) -> None:
        self.name = spec["settings"].get("name", "bare matrix products")
        self._out = folder / f"{time.monotonic_ns()}.json"
        self._errors = (folder / f"{self._out.stem}.txt").open("w+")
        text = json.dumps({**spec, "wait": True})
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contender", text, str(self._out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            text=True,
        )

    def run(self, timeout_s: float) -> Result:
        try:
            self._child.communicate("go\n", timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.drop()
            return f"did not finish in {timeout_s:.0f} s"
        if self._out.exists():
            return Measurement(**json.loads(self._out.read_text()))
        self._errors.seek(0)
        errors = self._errors.read()
        if "OutOfMemoryError" in errors or "out of memory" in errors:
            return "out of memory"
        tail = errors.strip().splitlines()[-20:]
        print("\n".join(tail), file=sys.stderr, flush=True)
        return "failed: " + (tail[-1][:200] if tail else f"exit {self._child.returncode}")

    def drop(self) -> None:
        self._child.kill()
        self._child.wait()


def run_all(names: list[str], timeout_s: float, write: Any) -> dict[str, Result]:
    """Each contender alone on the device; the next one imports meanwhile."""
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        queue = _expanded(names)
        waiting: Contender | None = None
        for number, (key, spec) in enumerate(queue):
            if isinstance(results.get(key), Measurement):
                continue  # a larger padded batch fitted
            if waiting is None:
                waiting = Contender(spec, Path(folder))
            current, waiting = waiting, None
            if number + 1 < len(queue) and queue[number + 1][0] != "stock":
                waiting = Contender(queue[number + 1][1], Path(folder))
            results[key] = current.run(timeout_s)
            write(results)
        if waiting is not None:
            waiting.drop()
    return results


def table(results: dict[str, Result]) -> list[str]:
    """Markdown lines: medians of the repeats, ratios to the best peer and to the bound."""
    measured = {k: m for k, m in results.items() if isinstance(m, Measurement)}
    peers = [m.tokens_per_s_median for k, m in measured.items() if k.startswith("trl")]
    peer = max(peers, default=0.0)
    bound = measured["bound"].tokens_per_s_median if "bound" in measured else 0.0
    lines = [
        "| what | tokens/s | ms/step | peak GB | x best peer | of the bound | MFU | warm-up s "
        "| compiled again |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, result in results.items():
        if isinstance(result, str):
            lines.append(f"| {CONTENDERS[key]['settings'].get('name', key)} | {result} |")
            continue
        speed = result.tokens_per_s_median
        share = peak_share(result.flops_per_step / result.ms_per_step_median * 1e3, result.device)
        broken = next((n for n, x in enumerate(result.losses, 1) if not math.isfinite(x)), None)
        cells = [
            result.name + (f" (loss not finite from step {broken})" if broken else ""),
            f"{speed:,.0f}",
            f"{result.ms_per_step_median:.1f}",
            f"{result.peak_gb:.1f}" if result.peak_gb else "",
            f"{speed / peer:.2f}" if peer else "",
            f"{speed / bound:.0%}" if bound else "",
            f"{share:.0%}" if share else "",
            f"{result.start_s:.0f}" if result.start_s else "",
            str(result.recompiles) if result.start_s else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def curves(results: dict[str, Result]) -> list[str]:
    """CSV: loss of every step for the contenders that saw the same steps."""
    same = {
        m.name: m.losses
        for k, m in results.items()
        if isinstance(m, Measurement) and m.losses and k != "stock"
    }
    if not same:
        return []
    lines = ["step," + ",".join(f'"{name}"' for name in same)]
    for number, losses in enumerate(zip(*same.values(), strict=False), start=1):
        lines.append(f"{number}," + ",".join(f"{loss:.5f}" for loss in losses))
    return lines


def _write(results: dict[str, Result], out: Path, tag: str) -> None:
    lines = table(results)
    notes: dict[str, str] = {}
    for result in results.values():
        if isinstance(result, Measurement):
            notes |= result.notes
            notes["card"] = result.device
    print(lines[-1], flush=True)
    lines += ["", ", ".join(f"{k} {v}" for k, v in notes.items())]
    (out / f"{tag}.md").write_text("\n".join(lines) + "\n")
    (out / f"{tag}_losses.csv").write_text("\n".join(curves(results)) + "\n")
    raw = {k: (m if isinstance(m, str) else asdict(m)) for k, m in results.items()}
    (out / f"{tag}.json").write_text(json.dumps(raw, indent=1))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    usual = "bound,pure,trl,split,lean,stock,split-2"
    parser.add_argument("--only", default=usual, help=f"of {', '.join(CONTENDERS)}, in order")
    parser.add_argument("--override", default="{}", help="JSON put over every `ours` setting")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--timeout", type=float, default=200.0, help="seconds per contender")
    parser.add_argument("--tag", default="gpu_step", help="name of the files written")
    chosen = parser.parse_args(arguments)
    for spec in CONTENDERS.values():
        if spec["who"] == "ours":
            spec["settings"] |= json.loads(chosen.override)
    chosen.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("BENCH_OUT", str(chosen.out))
    names = chosen.only.split(",")
    results = run_all(names, chosen.timeout, lambda r: _write(r, chosen.out, chosen.tag))
    print("\n".join(table(results)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
