"""One contender in one process: `python -m benchmarks.contender SPEC OUT.json`.

SPEC is JSON: {"who": "ours" | "peer" | "bound", "settings": {...}, "work": {...}}. A process of
its own gives every contender clean memory figures and its own compiled code.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.workload import Workload


def main(spec_text: str, out: str) -> None:
    spec = json.loads(spec_text)
    work = Workload(**spec.get("work", {}))
    if spec["who"] == "ours":
        from benchmarks import ours

        measurement = ours.run(ours.Settings(**spec["settings"]), work)
    elif spec["who"] == "bound":
        from benchmarks import matmul_bound

        measurement = matmul_bound.run(matmul_bound.Settings(**spec["settings"]))
    else:
        from benchmarks import peers

        measurement = peers.run(peers.Settings(**spec["settings"]), work)
    Path(out).write_text(json.dumps(asdict(measurement)))


if __name__ == "__main__":
    main(*sys.argv[1:3])
