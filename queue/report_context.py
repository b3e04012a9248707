"""What a data report is made against: config, template, validation set, what was trained before.

Everything is optional: without a workspace the defaults hold, without a model folder tokens are
not counted, and the report says so.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from trainer_tui.data.template import ChatTemplate
from trainer_tui.data.validation import ValidationSet
from trainer_tui.queue import check, trained
from trainer_tui.queue.report import Context
from trainer_tui.safety import config
from trainer_tui.safety.config import Config
from trainer_tui.safety.errors import DataProblem
from trainer_tui.safety.workspace import Workspace


def build(workspace: Workspace | None, settings: Config | None = None) -> Context:
    """Read what there is.

    Args:
        settings: in place of those in `config.toml`.

    Raises:
        ConfigProblem: `config.toml` cannot be used.
    """
    if workspace is None:
        return Context(Config(), None, ("no workspace: default settings, tokens not counted",))
    settings = settings or config.load(workspace.config_file)
    key = check.key_of(settings, workspace.root)  # before the rest: a change meanwhile shows
    folder = config.base_model_folder(settings, workspace.root)
    template, notes = load_template(folder)
    return Context(
        config=settings,
        template=template,
        template_notes=notes,
        validation=_validation_hashes(workspace.validation),
        trained=trained.load(workspace),
        tokens_per_s=_measured_speed(workspace.status_file),
        parameters=parameters_of(folder),
        key=key,
    )


def load_template(folder: Path) -> tuple[ChatTemplate | None, tuple[str, ...]]:
    """The template and its notes; None with the reason as a note when it cannot be used."""
    try:
        template = ChatTemplate.load(folder)
        return template, template.check().notes
    except DataProblem as problem:
        hint = f" ({problem.hint})" if problem.hint else ""
        return None, (f"{problem.message}{hint}",)


def _validation_hashes(folder: Path) -> frozenset[bytes]:
    found = ValidationSet.current(folder)
    return found.hashes if found is not None else frozenset()


def _measured_speed(status_file: Path) -> float | None:
    """Tokens per second that training reached when it last said so."""
    try:
        status = json.loads(status_file.read_bytes())
    except (OSError, ValueError):
        return None
    places = (status, status.get("training")) if isinstance(status, dict) else ()
    for place in places:
        speed = place.get("tokens_per_s") if isinstance(place, dict) else None
        if isinstance(speed, int | float) and speed > 0:
            return float(speed)
    return None


def parameters_of(folder: Path) -> int | None:
    """Parameters of a model folder, from the headers of its safetensors; None without any."""
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as stream:
                (size,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(min(size, 100 << 20)))
        except (OSError, ValueError, struct.error):
            return None
        for name, entry in header.items():
            if name != "__metadata__":
                count = 1
                for extent in entry.get("shape", ()):
                    count *= extent
                total += count
    return total or None
