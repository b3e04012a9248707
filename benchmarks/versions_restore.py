"""Going back with a real daemon and a real trainer: from the wish to the first new step.

    python -m benchmarks.versions_restore [--megabytes 300] [--rounds 3] [--folder DIR] [--write]

Random weights in a Qwen3 shape of about that size in float32 (0: the toy model). Each round makes
a version, trains on, restores it, and waits for the first step after it. `--write` keeps the
table in results/versions_restore.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer_tui.safety.errors import TrainerTuiError
from trainer_tui.safety.workspace import Workspace
from trainer_tui.tui.client import Client

PATIENCE_S = 600.0
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 768, 2304, 12, 4, 64
LAYER_BYTES = 4 * HIDDEN * (2 * HEADS * HEAD_DIM + 2 * KV_HEADS * HEAD_DIM + 3 * INTERMEDIATE)
SETTINGS = """
max_length = 256
pack_tokens = 256
tokens_per_step = 256
warmup_steps = 2
eval_steps = 100000
save_steps = 100000
min_save_interval_s = 100000.0
[validation]
rows = 4
[versioning]
on_new_best = false
"""
ROWS = 6_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--write", action="store_true")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=wanted.folder, prefix="versions-restore-") as place:
        table = measure(Workspace(Path(place) / "ws"), wanted.megabytes, wanted.rounds)
    print(table)
    if wanted.write:
        (Path(__file__).parent / "results" / "versions_restore.md").write_text(table)


def build(folder: Path, megabytes: int) -> None:
    """The toy model's tokenizer; its weights, or random ones of the size asked for."""
    program = [sys.executable, "-m", "trainer_tui.engine.toy_model", "build", str(folder)]
    subprocess.run([*program, "--size", "demo"], check=True, stdout=subprocess.DEVNULL)
    if not megabytes:
        return
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    values = json.loads((folder / "config.json").read_text())
    values |= {
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "num_hidden_layers": max(1, megabytes * 1_000_000 // LAYER_BYTES), "layer_types": None,
    }  # fmt: skip
    torch.manual_seed(1)
    Qwen3ForCausalLM(Qwen3Config(**values)).save_pretrained(folder)


def wait_for(what: Callable[[], Any]) -> Any:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if found := what():
            return found
        time.sleep(0.02)
    raise SystemExit(f"not within {PATIENCE_S:.0f} s")


def measure(workspace: Workspace, megabytes: int, rounds: int) -> str:
    """Serve the workspace, go back `rounds` times, and return the table as Markdown."""
    workspace.root.mkdir()
    workspace.config_file.write_text(SETTINGS)
    workspace.prepare()
    build(workspace.models / "base", megabytes)
    rows = (
        {"messages": [{"role": "user", "content": f"question {i} " + "of words " * 3},
                      {"role": "assistant", "content": f"answer {i} " + "and so on " * 4}]}
        for i in range(ROWS)
    )  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (workspace.inbox / "long.jsonl").write_text(text)
    command = [sys.executable, "-P", "-m", "trainer_tui.daemon", "--workspace"]
    log = (workspace.root / "daemon.out").open("wb")
    daemon = subprocess.Popen([*command, str(workspace.root)], stdout=log, stderr=log)
    try:
        return _table(Client(workspace.socket), workspace, rounds)
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(PATIENCE_S)


def _table(client: Client, workspace: Workspace, rounds: int) -> str:
    def step() -> int:
        try:
            return int(client.get("/v1/status")["training"]["global_step"] or 0)
        except TrainerTuiError:
            return 0  # it is starting

    def further(than: int) -> int:
        return int(wait_for(lambda: (now := step()) > than and now))

    created, replied, stepping, per_step = [], [], [], []
    for number in range(1, rounds + 1):
        at = further(further(step()))
        started_s = time.monotonic()
        client.post("/v1/versions", {"description": f"round {number}"})
        created.append(time.monotonic() - started_s)
        at = step()
        started_s = time.monotonic()
        reached = further(at)
        per_step.append((time.monotonic() - started_s) / (reached - at))
        started_s = time.monotonic()
        restored = client.post(f"/v1/versions/{number}/restore")["restored"]
        replied.append(time.monotonic() - started_s)
        further(restored["global_step"])
        stepping.append(time.monotonic() - started_s)
    folder = workspace.current_model / restored["checkpoint"]
    sizes = {path.name: path.stat().st_size / 1e6 for path in folder.glob("*.safetensors")}
    size = ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in sorted(sizes.items()))
    argv = " ".join(sys.argv[1:])
    rows = [
        ("version made (unsaved steps saved first, whole look at the validation set)", created),
        ("restore: wish to reply (proven, trainer saved and gone, committed)", replied),
        ("restore: wish to the first new step", stepping),
        ("one training step", per_step),
    ]
    lines = [
        "# Going back: from the wish to the first new step",
        "",
        f"`python -m benchmarks.versions_restore {argv}`, {datetime.now(UTC):%Y-%m-%d},"
        f" {os.cpu_count()} cores, no GPU, Python {platform.python_version()}. {size}."
        f" Load average {os.getloadavg()[1]:.1f}: other work slows all alike.",
        "",
        "| what | median | worst |",
        "|---|---|---|",
        *(f"| {name} | {statistics.median(s):.2f} s | {max(s):.2f} s |" for name, s in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
