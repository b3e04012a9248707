"""Thousands of tiny files dropped into the inbox at once: how fast they become jobs.

`python -m benchmarks.queue_mass [--files N] [--folder DIR]`, a real daemon with a toy tokenizer,
training paused. The time of each tenth of the files shows whether the cost of one file grows with
the number that wait.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import tempfile
import time
from pathlib import Path

from benchmarks.queue_daemon import Client, memory_mb, start
from trainer_tui.data import toy_chats, toy_tokenizer
from trainer_tui.safety.workspace import Workspace

LIMIT_S = 3600.0


def row(number: int) -> str:
    messages = [
        {"role": "user", "content": f"What is {number} and one?"},
        {"role": "assistant", "content": f"It is {number + 1}."},
    ]
    return json.dumps({"messages": messages}) + "\n"


def prepare(root: Path, files: int) -> Workspace:
    (root / "config.toml").write_text("")
    workspace = Workspace(root)
    workspace.prepare()
    pause = {"training": "pause", "by": "benchmark", "at": "", "why": ""}
    (workspace.state / "intent.json").write_text(json.dumps(pause))
    base = root / "models" / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    toy_tokenizer.build(base, toy_chats.generate(rows_per_file=60).texts())
    waiting = root / "dropped"
    waiting.mkdir()
    for number in range(files):
        (waiting / f"chat-{number:06d}.jsonl").write_text(row(number) * 2)
    return workspace


def waiting_files(client: Client) -> int:
    return int(client.ask("GET", "/v1/status")["queue"]["waiting"])


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def measure(workspace: Workspace, files: int) -> None:
    process, client = start(workspace.root)
    try:
        began_cpu_s = cpu_s(process.pid)
        began = time.perf_counter()
        for file in sorted((workspace.root / "dropped").iterdir()):
            file.rename(workspace.inbox / file.name)
        print(f"{'dropped in':28} {time.perf_counter() - began:8.1f} s")
        before = time.perf_counter()
        for tenth in range(1, 11):
            while waiting_files(client) < files * tenth // 10:
                if time.perf_counter() - began > LIMIT_S:
                    raise RuntimeError(f"only {waiting_files(client)} files were taken")
                time.sleep(0.05)
            now = time.perf_counter()
            rate = files / 10 / (now - before)
            print(f"{f'{tenth * 10} % taken':28} {now - began:8.1f} s, {rate:6.0f} files/s")
            before = now
        took = time.perf_counter() - began
        print(f"{'a file':28} {took / files * 1000:8.2f} ms")
        used_s = cpu_s(process.pid) - began_cpu_s
        print(f"{'processor of the daemon':28} {used_s / files * 1000:8.2f} ms a file")
        print(f"{'memory at its highest':28} {memory_mb(process.pid, 'VmHWM'):8.0f} MB")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--folder", type=Path, help="where to make it; a temporary one without it")
    asked = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=asked.folder))
    try:
        measure(prepare(root, asked.files), asked.files)
    finally:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
