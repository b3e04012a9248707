"""What the parts of the loop share: the model, where training stands, and the two ends of the pipe.

Invariant: `progress` belongs to the live weights at every step boundary. While updates are being
skipped for a NaN, `last_good` is the boundary before the first of them: the weights are still
those, so that is what a commit then writes down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer_tui.engine import rng
from trainer_tui.engine.checkpoint import Committer
from trainer_tui.engine.control import Control
from trainer_tui.engine.feed import Pinned
from trainer_tui.engine.incidents import Watch
from trainer_tui.engine.loading import Loaded
from trainer_tui.engine.metrics import Meter
from trainer_tui.engine.progress import Progress
from trainer_tui.engine.schedule import Schedule
from trainer_tui.engine.step import Stepper
from trainer_tui.safety.config import Config
from trainer_tui.safety.errors import Corrupt
from trainer_tui.safety.heartbeat import HeartbeatWriter
from trainer_tui.safety.locks import Lock
from trainer_tui.safety.manifest import Cursor
from trainer_tui.safety.messages import Said, Train
from trainer_tui.safety.workspace import Workspace

STATE_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Boundary:
    """A step boundary: everything that makes it resumable besides the tensors."""

    progress: Progress
    rng: dict[str, str]
    watch: Watch


@dataclass(slots=True)
class Session:
    """One trainer's life. `saved_step`: global step of the newest commit. `lock`: on the model on
    disk; nothing is committed without it."""

    workspace: Workspace
    config: Config
    device: torch.device
    loaded: Loaded
    control: Control
    heart: HeartbeatWriter
    stepper: Stepper
    committer: Committer
    meter: Meter
    progress: Progress
    watch: Watch
    saved_step: int
    lock: Lock
    pinned: dict[int, Pinned] = field(default_factory=dict)
    last_good: Boundary | None = None
    read_late_figures: Callable[[], None] = lambda: None

    def boundary(self) -> Boundary:
        return Boundary(self.progress, rng.capture(self.device), self.watch)

    def state_of(self, boundary: Boundary) -> dict[str, Any]:
        """The content of `trainer_state.json`."""
        started = {cursor.job_id for cursor in boundary.progress.cursors}
        return {
            "format": STATE_FORMAT,
            "torch": torch.__version__,
            "device": self.device.type,
            "precision": self.loaded.precision.name,
            "rng": boundary.rng,
            "watch": boundary.watch.as_dict(),
            "pinned": {str(j): p.as_dict() for j, p in self.pinned.items() if j in started},
        }

    def started(self, train: Train) -> tuple[Cursor | None, Pinned | None]:
        """Where this file was left and the options it was started with; None for what is new. One
        that was queued once more goes on where the state that a restore brought back left it."""
        if self.progress.cursor_of(train.job_id) is None:
            for left in self.progress.cursors:
                if left.file_sha256 == train.file_sha256 and left.job_id not in train.others:
                    self.progress = self.progress.renamed(left.job_id, train.job_id)
                    if left.job_id in self.pinned:
                        self.pinned[train.job_id] = self.pinned[left.job_id]
                    break
        return self.progress.cursor_of(train.job_id), self.pinned.get(train.job_id)

    def adopt(self, loaded: Loaded) -> None:
        """Go on from another state, which the live tensors hold by now. Raises Corrupt."""
        self.loaded, self.progress = loaded, loaded.progress
        self.saved_step = self.heart.global_step = loaded.progress.global_step
        self.watch, self.pinned, self.last_good = Watch(), {}, None
        self.read_late_figures = lambda: None
        self.meter.interrupted()
        self.adopt_state(loaded.state)

    def adopt_state(self, state: dict[str, Any]) -> None:
        """Take up what `state_of` wrote; nothing to take up after a weights-only restore."""
        if "watch" in state:
            self.watch = Watch.from_dict(state["watch"])
        try:
            pinned = state.get("pinned", {})
            self.pinned = {int(job): Pinned.from_dict(values) for job, values in pinned.items()}
        except (TypeError, KeyError, ValueError) as problem:
            raise Corrupt(
                f"the options of a started file cannot be read: {problem}",
                "go on with the version of trainer-tui that started the file",
            ) from None

    @property
    def schedule(self) -> Schedule:
        config, progress = self.config, self.progress
        return Schedule(
            base=config.learning_rate,
            shape=config.schedule,
            warmup_steps=config.warmup_steps,
            warmup_origin=progress.warmup_origin,
            factor=progress.lr_factor,
            cool_down=progress.cool_down,
        )

    def tell(self, level: str, topic: str, text: str, **data: Any) -> None:
        self.control.say(Said(level, topic, text, data))

    def reconfigure(self, values: dict[str, Any]) -> None:
        """Live keys, and two that are no settings: `lr_factor` and `cool_down_steps` (0: none)."""
        from trainer_tui.engine.schedule import CoolDown

        values = dict(values)
        if "lr_factor" in values:
            factor = float(values.pop("lr_factor"))
            self.progress = dataclasses.replace(self.progress, lr_factor=factor)
            if self.last_good is not None:  # what is committed next, when figures come late
                good = dataclasses.replace(self.last_good.progress, lr_factor=factor)
                self.last_good = dataclasses.replace(self.last_good, progress=good)
        if "cool_down_steps" in values:
            steps = int(values.pop("cool_down_steps"))
            cool_down = CoolDown(self.progress.global_step, steps) if steps > 0 else None
            self.progress = dataclasses.replace(self.progress, cool_down=cool_down)
        known = {k: v for k, v in values.items() if k in Config.model_fields}
        self.config = Config.model_validate({**self.config.model_dump(), **known})
