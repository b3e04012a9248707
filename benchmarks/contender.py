"""One contender in one process: `python -m benchmarks.contender SPEC OUT.json`.

SPEC is JSON: {"who": "ours" | "peer" | "bound", "settings": {...}, "work": {...}}. A process of
its own gives every contender clean memory figures and its own compiled code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.workload import Workload


def main(spec_text: str, out: str) -> None:
    spec = json.loads(spec_text)
    work = Workload(**spec.get("work", {}))
    run = _prepared(spec)
    if spec.get("wait"):
        # Imports are done; the one before us may still be on the device.
        sys.stdin.readline()
    measurement = run(work)
    Path(out).write_text(json.dumps(asdict(measurement)))


def _prepared(spec: dict[str, Any]) -> Callable[[Workload], Any]:
    """The contender with its imports done and nothing else."""
    if spec["who"] == "ours":
        from benchmarks import ours

        return partial(ours.run, ours.Settings(**spec["settings"]))
    if spec["who"] == "bound":
        from benchmarks import matmul_bound

        settings = matmul_bound.Settings(**spec["settings"])
        return lambda work: matmul_bound.run(settings)
    from benchmarks import peers

    peers.imports(spec["settings"].get("kind", "trl"))
    return partial(peers.run, peers.Settings(**spec["settings"]))


if __name__ == "__main__":
    main(*sys.argv[1:3])
