"""Versions for the daemon: made when asked or by themselves; restored while the trainer lets go.

Invariant: one change at a time; a refusal leaves the trainer as it was, with the same process and
the same step. Looking never waits for a change: it has a thread of its own.
Retention's hashing gives way to whoever asks for a change, and to the end of the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trainer_tui.daemon import settling
from trainer_tui.daemon.after_restore import Asked, Settled
from trainer_tui.daemon.backups import Backups
from trainer_tui.daemon.bus import Bus
from trainer_tui.daemon.completed import Committed
from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.settling import Settling
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.training import Training
from trainer_tui.safety import checkpoints
from trainer_tui.safety.errors import Corrupt, Refused, TrainerTuiError
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions import automatic, emergency, keeping, records
from trainer_tui.versions.restoring import Restored
from trainer_tui.versions.store import VersionStore

T = TypeVar("T")
STOP_TIMEOUT_S = 900.0
SAVE_TIMEOUT_S = 900.0
WRITER_WAIT_S = 60.0
COMMITS_BEHIND = 64  # an older one that nobody got round to makes no version any more
COMMITS_BEFORE_RETENTION = 16
NOT_ASKED = Asked()


@dataclass(frozen=True, slots=True)
class GoneBack:
    """What a restore did, and what it meant for the queue."""

    restored: dict[str, Any]
    settled: Settled


class Keeper:
    """Public methods run on the event loop; the store works on threads of its own.

    `backups`: the second location. `settling`: restores and the queue. `latest`: number of the
    newest sound version.
    """

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        training: Training,
        desk: Desk,
        bus: Bus,
        teller: Teller,
    ) -> None:
        self._workspace, self._settings, self._training = workspace, settings, training
        self._bus, self._teller = bus, teller
        self._store = VersionStore(workspace)
        self._looking = ThreadPoolExecutor(1, "versions-look")
        self._working = ThreadPoolExecutor(1, "versions-change")
        self._lock = asyncio.Lock()
        self._wished = 0  # changes that someone waits for
        self._tasks: set[asyncio.Task[None]] = set()
        self._looked_after = ""
        self._looking_after = False
        self._behind: deque[Committed] = deque(maxlen=COMMITS_BEHIND)
        self._closing = False
        self.settling = Settling(workspace, training, desk, teller)
        self.backups = Backups(workspace, settings, teller, self._fetched)
        self.latest: int | None = None
        training.after_commit.append(self._committed)

    @property
    def in_use(self) -> Collection[str]:
        """Folders of versions and backups that are being restored; it changes by itself."""
        return self._store.in_use

    async def ask(self, question: Callable[[VersionStore], T]) -> T:
        """Look at something. It must change nothing."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._looking, lambda: question(self._store))

    async def _work(self, act: Callable[[VersionStore], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._working, lambda: act(self._store))

    @contextlib.asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """One change at a time; while one is wished for, retention hashes nothing more."""
        self._wished += 1
        try:
            async with self._lock:
                yield
        finally:
            self._wished -= 1

    def _give_way(self) -> bool:
        return self._closing or self._wished > 0

    async def refresh(self) -> None:
        """Find out what the latest version is."""
        document = await self.ask(lambda store: store.as_dict())
        self.latest = document["latest"]

    async def create(self, description: str) -> dict[str, Any]:
        """A version of the state now; unsaved steps are committed first.

        Raises:
            Refused: nothing was ever committed, or the trainer did not commit.
        """
        async with self._changing():
            await save_now(self._training, SAVE_TIMEOUT_S, evaluate_whole=True)
            folder = self._newest_folder()
            version = await self._work(lambda store: store.create(folder, description))
            await self._changed(f"{version.name} was made at step {version.global_step}")
            return version.as_dict()

    async def restore(
        self, number: int, asked: Asked = NOT_ASKED, *, weights_only: bool = False
    ) -> GoneBack:
        """Commit a version again as the newest state.

        Raises:
            NotFound, Corrupt, Refused: training goes on as it was.
        """
        async with self._changing():
            return await self._restore(number, weights_only, "restore", asked)

    async def rollback(
        self, number: int | None = None, asked: Asked = NOT_ASKED, *, weights_only: bool = False
    ) -> GoneBack:
        """Restore the version before the newest committed state, or `number`: the one a person was
        shown as that and said yes to, whatever has been committed since. Raises as `restore`."""
        async with self._changing():
            if number is None:
                number = (await self._work(lambda store: store.rollback_target())).number
            return await self._restore(number, weights_only, "rollback", asked)

    async def _restore(
        self, number: int, weights_only: bool, reason: str, asked: Asked
    ) -> GoneBack:
        def prove(store: VersionStore) -> None:
            if weights_only:
                store.verify_weights(number)
            elif not (proof := store.verify(number)).ok:
                raise Corrupt(f"{proof.name} is damaged: {proof.problem}", "choose another version")

        def restorable(store: VersionStore) -> str:
            return store.restorable(number, weights_only=weights_only).name

        return await self._go_back(
            await self._work(restorable),
            prove,
            lambda store: store.restore(
                number, weights_only=weights_only, wait_s=WRITER_WAIT_S, reason=reason
            ),
            asked,
        )

    async def restore_emergency(self, number: int, asked: Asked = NOT_ASKED) -> GoneBack:
        """Commit an emergency backup again as the newest state. Raises as `restore`."""
        async with self._changing():
            return await self._go_back(
                await self._work(lambda store: emergency.get(store.layout, number).name),
                lambda store: store.verify_emergency(number),
                lambda store: store.restore_emergency(number, wait_s=WRITER_WAIT_S),
                asked,
            )

    async def _go_back(
        self,
        name: str,
        prove: Callable[[VersionStore], object],
        act: Callable[[VersionStore], Restored],
        asked: Asked,
    ) -> GoneBack:
        """While it goes on, its source is not let go of, however short the disk is."""
        await self.settling.nothing_is_left()
        await self._work(lambda store: store.hold(name))
        try:
            return await self._restore_proven(prove, act, asked)
        finally:
            self._store.in_use.discard(name)

    async def _restore_proven(
        self,
        prove: Callable[[VersionStore], object],
        act: Callable[[VersionStore], Restored],
        asked: Asked,
    ) -> GoneBack:
        """The source is proven while the trainer commits what it has; when it is damaged, the
        trainer goes on at its next step. One that cannot go on in place ends only after the proof.
        """
        training = self._training
        await self._settings.look_again()
        warm = training.present.ready or training.present.reloads
        in_place = warm and not self._settings.new_trainer_would_differ()
        if not in_place:
            await self._work(prove)
        async with training.for_restoring(STOP_TIMEOUT_S, in_place=in_place) as model_is_free:
            if in_place:
                await self._work(prove)
            await model_is_free()
            await self.settling.note(asked)
            try:
                restored = await self._work(act)
            finally:  # before the trainer asks for its next file
                settled = await self.settling.settle()
            self._training.figures.leave_model()
            await self._training.collect(quick=False)
        await self._changed(f"{restored.source} was restored as {restored.checkpoint}")
        return GoneBack(restored.as_dict(), settled)

    async def finish_restores(self) -> None:
        """What a restore means for the queue, where a kill or the disk came in between. Ends by
        cancellation."""
        while True:
            if await self.settling.is_left():
                async with self._changing():
                    await self.settling.finish()
            await asyncio.sleep(settling.AGAIN_S)

    async def export(self, number: int, target: Path, *, with_optimizer: bool) -> Path:
        """Copy a version out; as long as that takes, everything else goes on.

        Raises:
            NotFound, Corrupt, Refused: nothing is left at the target.
        """
        if "\0" in str(target):
            raise Refused("a path cannot have a zero byte in it")
        store = self._store
        done = await asyncio.to_thread(store.export, number, target, with_optimizer=with_optimizer)
        self._teller.say("info", "version", f"version {number} was exported to {done}")
        return done

    async def change(self, question: Callable[[VersionStore], T], said: str) -> T:
        """Pin, unpin, delete, undelete: then everyone is told."""
        async with self._changing():
            answer = await self._work(question)
            await self._changed(said)
            return answer

    async def _changed(self, text: str) -> None:
        await self.refresh()
        self._teller.say("info", "version", text, latest=self.latest)
        self._bus.publish("versions", {"latest": self.latest})
        self.backups.soon()

    async def _fetched(self, number: int) -> None:
        await self._changed(f"version {number} was brought back from the second location")

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
        if committed.folder == self._looked_after:
            return
        self._looked_after = committed.folder
        self._behind.append(committed)
        if not self._looking_after:
            self._looking_after = True
            self._start(self._look_after())

    async def _look_after(self) -> None:
        """Make the versions that are due, commit by commit, and let go of what is beyond
        retention: in between, whoever wants a change has it, however fast commits come."""
        without_retention = 0
        try:
            while self._behind and not self._closing:
                committed = self._behind.popleft()
                without_retention += 1
                async with self._lock:
                    await self._told(self._make_due(committed))
                    if not self._behind or without_retention >= COMMITS_BEFORE_RETENTION:
                        without_retention = 0
                        await self._told(self._retain())
        finally:
            self._looking_after = False

    async def _told(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (TrainerTuiError, OSError) as problem:
            self._teller.say("warning", "version", f"versions were not looked after: {problem}")

    async def _retain(self) -> None:
        config = self._settings.config
        gone = await self._work(
            lambda _: keeping.apply(self._workspace, config, should_stop=self._give_way)
        )
        for entry in gone:
            text = f"{entry.path.name}: {entry.action} ({entry.why})"
            self._teller.say("info", "retention", text, **entry.as_dict())

    async def _make_due(self, committed: Committed) -> None:
        policy = self._settings.config.versioning
        folder = self._workspace.current_model / committed.folder

        def make(store: VersionStore) -> str | None:
            branches = records.read_branches(store.layout)
            description = automatic.due(committed.manifest, store.list(), policy, branches)
            if description is None or not folder.is_dir():
                return None
            return f"{store.create(folder, description, automatic=True).name}: {description}"

        made = await self._work(make)
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
        await self.backups.close()
        for pool in (self._looking, self._working):  # the loop turns on while a file is hashed
            await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)


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
        nothing_to_measure = done_step == 0 or not training.present.ready
        if not evaluate_whole or nothing_to_measure:
            return False
    answered = training.save(evaluate_whole=evaluate_whole)
    in_time = await training.until(lambda: answered() or training.trainer is not trainer, timeout_s)
    if answered() or training.saved(done_step):
        return True
    if in_time:
        raise Refused("the trainer ended before it had saved", "trainer-tui status")
    raise Refused(f"the trainer did not save within {timeout_s:.0f} s")
