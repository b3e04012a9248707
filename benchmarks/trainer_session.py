"""The real trainer process on this machine: what a checkpoint and a change of file cost.

`python -m benchmarks.trainer_session [--shape qwen3-0.6b] [--steps 150] [--out FOLDER]` plays the
daemon's side of the pipe. First a file without checkpoints, then two short files, then a file with
a checkpoint every 50 steps; all in one trainer. Reported: tokens/s with and without checkpoints in
windows of 50 steps, the pause between two files, and graphs compiled after the first file's steps.

As `run`, this module is also the child's entry: the trainer's own, which also notes dynamo's count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np

from benchmarks import models
from trainer_tui.safety import checkpoints, child, messages
from trainer_tui.safety.config import Config
from trainer_tui.safety.messages import Committed, NothingWaits, StepDone, Train, TrainerSpec
from trainer_tui.safety.pipe import PipeEnd
from trainer_tui.safety.workspace import Workspace

SAVE_STEPS = 50
NEVER = 10**6
DEADLINE_S = 540.0
WORDS = ("the", "cat", "sat", "on", "a", "red", "mat", "and", "saw", "sun", "rise", "hills", "sea")


def run(connection: Connection, spec_bytes: bytes) -> int:
    """The child: the trainer with one line a step in `graphs.txt`."""
    from torch._dynamo.utils import counters

    from trainer_tui.engine import entry, work

    root = Path(msgspec.msgpack.decode(spec_bytes, type=TrainerSpec).workspace)
    honest = work.Work.step

    def counted(self: work.Work) -> None:
        honest(self)
        with (root / "graphs.txt").open("a") as stream:
            stream.write(f"{int(counters['stats'].get('unique_graphs', 0))}\n")

    work.Work.step = counted  # type: ignore[method-assign]
    return entry.run(connection, spec_bytes)


def make_model(folder: Path, shape: str) -> None:
    """Random weights in a real shape, with the toy tokenizer."""
    import torch

    from trainer_tui.data import toy_chats, toy_tokenizer

    toy_tokenizer.build(folder, toy_chats.generate(7).texts(), vocabulary=1024)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = models.build(shape, torch.bfloat16, device)
    model.config.eos_token_id, model.config.pad_token_id = 2, 0
    model.save_pretrained(folder)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()


def rows(tokens: int, generator: np.random.Generator) -> list[str]:
    """Chats of about `tokens` tokens together; a word is about two tokens."""
    made: list[str] = []
    left = tokens
    while left > 0:
        length = int(np.clip(generator.lognormal(6.0, 0.7), 32, 3000))
        words = [WORDS[i] for i in generator.integers(0, len(WORDS), max(4, int(length / 1.8)))]
        cut = int(0.4 * len(words))
        turns = [
            {"role": "user", "content": " ".join(words[:cut])},
            {"role": "assistant", "content": " ".join(words[cut:])},
        ]
        made.append(json.dumps({"messages": turns}))
        left -= length
    return made


@dataclass(slots=True)
class Seen:
    """What the trainer said, with the time it came."""

    steps: list[tuple[float, StepDone]] = field(default_factory=list)
    commits: list[tuple[float, Committed]] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)


class Daemon:
    """Hands out the jobs in order; the last one with checkpoints."""

    def __init__(self, workspace: Workspace, jobs: list[Train], config: Config) -> None:
        self.seen = Seen()
        self._workspace, self._waiting = workspace, list(jobs)
        spec = TrainerSpec(
            run_id="bench",
            workspace=str(workspace.root),
            config=config.model_dump(mode="json"),
            heartbeat=str(workspace.state / "heartbeat"),
        )
        ours, theirs = multiprocessing.Pipe()
        raw = msgspec.msgpack.encode(spec)
        self._process = child.spawn(
            "benchmarks.trainer_session", theirs, raw, workspace.logs / "trainer.out", "trainer"
        )
        theirs.close()
        self._pipe = PipeEnd(ours, self._on_frame, self.seen.done.set, "bench")
        self._pipe.start()

    def _send(self, message: Any) -> None:
        self._pipe.send(messages.encode(message))

    def _on_frame(self, frame: bytes) -> None:
        now = time.monotonic()
        message = messages.decode_from_trainer(frame)
        match message:
            case StepDone():
                self.seen.steps.append((now, message))
            case Committed():
                self.seen.commits.append((now, message))
                for folder in checkpoints.list_folders(self._workspace.current_model)[:-2]:
                    shutil.rmtree(folder)
            case messages.WantJob() if self._waiting:
                if len(self._waiting) == 1:
                    values = {"save_steps": SAVE_STEPS, "min_save_interval_s": 0.0}
                    self._send(messages.Reconfigure(values))
                self._send(self._waiting.pop(0))
            case messages.WantJob():
                self._send(NothingWaits())
                self._send(messages.Stop())
            case messages.JobRefused():
                print(message, file=sys.stderr)
            case _:
                pass

    def wait(self) -> None:
        """Until the trainer has ended."""
        self.seen.done.wait(DEADLINE_S)
        self._process.join(30)
        if self._process.exitcode != 0:
            raise SystemExit((self._workspace.logs / "trainer.out").read_text()[-3000:])


def add_job(workspace: Workspace, number: int, lines: list[str]) -> Train:
    name = f"file{number}.jsonl"
    folder = workspace.queue / "processing" / f"{number:020d}-{number}-{name}"
    folder.mkdir(parents=True)
    data = ("\n".join(lines) + "\n").encode()
    (folder / "data.jsonl").write_bytes(data)
    return Train(number, name, str(folder), hashlib.sha256(data).hexdigest())


def windows(steps: list[tuple[float, StepDone]], size: int = SAVE_STEPS) -> list[float]:
    """Tokens/s over each `size` steps, the first window's first ten steps left out. Fewer steps
    than that are one window."""
    speeds = []
    for start in range(0, max(1, len(steps) - size + 1), size):
        first = start if start else 10
        part = steps[first : start + size]
        before = steps[first - 1][0] if first else part[0][0]
        speeds.append(sum(m.tokens for _, m in part) / (part[-1][0] - before))
    return speeds


def report(seen: Seen, graphs: list[int], device: str) -> list[str]:
    """Markdown."""
    by_job: dict[int, list[tuple[float, StepDone]]] = {}
    for at, message in seen.steps:
        by_job.setdefault(message.job_id, []).append((at, message))
    jobs = sorted(by_job)
    gaps = [by_job[b][0][0] - by_job[a][-1][0] for a, b in pairwise(jobs)]
    plain, saving = windows(by_job[jobs[0]]), windows(by_job[jobs[-1]])
    cost = 1 - median(saving) / median(plain)
    shown = ", ".join(f"{at:.0f} s: step {m.global_step}" for at, m in _since_start(seen))
    after_first = graphs[len(by_job[jobs[0]]) - 1]
    return [
        f"{device}; files of {', '.join(str(len(by_job[j])) for j in jobs)} steps",
        "",
        "| what | figure |",
        "|---|---|",
        f"| tokens/s without checkpoints, windows of {SAVE_STEPS} steps | {_list(plain)} |",
        f"| tokens/s with one every {SAVE_STEPS} steps | {_list(saving)} |",
        f"| cost of a checkpoint every {SAVE_STEPS} steps, by the medians | {cost:+.2%} |",
        f"| checkpoints on disk after | {shown} |",
        f"| from a file's last step to the next one's first | {_seconds(gaps)} |",
        f"| median step | {1e3 * median(m.step_s for _, m in by_job[jobs[0]]):.1f} ms |",
        f"| graphs compiled: during the first file, after it | {after_first}, "
        f"{graphs[-1] - after_first} |",
    ]


def _since_start(seen: Seen) -> list[tuple[float, Committed]]:
    return [(at - seen.steps[0][0], m) for at, m in seen.commits]


def _list(speeds: list[float]) -> str:
    return ", ".join(f"{s:,.0f}" for s in speeds)


def _seconds(gaps: list[float]) -> str:
    return ", ".join(f"{g:.2f} s" for g in gaps)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="qwen3-0.6b", choices=sorted(models.SHAPES))
    parser.add_argument("--steps", type=int, default=150, help="of the first and the last file")
    parser.add_argument("--tokens-per-step", type=int, default=32_768)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        (workspace.root / "config.toml").write_text("")
        workspace.prepare()
        make_model(workspace.models / "base", chosen.shape)
        generator = np.random.default_rng(1)
        sizes = [chosen.steps, 2, 5, chosen.steps]
        jobs = [
            add_job(workspace, number, rows(count * chosen.tokens_per_step, generator))
            for number, count in enumerate(sizes, start=1)
        ]
        config = Config.model_validate(
            {
                "tokens_per_step": chosen.tokens_per_step,
                "pack_tokens": min(4096, chosen.tokens_per_step),
                "max_length": min(4096, chosen.tokens_per_step),
                "log_steps": 1,
                "eval_steps": NEVER,
                "save_steps": NEVER,
                "min_save_interval_s": float(NEVER),
                "validation": {"rows": 0, "holdout_rows": 0, "holdout_share": 0.0},
            }
        )
        daemon = Daemon(workspace, jobs, config)
        daemon.wait()
        graphs = [int(line) for line in (workspace.root / "graphs.txt").read_text().split()]
        from benchmarks.measuring import device_name, versions

        lines = report(daemon.seen, graphs, device_name())
        lines += ["", ", ".join(f"{k} {v}" for k, v in versions("torch", "triton").items())]
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "trainer_session.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
