"""Plays the daemon's side of the pipe with a real trainer process: for tests of the engine alone.

Jobs are folders in `processing/`; a job leaves for `recently_completed/` only when the ledger of a
committed manifest lists it, as with the real daemon.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from trainer_tui.safety import checkpoints, child, manifest, messages
from trainer_tui.safety.config import Config
from trainer_tui.safety.errors import Corrupt
from trainer_tui.safety.messages import (
    Committed,
    Evaluated,
    JobRefused,
    JobTrained,
    NothingWaits,
    StepDone,
    Train,
    TrainerSpec,
    WantJob,
)
from trainer_tui.safety.pipe import PipeEnd
from trainer_tui.safety.workspace import Workspace

T = TypeVar("T")
DEADLINE_S = 60.0
ENTRY = "trainer_tui.engine.entry"


class Halt(NamedTuple):
    """Where a trainer (then `trap`) stands still: having told the first message of this kind with
    this global step or a later one, until so many requests have reached it. So what a test asks at
    a step comes there, however late the test is."""

    kind: type[StepDone] | type[Committed] | type[Evaluated]
    step: int = 1
    requests: int = 1


SMALL: dict[str, Any] = {
    "tokens_per_step": 256,
    "pack_tokens": 256,
    "max_length": 256,
    "warmup_steps": 5,
    "learning_rate": 3e-3,
    "eval_steps": 1000,
    "save_steps": 1000,
    "min_save_interval_s": 0.0,
    "validation": {"rows": 0, "holdout_rows": 0, "holdout_share": 0.0},
}


def make_workspace(root: Path, model: Path) -> Workspace:
    """A workspace whose base model is `model`."""
    workspace = Workspace(root)
    root.mkdir(parents=True)
    (root / "config.toml").write_text("")
    workspace.prepare()
    shutil.copytree(model, workspace.models / "base")
    return workspace


def toy_rows(count: int, seed: int) -> list[str]:
    """`count` small different rows."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        a, b = rng.randrange(50), rng.randrange(50)
        words = " ".join(rng.choice(["red", "cat", "sun", "map"]) for _ in range(rng.randrange(12)))
        turns = [
            {"role": "user", "content": f"{seed}-{number}: {words} {a} + {b}?"},
            {"role": "assistant", "content": f"It is {a + b}. {words}"},
        ]
        rows.append(json.dumps({"messages": turns}))
    return rows


@contextlib.contextmanager
def drivers(root: Path, model: Path) -> Iterator[Callable[..., Driver]]:
    """Makes workspaces with this model and a driver for each; ends what is left over."""
    made: list[Driver] = []

    def make(name: str = "ws", **config: object) -> Driver:
        made.append(Driver(make_workspace(root / name, model), config))
        return made[-1]

    yield make
    for driver in made:
        driver.end()


