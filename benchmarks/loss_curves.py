"""Our loss curve and TRL's on the same rows in the same order, on a CPU in float32.

`python -m benchmarks.loss_curves [--steps 60] [--out FOLDER]` needs `pip install trl==1.16.0`,
which the project itself does not. Tiny model, packed rows of about 150 tokens, 4k tokens a step,
AdamW, clipping at 1.0. Written: every step's losses as CSV, and both curves as a picture in text.
"""

from __future__ import annotations

import argparse
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plotext import figure

from benchmarks import ours, peers, workload
from benchmarks.measuring import versions

CURVE = {"shape": "tiny", "device": "cpu", "warm_steps": 0, "steps_per_repeat": 10**6}


def _no_fingerprints() -> None:
    """`datasets` names its caches by pickling our trainer class, which it cannot: any name does."""
    from datasets import fingerprint

    fingerprint.Hasher.hash = classmethod(lambda cls, value: uuid.uuid4().hex)


def picture(curves: dict[str, list[float]]) -> str:
    """The first curve as a line, the second as crosses on every fourth step: equal ones hide."""
    figure.clear.data()
    figure.clear.settings()
    figure.plot_size(90, 20)
    for number, losses in enumerate(curves.values()):
        every = slice(None, None, 4 * number or None)
        steps = list(range(1, len(losses) + 1))[every]
        signal = figure.signal(steps, losses[every], marker="x" if number else "braille")
        figure.draw(signal.lines(not number))
    text: str = figure.build().string(colorless=True)
    return "\n".join(line.rstrip() for line in text.split("\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args()
    work = workload.Workload(
        vocabulary=512, tokens_per_step=4096, steps=chosen.steps, log_mean=5.0, longest=1024
    )
    _no_fingerprints()
    settings: dict[str, Any] = {**CURVE, "attention": "sdpa", "liger": False}
    curves = {
        "ours": ours.run(ours.Settings(precision="fp32", **CURVE), work).losses,
        "TRL, packed, SDPA": peers.run(peers.Settings(**settings), work).losses,
    }
    mine, theirs = curves.values()
    pairs = list(zip(mine, theirs, strict=True))
    gap = max(abs(a - b) for a, b in pairs)
    rows = "".join(f"{n},{a:.6f},{b:.6f}\n" for n, (a, b) in enumerate(pairs, 1))
    (chosen.out / "loss_curves.csv").write_text("step,ours,TRL\n" + rows)
    used = ", ".join(f"{k} {v}" for k, v in versions("torch", "transformers", "trl").items())
    text = (
        "# Our loss curve and TRL's\n\n"
        f"`python -m benchmarks.loss_curves --steps {chosen.steps}`, {datetime.now(UTC):%Y-%m-%d},"
        f" CPU, float32, {used}. Largest difference of {chosen.steps} steps: {gap:.1e};"
        f" the loss falls by {mine[0] - mine[-1]:.3f}. Every step in `loss_curves.csv`.\n\n"
        "Ours as a line, TRL's as crosses (every fourth step).\n\n"
        f"```\n{picture(curves)}\n```\n"
    )
    (chosen.out / "loss_curves.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
