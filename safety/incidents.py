"""Keeping an incident: what went wrong, the evidence and what was done, in a folder of its own
below `state/incidents/`. Whoever meets one writes it, the daemon or the trainer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from trainer_tui.safety import durable

INCIDENT_NAME = "incident.json"
log = logging.getLogger("incidents")


def keep(folder: Path, document: Mapping[str, Any]) -> None:
    """Write `document` into `folder`, which may hold evidence already. Blocks; a failure is logged:
    an incident must not make another one."""
    try:
        durable.make_directory(folder)
        data = msgspec.json.format(msgspec.json.encode(document), indent=1)
        durable.replace(folder / INCIDENT_NAME, data)
    except OSError as problem:
        log.error("the incident was not kept: %s", problem)
