"""The first function of the trainer process: set up, train, and say why when it cannot go on.

Exit codes: 0 after `Stopping` (or the daemon's death, everything committed), 1 after `Failed`.
torch is imported inside, so that a refusal before it costs nothing and importing this is cheap.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import os
import signal
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trainer_tui.engine import deaths, step_mark
from trainer_tui.engine.aside import wait_for_lock
from trainer_tui.engine.control import Control
from trainer_tui.safety import clock, durable, locks, logs
from trainer_tui.safety.config import Config
from trainer_tui.safety.errors import Corrupt, Locked, TrainerTuiError
from trainer_tui.safety.heartbeat import HeartbeatWriter, Phase
from trainer_tui.safety.messages import Failed, Stopping, TrainerSpec
from trainer_tui.safety.workspace import Workspace

if TYPE_CHECKING:
    from trainer_tui.engine.trainer import Trainer

log = logging.getLogger("trainer")

STACK_CHARACTERS = 8000


def run(connection: Connection, spec_bytes: bytes) -> int:
    """The trainer, from birth to exit code."""
    spec = msgspec.msgpack.decode(spec_bytes, type=TrainerSpec)
    workspace = Workspace(Path(spec.workspace))
    logs.set_up(workspace.logs, "trainer", console=False)
    # The daemon asks a wedged trainer for its stacks with SIGUSR1; works while the GIL is held.
    faulthandler.enable(all_threads=True)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    heart = HeartbeatWriter(Path(spec.heartbeat))
    heart.beat(Phase.START)
    control = Control(connection)
    signal.signal(signal.SIGTERM, lambda number, frame: control.raise_stop())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    life = _Life(spec, workspace, control, heart)
    try:
        life.live()
        return 0
    except Exception as problem:  # noqa: BLE001 - the process's edge: logged and reported
        life.report(problem)
        return 1
    finally:
        heart.beat(Phase.SHUTDOWN)
        life.close()
        control.close()


class _Life:
    def __init__(
        self,
        spec: TrainerSpec,
        workspace: Workspace,
        control: Control,
        heart: HeartbeatWriter,
    ) -> None:
        self._spec = spec
        self._workspace = workspace
        self._control = control
        self._heart = heart
        self._trainer: Trainer | None = None

    def live(self) -> None:
        config = Config.model_validate(self._spec.config)
        _before_torch(config, self._workspace)
        lock = _take_lock(self._workspace, self._control)
        if lock is None:
            self._control.say(Stopping(0, "stopped before it began"))
            return
        lock.write_owner(f"trainer {os.getpid()} of run {self._spec.run_id}")
        self._heart.beat(Phase.IMPORT)
        deaths.look_back(self._workspace, self._spec, self._control, self._heart)
        from trainer_tui.engine.trainer import Trainer

        self._heart.beat(Phase.LOAD)
        self._trainer = Trainer(self._workspace, config, self._control, self._heart, lock)
        self._trainer.train()

    def report(self, problem: Exception) -> None:
        """Say `Failed`, and leave `error.json` for when nobody hears it."""
        error_class, message, hint = describe(problem)
        trainer = self._trainer
        if error_class == "cuda_sticky" and trainer is not None and trainer.job_in_hand:
            step_mark.blame_last(self._workspace)
        log.error("%s: %s", error_class, message, exc_info=problem)
        stack = "".join(traceback.format_exception(problem))[-STACK_CHARACTERS:]
        failed = Failed(
            error_class=error_class,
            message=message,
            hint=hint,
            phase=self._heart.phase.label,
            global_step=trainer.global_step if trainer else 0,
            job_id=trainer.job_in_hand if trainer else 0,
            stack=stack,
        )
        self._control.say(failed)
        rows = trainer.rows_in_hand if trainer else []
        fields = {**msgspec.to_builtins(failed), "at": clock.now_iso(), "rows": rows}
        folder = self._workspace.incidents / self._spec.run_id
        with contextlib.suppress(OSError):  # the disk may be the very problem
            durable.make_directory(folder)
            durable.replace(folder / "error.json", msgspec.json.encode(fields))

    def close(self) -> None:
        if self._trainer is not None:
            self._trainer.close()


def _before_torch(config: Config, workspace: Workspace) -> None:
    """Settings that torch reads when it is imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(workspace.cache / "inductor"))
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if config.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


def _take_lock(workspace: Workspace, control: Control) -> locks.Lock | None:
    """The `.writer` lock: a writer of the last trainer may still be committing.

    Raises:
        Locked: it is held too long.
    """
    durable.make_directory(workspace.current_model)
    durable.make_directory(workspace.ledger)
    path = workspace.writer_lock
    return wait_for_lock(lambda: locks.acquire(path), path, control)


def describe(problem: Exception) -> tuple[str, str, str]:
    """(error class, sentence, hint) of what ended the trainer; classes as in `safety.crash`."""
    error_class = str(getattr(problem, "error_class", ""))
    if error_class:
        return error_class, str(problem), str(getattr(problem, "hint", ""))
    match problem:
        case Corrupt():
            return "checkpoint_corrupt", problem.message, problem.hint
        case Locked():
            return "unknown", problem.message, problem.hint
        case TrainerTuiError():
            return "config", problem.message, problem.hint
        case MemoryError():
            return "host_oom", "this machine has no memory left", ""
        case OSError():
            return _of_os_error(problem), str(problem), ""
    name, text = type(problem).__name__, str(problem).strip() or type(problem).__name__
    if name in ("OutOfMemoryError", "UpdateInterrupted"):
        return "cuda_oom", text.splitlines()[0], "set micro_batch_tokens lower"
    if "CUDA error" in text or name == "AcceleratorError":
        return "cuda_sticky", text.splitlines()[0], "a new process gets a new GPU context"
    return "code_bug", f"{name}: {text.splitlines()[0]}", "please report it with its stack"


def _of_os_error(problem: OSError) -> str:
    match problem.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "disk_full"
        case errno.EROFS:
            return "read_only"
        case errno.EIO:
            return "io_error"
        case _:
            return "code_bug"
