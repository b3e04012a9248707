"""The hunting process, and its trials with the traps of `trap.json`."""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from pathlib import Path

from trainer_tui.engine import hunt

hunt.TRIAL_ENTRY = "trap_trial"


def run(connection: Connection, spec: bytes) -> int:
    traps = json.loads((Path(json.loads(spec)["workspace"]) / "trap.json").read_text())
    hunt.TRIAL_LIMIT_S = traps.get("trial_limit_s", hunt.TRIAL_LIMIT_S)
    if traps.get("quick_hunt"):
        hunt.METHOD = "fork"
    return hunt.run(connection, spec)
