"""Versions for the daemon: made when asked or by themselves; restored while no trainer runs.

Invariant: one change at a time; what can be refused is refused before the trainer is stopped, so a
refusal leaves training running.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from trainer_tui.daemon.bus import Bus
from trainer_tui.daemon.completed import Committed
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.training import Training
from trainer_tui.safety import checkpoints, messages
from trainer_tui.safety.errors import Corrupt, Refused, TrainerTuiError
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions import automatic, keeping
from trainer_tui.versions.backup import Backup
from trainer_tui.versions.store import VersionStore

T = TypeVar("T")
log = logging.getLogger("daemon")
STOP_TIMEOUT_S = 900.0
SAVE_TIMEOUT_S = 900.0
WRITER_WAIT_S = 60.0


class Keeper:
    """Public methods run on the event loop; the store works on a thread of its own."""

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        training: Training,
        bus: Bus,
        teller: Teller,
    ) -> None:
        self._workspace, self._settings, self._training = workspace, settings, training
        self._bus, self._teller = bus, teller
        self._store = VersionStore(workspace)
        self._thread = ThreadPoolExecutor(1, "versions")
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._looked_after = ""
        self._backing_up = False
        self._closing = False
        self.latest: int | None = None
        training.after_commit.append(self._committed)

    async def ask(self, question: Callable[[VersionStore], T]) -> T:
        """Run it on the versions' thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: question(self._store))

    async def refresh(self) -> None:
        """Find out what the latest version is."""
        document = await self.ask(lambda store: store.as_dict())
        self.latest = document["latest"]

    async def create(self, description: str) -> dict[str, Any]:
        """A version of the state now; unsaved steps are committed first.

        Raises:
            Refused: nothing was ever committed, or the trainer did not commit.
        """
        async with self._changing:
            await save_now(self._training, SAVE_TIMEOUT_S, evaluate_whole=True)
            folder = self._newest_folder()
            version = await self.ask(lambda store: store.create(folder, description))
            await self._changed(f"{version.name} was made at step {version.global_step}")
            return version.as_dict()

    async def restore(self, number: int, *, weights_only: bool = False) -> dict[str, Any]:
        """Commit a version again as the newest state.

        Raises:
            NotFound, Corrupt, Refused: training goes on as it was.
        """
        async with self._changing:
            return await self._restore(number, weights_only, "restore")

    async def rollback(self, *, weights_only: bool = False) -> dict[str, Any]:
        """Restore the version before the current state. Raises as `restore`."""
        async with self._changing:
            target = await self.ask(lambda store: store.rollback_target())
            return await self._restore(target.number, weights_only, "rollback")

    async def _restore(self, number: int, weights_only: bool, reason: str) -> dict[str, Any]:
        proof = await self.ask(lambda store: store.verify(number))
        if not proof.ok:
            raise Corrupt(f"{proof.name} is damaged: {proof.problem}", "choose another version")
        async with self._training.without_trainer(STOP_TIMEOUT_S):
            restored = await self.ask(
                lambda store: store.restore(
                    number, weights_only=weights_only, wait_s=WRITER_WAIT_S, reason=reason
                )
            )
            self._training.figures.saved_step = None  # read again from the new checkpoint
            await self._training.collect(quick=False)
        await self._changed(f"{proof.name} was restored as {restored.checkpoint}")
        return restored.as_dict()

    async def change(self, question: Callable[[VersionStore], T], said: str) -> T:
        """Pin, unpin, delete, undelete: then everyone is told."""
        async with self._changing:
            answer = await self.ask(question)
            await self._changed(said)
            return answer

    async def _changed(self, text: str) -> None:
        await self.refresh()
        self._teller.say("info", "version", text, latest=self.latest)
        self._bus.publish("versions", {"latest": self.latest})
        self._back_up_soon()

    # --- the second location ---------------------------------------------------------------------

    def _back_up_soon(self) -> None:
        """One copying at a time; a change meanwhile is seen by its next look."""
        location = self._settings.config.versioning.second_location
        if location and not self._backing_up:
            self._backing_up = True
            self._start(self._back_up(Path(location)))

    async def _back_up(self, location: Path) -> None:
        backup = Backup(self._workspace, location)
        try:
            done = await asyncio.to_thread(backup.run, None, lambda: self._closing)
        except (TrainerTuiError, OSError) as problem:
            self._teller.say("error", "backup", f"versions were not copied: {problem}")
            return
        finally:
            self._backing_up = False
        for problem_text in done.problems:
            self._teller.say("warning", "backup", problem_text)
        if done.copied:
            self._teller.say("info", "backup", f"copied to {location}: {', '.join(done.copied)}")

    def _newest_folder(self) -> Path:
        folders = checkpoints.list_folders(self._workspace.current_model)
        if not folders:
            raise Refused(
                "nothing has been trained yet, so there is nothing to keep",
                "put a .jsonl file into inbox/ first",
            )
        return folders[0]

    # --- by themselves ---------------------------------------------------------------------------

    def _committed(self, committed: Committed, done: list[int]) -> None:
        """Called after every look at the newest commit, on the loop: the work is a task."""
        if committed.folder != self._looked_after:
            self._looked_after = committed.folder
            self._start(self._look_after(committed))

    async def _look_after(self, committed: Committed) -> None:
        """Make the version that is due, then let go of what is beyond retention."""
        try:
            async with self._changing:
                await self._make_due(committed)
                config = self._settings.config
                gone = await self.ask(lambda _: keeping.apply(self._workspace, config))
        except (TrainerTuiError, OSError) as problem:
            self._teller.say("warning", "version", f"versions were not looked after: {problem}")
            return
        for entry in gone:
            text = f"{entry.path.name}: {entry.action} ({entry.why})"
            self._teller.say("info", "retention", text, **entry.as_dict())

    async def _make_due(self, committed: Committed) -> None:
        policy = self._settings.config.versioning
        folder = self._workspace.current_model / committed.folder

        def make(store: VersionStore) -> str | None:
            description = automatic.due(committed.manifest, store.list(), policy)
            if description is None or not folder.is_dir():
                return None
            return f"{store.create(folder, description, automatic=True).name}: {description}"

        made = await self.ask(make)
        if made is not None:
            await self._changed(made)

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Let what was begun come to its end."""
        self._closing = True
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=10)
        self._thread.shutdown(wait=True, cancel_futures=True)


async def save_now(training: Training, timeout_s: float, *, evaluate_whole: bool = False) -> bool:
    """Have every step that is done by now committed; False when all were.

    `evaluate_whole`: with the loss of the whole validation set, also when all were.

    Raises:
        Refused: the trainer ended, or did not commit in time.
    """
    trainer = training.trainer
    done_step = training.step_of_now()
    if trainer is None:
        return False
    if training.saved(done_step):
        nothing_to_measure = training.step_of_now() == 0 or not training.present.ready
        if not evaluate_whole or nothing_to_measure:
            return False
    answered = training.saves_answered
    training.send(messages.SaveNow(evaluate_whole))

    def saved() -> bool:
        heard = training.saves_answered > answered or not evaluate_whole
        return heard and training.saved(done_step)

    in_time = await training.until(lambda: saved() or training.trainer is not trainer, timeout_s)
    if training.saved(done_step):
        return True
    if in_time:
        raise Refused("the trainer ended before it had saved", "trainer-tui status")
    raise Refused(f"the trainer did not save within {timeout_s:.0f} s")
