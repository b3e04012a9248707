"""Going back with a real daemon and a real trainer: from the wish to the first new step.

    python -m benchmarks.versions_restore [--megabytes 300] [--rounds 3] [--folder DIR]
        [--precision NAME] [--idle] [--write NAME]

Random weights in a Qwen3 shape of about that size in float32 (0: the toy model; 4000: one billion
parameters). Each round makes a version, trains on, restores it, and waits for the first step
after it. With `--idle` everything is trained and saved when the wish comes, so that no save is in
it, and a file is queued again for the first step. `--write` keeps the table in results/NAME.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer_tui.safety.errors import TrainerTuiError
from trainer_tui.safety.workspace import Workspace
from trainer_tui.tui.client import Client

LARGE_MEGABYTES = 2000
SETTINGS = """
max_length = 256
warmup_steps = 2
eval_steps = 100000
save_steps = 100000
min_save_interval_s = 100000.0
[validation]
rows = 4
[versioning]
on_new_best = false
[retention]
checkpoints = 2
emergency_backups = 1
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of one layer; `bytes` in float32."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def bytes(self) -> int:
        attention = 2 * (self.heads + self.kv_heads) * self.head_dim
        return 4 * self.hidden * (attention + 3 * self.intermediate)


SMALL, LARGE = Shape(768, 2304, 12, 4, 64), Shape(2048, 6144, 16, 8, 128)


class Patience:
    limit_s = 600.0  # for one wait


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument(
        "--patience", type=float, default=Patience.limit_s, help="seconds for one step"
    )
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--idle", action="store_true", help="nothing is unsaved at the wish")
    parser.add_argument("--write", metavar="NAME", default="")
    wanted = parser.parse_args()
    Patience.limit_s = wanted.patience
    with tempfile.TemporaryDirectory(dir=wanted.folder, prefix="versions-restore-") as place:
        table = measure(Workspace(Path(place) / "ws"), wanted)
    print(table)
    if wanted.write:
        (Path(__file__).parent / "results" / f"{wanted.write}.md").write_text(table)


