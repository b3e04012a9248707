"""`make bench`: everything this machine can measure, and what it cannot, said.

On a CPU: our step against the stock Trainer's with a tiny model. With a CUDA device also packed
attention alone, the whole step against its peers, as far as they are installed, and what a
checkpoint and a change of file cost the real trainer.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks import attention_kernels, cpu_step, gpu_step, trainer_session


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args(arguments)
    out = ["--out", str(chosen.out)]
    if find_spec("accelerate") is None:
        print("cpu_step needs accelerate, which transformers' Trainer imports: skipped")
    else:
        cpu_step.main(out)
    if not torch.cuda.is_available():
        print("No CUDA device: attention_kernels and gpu_step were not run.")
        return
    attention_kernels.main(out)
    peers = ["trl"] if all(find_spec(p) for p in ("trl", "liger_kernel", "datasets")) else []
    if not peers:
        print("trl, liger-kernel and datasets are not installed: gpu_step runs without TRL")
    gpu_step.main([*out, "--only", ",".join(["bound", "pure", *peers, "split", "lean", "stock"])])
    trainer_session.main(out)


if __name__ == "__main__":
    main(sys.argv[1:])
