"""On a CPU with a tiny model: our step against the stock Trainer's, per supervised token.

`python -m benchmarks.cpu_step [--out FOLDER]`. Same rows in the same order, float32, fused AdamW,
clipping at 1.0; the Trainer pads its batch, we pack it. Each contender runs several times, taking
turns, in a process of its own; the table shows medians and their ratio, which must be 1 or more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measuring import Measurement

TURNS = 3
COMMON = {"shape": "tiny", "device": "cpu", "warm_steps": 3, "steps_per_repeat": 10}
WORK = {"steps": 33, "rows_per_step": 8, "vocabulary": 512, "log_mean": 4.5, "longest": 400}
OURS = {"name": "ours, packed", "precision": "fp32", **COMMON}
STOCK = {"name": "stock Trainer, padded", "kind": "stock", "padded_rows": 8, **COMMON}


def run(who: str, settings: dict[str, Any]) -> Measurement:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measurement.json"
        spec = json.dumps({"who": who, "settings": settings, "work": WORK})
        subprocess.run(
            [sys.executable, "-m", "benchmarks.contender", spec, str(out)],
            check=True,
            capture_output=True,
        )
        return Measurement(**json.loads(out.read_text()))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args(arguments)
    ours: list[Measurement] = []
    theirs: list[Measurement] = []
    for _ in range(TURNS):
        ours.append(run("ours", OURS))
        theirs.append(run("peer", STOCK))
    mine = median(m.supervised_per_s_median for m in ours)
    stock = median(m.supervised_per_s_median for m in theirs)
    gap = max(abs(a - b) for a, b in zip(ours[0].losses, theirs[0].losses, strict=False))
    lines = [
        "| what | supervised tokens/s, each turn | median |",
        "|---|---|---|",
        f"| ours, packed | {_each(ours)} | {mine:,.0f} |",
        f"| stock Trainer, padded | {_each(theirs)} | {stock:,.0f} |",
        "",
        f"ratio {mine / stock:.2f}; largest difference between the two loss curves {gap:.1e} "
        f"over {len(ours[0].losses)} steps",
        "",
        ", ".join(f"{k} {v}" for k, v in (theirs[0].notes | ours[0].notes).items())
        + f"; {torch.get_num_threads()} threads",
    ]
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "cpu_step.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _each(measurements: list[Measurement]) -> str:
    return ", ".join(f"{m.supervised_per_s_median:,.0f}" for m in measurements)


if __name__ == "__main__":
    main(sys.argv[1:])
