"""The training step on a GPU: ours, its peers and the bare matrix products, one after the other.

`python -m benchmarks.gpu_step [--only NAME,…] [--out FOLDER]` runs each contender in its own
process on the same card and writes one table, the loss curves and the raw figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measuring import Measurement
from benchmarks.model_peaks import peak_share

WORK: dict[str, Any] = {"steps": 29}
LEAN = {"precision": "split", "moments": "bfloat16", "micro_batches": 8, "chunk_rows": 2048}
CONTENDERS: dict[str, dict[str, Any]] = {
    "bound": {"who": "bound", "settings": {}},
    "trl": {"who": "peer", "settings": {"name": "TRL packed, flex, Liger"}},
    "trl-compiled": {
        "who": "peer",
        "settings": {"name": "TRL packed, flex, Liger, compiled", "torch_compile": True},
    },
    "trl-no-liger": {
        "who": "peer",
        "settings": {"name": "TRL packed, flex", "liger": False},
    },
    "pure": {"who": "ours", "settings": {"name": "ours, pure bf16"}},
    "split": {
        "who": "ours",
        "settings": {"name": "ours, fp32 master (split)", "precision": "split"},
    },
    "pure-2": {
        "who": "ours",
        "settings": {"name": "ours, pure bf16, 2 micro-batches", "micro_batches": 2},
    },
    "split-2": {
        "who": "ours",
        "settings": {
            "name": "ours, fp32 master, 2 micro-batches",
            "precision": "split",
            "micro_batches": 2,
        },
    },
    "lean": {"who": "ours", "settings": {"name": "ours, lean", **LEAN}},
    "stock": {
        "who": "peer",
        "settings": {"name": "stock Trainer, padded, SDPA", "kind": "stock"},
    },
}
PADDED_ROWS = (14, 10, 8, 6, 4)  # tried downwards until one fits


def run_one(key: str, spec: dict[str, Any], timeout_s: float) -> Measurement | str:
    """The contender's figures, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measurement.json"
        full = {"work": WORK, **spec}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.contender", json.dumps(full), str(out)],
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            return f"did not finish in {timeout_s:.0f} s"
        if not out.exists():
            if "OutOfMemoryError" in done.stderr:
                return "out of memory"
            tail = done.stderr.strip().splitlines()[-25:]
            print("\n".join(tail), file=sys.stderr, flush=True)
            return "failed: " + (tail[-1][:200] if tail else f"exit {done.returncode}")
        return Measurement(**json.loads(out.read_text()))


def largest_padded(spec: dict[str, Any], timeout_s: float) -> Measurement | str:
    """The stock Trainer at the largest padded batch that fits."""
    result: Measurement | str = "nothing fits"
    for rows in PADDED_ROWS:
        settings = {**spec["settings"], "padded_rows": rows}
        settings["name"] = f"{spec['settings']['name']}, {rows} rows"
        work = {"steps": 4 + rows * 29 // 40}
        result = run_one("stock", {"who": "peer", "settings": settings, "work": work}, timeout_s)
        print(f"  {settings['name']}: {result if isinstance(result, str) else 'fits'}", flush=True)
        if isinstance(result, Measurement):
            return result
    return result


def table(results: dict[str, Measurement | str]) -> list[str]:
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
        flops = result.flops_per_step / (result.ms_per_step_median / 1e3)
        share = peak_share(flops, result.device)
        cells = [
            result.name,
            f"{speed:,.0f}",
            f"{result.ms_per_step_median:.1f}",
            f"{result.peak_gb:.1f}" if result.peak_gb else "",
            f"{speed / peer:.2f}" if peer else "",
            f"{speed / bound:.0%}" if bound else "",
            f"{share:.0%}" if share and result.flops_per_step else "",
            f"{result.start_s:.0f}" if result.start_s else "",
            str(result.recompiles) if result.start_s else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def curves(results: dict[str, Measurement | str]) -> list[str]:
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


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(CONTENDERS), help="names, in order")
    parser.add_argument("--override", default="{}", help="JSON put over every `ours` setting")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--timeout", type=float, default=200.0, help="seconds per contender")
    parser.add_argument("--tag", default="gpu_step", help="name of the files written")
    chosen = parser.parse_args(arguments)
    override = json.loads(chosen.override)
    chosen.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("BENCH_OUT", str(chosen.out))
    results: dict[str, Measurement | str] = {}
    for key in chosen.only.split(","):
        spec = CONTENDERS[key]
        if spec["who"] == "ours":
            spec = {**spec, "settings": {**spec["settings"], **override}}
        run = largest_padded if key == "stock" else lambda s, t, k=key: run_one(k, s, t)  # type: ignore[misc]
        results[key] = run(spec, chosen.timeout)
        print("\n".join(table(results)[-1:]), flush=True)
    lines = table(results)
    notes: dict[str, str] = {}
    for result in results.values():
        if isinstance(result, Measurement):
            notes |= {k: v for k, v in result.notes.items()}
            notes["card"] = result.device
    lines += ["", ", ".join(f"{k} {v}" for k, v in notes.items())]
    (chosen.out / f"{chosen.tag}.md").write_text("\n".join(lines) + "\n")
    (chosen.out / f"{chosen.tag}_losses.csv").write_text("\n".join(curves(results)) + "\n")
    raw = {k: (m if isinstance(m, str) else _plain(m)) for k, m in results.items()}
    (chosen.out / f"{chosen.tag}.json").write_text(json.dumps(raw, indent=1))
    print("\n".join(lines), flush=True)


def _plain(measurement: Measurement) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(replace(measurement))


if __name__ == "__main__":
    main(sys.argv[1:])