class Driver:
    """One workspace; `start` as often as you like. `offer_jobs`: answer WantJob by itself."""

    def __init__(self, workspace: Workspace, config: dict[str, Any]) -> None:
        self.workspace = workspace
        self.config = Config.model_validate(SMALL | config)
        self.jobs: list[Train] = []
        self.seen: list[messages.FromTrainer] = []
        self.offer_jobs = True
        self.method = "forkserver"
        self.on_message: Callable[[messages.FromTrainer], None] = lambda message: None
        self.process: Any = None
        self._answered: set[int] = set()
        self._changed = threading.Condition()
        self._pipe: PipeEnd | None = None
        self._closed = False
        self._runs = 0

    # --- jobs ------------------------------------------------------------------------------------

    def add_job(self, rows: Sequence[str], name: str = "") -> Train:
        number = len(self.jobs) + 1
        name = name or f"file{number}.jsonl"
        folder = self.workspace.queue / "processing" / f"{number:020d}-{number}-{name}"
        folder.mkdir()
        data = ("\n".join(rows) + "\n").encode()
        (folder / "data.jsonl").write_bytes(data)
        job = Train(number, name, str(folder), hashlib.sha256(data).hexdigest())
        self.jobs.append(job)
        return job

    def in_processing(self) -> list[Train]:
        return [job for job in self.jobs if Path(job.folder).is_dir()]

    def collect(self) -> None:
        """What the daemon does after a commit: move what the ledger on disk lists."""
        try:
            listed = self.ledger_ids()
        except Corrupt:
            return  # the daemon tells people; nothing moves
        for job in self.in_processing():
            if job.job_id in listed:
                folder = Path(job.folder)
                folder.rename(self.workspace.queue / "recently_completed" / folder.name)

    # --- what is on disk -------------------------------------------------------------------------

    def newest(self) -> checkpoints.Newest | None:
        return checkpoints.newest_verified(self.workspace.current_model)

    def ledger(self) -> list[manifest.LedgerEntry]:
        newest = self.newest()
        if newest is None:
            return []
        head = newest.manifest.ledger
        return list(manifest.ledger_entries(self.workspace.ledger, head))

    def ledger_ids(self) -> set[int]:
        return {entry.job_id for entry in self.ledger()}

    def checkpoint_names(self) -> list[str]:
        return [p.name for p in checkpoints.list_folders(self.workspace.current_model)]

    def tensor_hash(self) -> str:
        """Over weights and optimizer of the newest checkpoint."""
        newest = self.newest()
        assert newest is not None
        digest = hashlib.sha256()
        for name in ("model.safetensors", "optimizer.safetensors"):
            digest.update((newest.folder / name).read_bytes())
        return digest.hexdigest()

    # --- the process -----------------------------------------------------------------------------

    def start(self, *, method: str = "", entry: str = ENTRY, halt: Halt | None = None) -> None:
        """`forkserver` forks from a process that has imported torch already: 0.1 s instead of 5.
        `spawn` is `safety.child.spawn`, as the daemon does it. Without one: `self.method`."""
        note = self.workspace.root / "halt.json"
        note.unlink(missing_ok=True)
        if halt is not None:
            entry = "trap"
            note.write_text(json.dumps({**halt._asdict(), "kind": halt.kind.__name__}))
        self._runs += 1
        self._closed = False
        self._answered.clear()
        self.seen = []
        spec = TrainerSpec(
            run_id=f"run{self._runs}",
            workspace=str(self.workspace.root),
            config=self.config.model_dump(mode="json"),
            heartbeat=str(self.workspace.state / "heartbeat"),
        )
        ours, theirs = multiprocessing.Pipe()
        output = self.workspace.logs / "trainer.out"
        raw = msgspec.msgpack.encode(spec)
        if (method or self.method) == "spawn":
            self.process = child.spawn(entry, theirs, raw, output, "trainer")
        else:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["trainer_tui.engine.trainer", "preloaded"])
            self.process = context.Process(
                target=child._first, args=(entry, theirs, raw, str(output)), name="trainer"
            )
            self.process.start()
        theirs.close()
        run = self._runs
        self._pipe = PipeEnd(
            ours,
            lambda frame: self._on_frame(frame) if run == self._runs else None,
            lambda: self._on_close() if run == self._runs else None,
            "driver",
        )
        self._pipe.start()

    def _on_frame(self, frame: bytes) -> None:
        message = messages.decode_from_trainer(frame)
        if isinstance(message, Committed):
            self.collect()
        elif isinstance(message, JobTrained | JobRefused):
            self._answered.add(message.job_id)
        self.on_message(message)
        if isinstance(message, WantJob) and self.offer_jobs:
            self.answer()
        with self._changed:
            self.seen.append(message)
            self._changed.notify_all()

    def answer(self) -> None:
        waiting = [job for job in self.in_processing() if job.job_id not in self._answered]
        self.send(waiting[0] if waiting else NothingWaits())

    def _on_close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def send(self, message: messages.ToTrainer) -> None:
        assert self._pipe is not None
        self._pipe.send(messages.encode(message))

    def wait_for(
        self, kind: type[T], test: Callable[[T], bool] = lambda m: True, *, after: int = 0
    ) -> T:
        """The first message of a kind that passes the test; from the `after`th message on."""

        def find() -> T | None:
            hits = [m for m in self.seen[after:] if isinstance(m, kind) and test(m)]
            return hits[0] if hits else None

        with self._changed:
            self._changed.wait_for(lambda: find() is not None or self._closed, DEADLINE_S)
            found = find()
        if found is None:
            raise AssertionError(f"no {kind.__name__} came; seen: {self.seen[-5:]}\n{self.log()}")
        return found

    def all_of(self, kind: type[T]) -> list[T]:
        return [message for message in self.seen if isinstance(message, kind)]

    def steps(self) -> list[StepDone]:
        return self.all_of(StepDone)

    def run_until_done(self, **how: Any) -> None:
        """Start, train everything in `processing/`, stop."""
        self.start(**how)
        self.wait_all_done()
        self.stop()

    def wait_all_done(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        with self._changed:
            while self.in_processing():
                left = deadline - time.monotonic()
                assert left > 0, f"not done: {self.seen[-5:]}\n{self.log()}"
                assert not self._closed, f"the trainer ended: {self.seen[-5:]}\n{self.log()}"
                self._changed.wait(min(left, 0.2))

    def wait_for_end_or_done(self) -> None:
        """Until everything in `processing/` is done, or the trainer ended."""
        deadline = time.monotonic() + DEADLINE_S
        while self.in_processing() and self.process.exitcode is None:
            assert time.monotonic() < deadline, f"not done: {self.seen[-5:]}\n{self.log()}"
            self.process.join(0.05)

    def stop(self) -> int:
        self.send(messages.Stop())
        return self.wait_end()

    def wait_end(self) -> int:
        self.process.join(DEADLINE_S)
        assert self.process.exitcode is not None, "the trainer did not end"
        code = int(self.process.exitcode)
        with self._changed:
            self._changed.wait_for(lambda: self._closed, 5)
        self.collect()
        return code

    def kill(self) -> None:
        """SIGKILL to the trainer; its writer may go on and finish a commit."""
        self.process.kill()
        self.process.join()

    def kill_all(self) -> None:
        """SIGKILL to the trainer and its writer at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()

    def hang_up(self) -> None:
        """What the trainer sees when the daemon dies."""
        assert self._pipe is not None
        self._pipe.close()

    def end(self) -> None:
        if self.process is not None and self.process.is_alive():
            self.kill_all()
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.close()

    def log(self) -> str:
        texts = []
        for name in ("trainer.out", "trainer.log"):
            path = self.workspace.logs / name
            if path.exists():
                texts.append(path.read_text()[-3000:])
        return "\n".join(texts)