def build(folder: Path, megabytes: int) -> None:
    """The toy model's tokenizer; its weights, or random ones of the size asked for."""
    program = [sys.executable, "-m", "trainer_tui.engine.toy_model", "build", str(folder)]
    subprocess.run([*program, "--size", "demo"], check=True, stdout=subprocess.DEVNULL)
    if not megabytes:
        return
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    values = json.loads((folder / "config.json").read_text())
    shape = LARGE if megabytes >= LARGE_MEGABYTES else SMALL
    values |= {
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "layer_types": None, "dtype": "float32",
        "num_hidden_layers": max(1, megabytes * 1_000_000 // shape.bytes),
    }  # fmt: skip
    torch.manual_seed(1)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(Qwen3Config(**values))
    model.save_pretrained(folder)


def wait_for(what: Callable[[], Any]) -> Any:
    deadline_s = time.monotonic() + Patience.limit_s
    while time.monotonic() < deadline_s:
        if found := what():
            return found
        time.sleep(0.02)
    raise SystemExit(f"not within {Patience.limit_s:.0f} s")


def measure(workspace: Workspace, wanted: argparse.Namespace) -> str:
    """Serve the workspace, go back so often, and return the table as Markdown."""
    card, megabytes, rounds = _card(), wanted.megabytes, wanted.rounds
    tokens, count = (1024, 30_000) if card else (256, 6_000)
    count = 24 if wanted.idle else count
    workspace.root.mkdir()
    sizes = f"pack_tokens = {tokens}\ntokens_per_step = {tokens}\n"
    sizes += f'precision = "{wanted.precision}"\n'
    workspace.config_file.write_text(sizes + SETTINGS)
    workspace.prepare()
    build(workspace.models / "base", megabytes)
    rows = (
        {"messages": [{"role": "user", "content": f"question {i} " + "of words " * 3},
                      {"role": "assistant", "content": f"answer {i} " + "and so on " * 4}]}
        for i in range(count)
    )  # fmt: skip
    print(f"{megabytes} MB of random weights; plain writing {_write_speed(workspace):.2f} GB/s")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (workspace.inbox / "long.jsonl").write_text(text)
    command = [sys.executable, "-P", "-m", "trainer_tui.daemon", "--workspace"]
    log = (workspace.root / "daemon.out").open("wb")
    daemon = subprocess.Popen([*command, str(workspace.root)], stdout=log, stderr=log)
    try:
        return _table(Client(workspace.socket), workspace, rounds, card, idle=wanted.idle)
    except BaseException:
        print((workspace.root / "daemon.out").read_text()[-4000:])
        for path in workspace.logs.rglob("trainer*"):
            print(path, path.read_text()[-3000:])
        raise
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(Patience.limit_s)


class Watch:
    """Looks at the status every few milliseconds; `end` says how long each phase lasted."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen: list[tuple[float, str]] = [(time.monotonic(), "the version is proven")]
        self._before = client.get("/v1/status")["training"]["trainer_pid"]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.04):
            try:
                training = self._client.get("/v1/status")["training"]
            except TrainerTuiError:
                continue
            phase = self._name(training["trainer_pid"], training)
            if phase and phase != self._seen[-1][1]:
                self._seen.append((time.monotonic(), phase))

    def _name(self, pid: int | None, training: dict[str, Any]) -> str:
        if pid is None:
            return "committed again, as a checkpoint"
        if pid == self._before:
            stopping = training["state"] in ("saving", "stopping")
            return "the old trainer saves and ends" if stopping else ""
        return f"the new trainer: {training['phase']}" if training["phase"] else ""

    def end(self) -> dict[str, float]:
        self._ended.set()
        self._thread.join()
        self._seen.append((time.monotonic(), ""))
        lasted: dict[str, float] = {}
        for (from_s, phase), (to_s, _) in itertools.pairwise(self._seen):
            lasted[phase] = lasted.get(phase, 0.0) + to_s - from_s
        return lasted


def _card() -> str:
    """Name of the GPU, empty without one."""
    program = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(program, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.splitlines()[0].strip()


def _write_speed(workspace: Workspace) -> float:
    """GB/s of one large file, written and fsynced: what a save cannot be faster than."""
    path, chunk = workspace.root / "written", os.urandom(64 << 20)
    started_s = time.monotonic()
    with path.open("wb") as stream:
        for _ in range(16):
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    took_s = time.monotonic() - started_s
    path.unlink()
    return 16 * len(chunk) / took_s / 1e9


def _table(client: Client, workspace: Workspace, rounds: int, card: str, *, idle: bool) -> str:
    def step() -> int:
        try:
            training = client.get("/v1/status")["training"]
            if training["state"] == "degraded":
                raise SystemExit(f"training was given up: {training['reason']}")
            return int(training["global_step"] or 0)
        except TrainerTuiError:
            return 0  # it is starting

    def further(than: int) -> int:
        told_s = time.monotonic()

        def there() -> int:
            nonlocal told_s
            now = step()
            if time.monotonic() - told_s > 10:  # a first start compiles for a while: say so
                told_s = time.monotonic()
                training = client.get("/v1/status")["training"]
                seen = ("state", "reason", "phase", "phase_age_s", "global_step")
                print({name: training[name] for name in seen}, flush=True)
            return now if now > than else 0

        return int(wait_for(there))

    def settled() -> bool:
        training = client.get("/v1/status")["training"]
        return training["state"] == "idle" and not training["unsaved_steps"]

    created, replied, stepping, per_step = [], [], [], []
    phases: list[dict[str, float]] = []
    for number in range(1, rounds + 1):
        at = step() if idle and number > 1 else further(further(step()))
        if idle:
            wait_for(settled)
        started_s = time.monotonic()
        client.post("/v1/versions", {"description": f"round {number}"})
        created.append(time.monotonic() - started_s)
        print(f"round {number}: version made in {created[-1]:.1f} s", flush=True)
        at = step()
        started_s = time.monotonic()
        reached = at + 1 if idle else further(at)
        per_step.append((time.monotonic() - started_s) / (reached - at))
        watch = Watch(client)
        started_s = time.monotonic()
        restored = client.post(f"/v1/versions/{number}/restore")["restored"]
        replied.append(time.monotonic() - started_s)
        if idle:
            client.post("/v1/jobs/1/again")
        further(restored["global_step"])
        stepping.append(time.monotonic() - started_s)
        phases.append(watch.end())
        told = ", ".join(f"{name} {lasted:.1f}" for name, lasted in phases[-1].items())
        print(f"round {number}: {stepping[-1]:.1f} s ({told})", flush=True)
    folder = workspace.current_model / restored["checkpoint"]
    sizes = {path.name: path.stat().st_size / 1e6 for path in folder.glob("*.safetensors")}
    size = ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in sorted(sizes.items()))
    argv = " ".join(sys.argv[1:])
    rows = [
        ("version made (unsaved steps saved first, whole look at the validation set)", created),
        ("restore: wish to reply (proven, trainer saved and gone, committed)", replied),
        ("restore: wish to the first new step", stepping),
        *([] if idle else [("one training step", per_step)]),
    ]
    names = dict.fromkeys(name for lasted in phases for name in lasted)
    for name in names:
        rows.append((f"· {name}", [lasted.get(name, 0.0) for lasted in phases]))
    lines = [
        "# Going back: from the wish to the first new step",
        "",
        f"`python -m benchmarks.versions_restore {argv}`, {datetime.now(UTC):%Y-%m-%d},"
        f" {os.cpu_count()} cores, {card or 'no GPU'}, Python {platform.python_version()}. {size}."
        f" Plain writing with fsync: {_write_speed(workspace):.2f} GB/s."
        f" Load average {os.getloadavg()[1]:.1f}: other work slows all alike.",
        "",
        "| what | median | worst |",
        "|---|---|---|",
        *(f"| {name} | {statistics.median(s):.2f} s | {max(s):.2f} s |" for name, s in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
