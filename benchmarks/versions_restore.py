"""Going back with a real daemon and a real trainer: from the wish to the first new step.

    python -m benchmarks.versions_restore [--megabytes 300] [--rounds 3] [--fresh] [--folder DIR]
        [--precision NAME] [--idle] [--write NAME]

Random weights in a Qwen3 shape of about that size in float32 (0: the toy model; 4000: one billion
parameters). Each round makes a version, trains on, restores it, and waits for the first step
after it. With `--idle` everything is trained and saved when the wish comes, so that no save is in
it, and a file is queued again for the first step. `--fresh`: each round in a workspace of its own,
which needs room for three checkpoints and not for a growing number. `--write` keeps the table in
results/NAME.md.
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
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer_tui.safety.errors import TrainerTuiError
from trainer_tui.safety.workspace import Workspace
from trainer_tui.tui.client import Client

LARGE_MEGABYTES = 2000
RESTORING = "a version is being restored"
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


@dataclass(slots=True)
class Taken:
    """Seconds, one of each for a round. `sizes`: of the restored checkpoint's large files."""

    created: list[float] = field(default_factory=list)
    replied: list[float] = field(default_factory=list)
    stepping: list[float] = field(default_factory=list)
    per_step: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)
    sizes: str = ""
    write_gb_per_s: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument(
        "--patience", type=float, default=Patience.limit_s, help="seconds for one step"
    )
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--fresh", action="store_true", help="a new workspace for each round")
    parser.add_argument("--idle", action="store_true", help="nothing is unsaved at the wish")
    parser.add_argument("--write", metavar="NAME", default="")
    wanted = parser.parse_args()
    Patience.limit_s = wanted.patience
    taken = Taken()
    for rounds in [1] * wanted.rounds if wanted.fresh else [wanted.rounds]:
        with tempfile.TemporaryDirectory(dir=wanted.folder, prefix="versions-restore-") as place:
            measure(Workspace(Path(place) / "ws"), wanted, rounds, taken)
    table = as_markdown(taken, _card())
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


def measure(workspace: Workspace, wanted: argparse.Namespace, rounds: int, taken: Taken) -> None:
    """Serve the workspace and go back so often."""
    card, megabytes = _card(), wanted.megabytes
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
    taken.write_gb_per_s = _write_speed(workspace)
    print(f"{megabytes} MB of random weights; plain writing {taken.write_gb_per_s:.2f} GB/s")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (workspace.inbox / "long.jsonl").write_text(text)
    command = [sys.executable, "-P", "-m", "trainer_tui.daemon", "--workspace"]
    log = (workspace.root / "daemon.out").open("wb")
    daemon = subprocess.Popen([*command, str(workspace.root)], stdout=log, stderr=log)
    try:
        _go_back(Client(workspace.socket), workspace, rounds, taken, idle=wanted.idle)
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
        self._seen: list[tuple[float, str]] = [(time.monotonic(), "asked")]
        self._before = client.get("/v1/status")["training"]["trainer_pid"]
        self._begun = False
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
        if training["reason"] == RESTORING:
            self._begun = True
            if training["state"] == "saving":
                return "proven, while the trainer saves"
            return "the step in hand ends; proven; committed again"
        if not self._begun or not training["phase"]:
            return ""
        same = "the same" if pid == self._before else "a new"
        return f"{same} trainer: {training['phase']}"

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


def _go_back(
    client: Client, workspace: Workspace, rounds: int, taken: Taken, *, idle: bool
) -> None:
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

    for number in range(1, rounds + 1):
        if not idle or number == 1:
            further(further(step()))
        if idle:
            wait_for(settled)
        started_s = time.monotonic()
        client.post("/v1/versions", {"description": f"round {number}"})
        taken.created.append(time.monotonic() - started_s)
        print(f"version made in {taken.created[-1]:.1f} s", flush=True)
        if not idle:
            at, started_s = step(), time.monotonic()
            steps = further(at) - at
            taken.per_step.append((time.monotonic() - started_s) / steps)
        watch = Watch(client)
        started_s = time.monotonic()
        restored = client.post(f"/v1/versions/{number}/restore")["restored"]
        taken.replied.append(time.monotonic() - started_s)
        if idle:
            client.post("/v1/jobs/1/again")
        further(restored["global_step"])
        taken.stepping.append(time.monotonic() - started_s)
        taken.phases.append(watch.end())
        told = ", ".join(f"{name} {lasted:.1f}" for name, lasted in taken.phases[-1].items())
        print(f"gone back in {taken.stepping[-1]:.1f} s ({told})", flush=True)
    folder = workspace.current_model / restored["checkpoint"]
    sizes = {path.name: path.stat().st_size / 1e6 for path in folder.glob("*.safetensors")}
    taken.sizes = ", ".join(f"{name} {size:.0f} MB" for name, size in sorted(sizes.items()))


def as_markdown(taken: Taken, card: str) -> str:
    """The table, with the command that made it."""
    argv = " ".join(sys.argv[1:])
    rows = [
        (
            "version made (unsaved steps saved first, whole look at the validation set)",
            taken.created,
        ),
        ("restore: wish to reply (proven, unsaved steps saved, committed)", taken.replied),
        ("restore: wish to the first new step", taken.stepping),
        *([("one training step", taken.per_step)] if taken.per_step else []),
    ]
    names = dict.fromkeys(name for lasted in taken.phases for name in lasted)
    for name in names:
        rows.append((f"· {name}", [lasted.get(name, 0.0) for lasted in taken.phases]))
    lines = [
        "# Going back: from the wish to the first new step",
        "",
        f"`python -m benchmarks.versions_restore {argv}`, {datetime.now(UTC):%Y-%m-%d},"
        f" {os.cpu_count()} cores, {card or 'no GPU'}, Python {platform.python_version()}."
        f" {taken.sizes}."
        f" Plain writing with fsync: {taken.write_gb_per_s:.2f} GB/s. {len(taken.stepping)} rounds."
        f" Load average {os.getloadavg()[1]:.1f}: other work slows all alike.",
        "",
        "| what | median | worst |",
        "|---|---|---|",
        *(f"| {name} | {statistics.median(s):.2f} s | {max(s):.2f} s |" for name, s in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
