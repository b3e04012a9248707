"""The daemon: its parts put together, its ticks, its end.

Invariant: nothing on the event loop waits for the disk. It ends only after the trainer has
committed and exited, or has been ended because it would not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from functools import partial
from typing import Any

from trainer_tui.daemon import (
    api,
    api_jobs,
    commands,
    disk_watch,
    eta,
    first_words,
    predecessor,
    status,
    undo,
)
from trainer_tui.daemon.bus import Bus
from trainer_tui.daemon.checks import Checks
from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.disk_watch import DiskWatch
from trainer_tui.daemon.guardian import Guardian, notify_systemd
from trainer_tui.daemon.hang_watch import HangWatch
from trainer_tui.daemon.history import History
from trainer_tui.daemon.house import House
from trainer_tui.daemon.http_server import Server, listen_tcp, make_server
from trainer_tui.daemon.inbox import Inbox
from trainer_tui.daemon.job_view import Context
from trainer_tui.daemon.keeper import Keeper
from trainer_tui.daemon.notices import Notices
from trainer_tui.daemon.rollback_wish import RollbackWish
from trainer_tui.daemon.rounds import Rounds
from trainer_tui.daemon.run import daemon_record
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.steady import nap, steady
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.training import Training
from trainer_tui.daemon.training_state import Means
from trainer_tui.daemon.undo import Act, UndoLog
from trainer_tui.daemon.upkeep import Upkeep
from trainer_tui.safety import cgroup, clock, durable, processes
from trainer_tui.safety.errors import TrainerTuiError
from trainer_tui.safety.grace import Grace
from trainer_tui.safety.locks import Lock
from trainer_tui.safety.meters import Meters
from trainer_tui.safety.notify import Notifier
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions import keeping

log = logging.getLogger("daemon")
END_TIMEOUT_S = 300.0  # for the trainer's last step and commit
ORPHAN_LOOK_S = 0.2


class Daemon:
    def __init__(self, workspace: Workspace, lock: Lock, entry: str, run_tag: str) -> None:
        self._workspace, self._lock, self._entry, self._run_tag = workspace, lock, entry, run_tag
        self._settings = Settings(workspace)
        self._meters = Meters(workspace.root, self._settings.disk_floor_bytes)
        self._history = History(workspace.history_file, self._say_from_thread)
        self._started_at, self._started_s = clock.now_iso(), clock.monotonic_s()
        self._exit_code = 0
        self._ending = asyncio.Event()
        self._signals = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._early: list[str] = []  # said before anybody could hear it

    # --- coming up -------------------------------------------------------------------------------

    def prepare(self) -> None:
        """What may take a while and needs no loop. Raises ConfigProblem, WorkspaceProblem."""
        self._before = predecessor.find(self._workspace)
        self._settings.load()
        durable.sweep_staging(self._workspace.state)
        self._history.start()
        self._bus = Bus(max(int(clock.now_s() * 1000), self._last_event_id() + 1))
        self._teller = Teller(self._bus, self._history)
        self._desk = Desk(self._workspace, self._settings, self._bus)
        self._desk.open()

    def _last_event_id(self) -> int:
        try:
            return self._history.last_event_id().result(30)
        except (OSError, sqlite3.Error) as problem:  # history is never needed
            self._say_from_thread(f"history cannot be read: {problem}")
            return 0

    def _assemble(self) -> House:
        means = Means(
            self._workspace,
            self._settings,
            self._desk,
            self._bus,
            self._history,
            self._teller,
            self._entry,
            self._run_tag,
            self._meters,
        )
        self._training = Training(means)
        self._training.blocker = "starting: a trainer of an earlier daemon is looked for"
        self._desk.on_change = self._on_queue_change
        self._desk.context = self._job_context
        self._keeper = Keeper(
            self._workspace, self._settings, self._training, self._desk, self._bus, self._teller
        )
        self._rollback_wish = RollbackWish(self._training, self._keeper, self._teller)
        self._inbox = Inbox(
            self._workspace, self._settings, self._desk, self._teller, self._run_tag
        )
        self._checks = Checks(self._workspace, self._desk, self._teller, self._run_tag)
        self._inbox.why_not = self._checks.why_not = self._why_no_intake
        self._undo = UndoLog(self._workspace, self._apply)
        sources = status.Sources(
            self._workspace,
            self._settings,
            self._desk,
            self._training,
            self._keeper,
            self._bus,
            self._started_at,
            self._started_s,
        )
        self._disk = DiskWatch(
            self._workspace,
            self._settings,
            self._desk,
            self._inbox,
            self._training,
            self._teller,
            self._keeper.in_use,
        )
        self._notifier = Notifier(lambda: self._settings.config.notify)
        self._teller.listeners.append(Notices(self._notifier).hear)
        self._rounds = Rounds(
            sources, self._history, self._teller, self._meters, self._lock, self._end
        )
        return House(
            self._workspace,
            self._settings,
            self._bus,
            self._history,
            self._teller,
            self._desk,
            self._inbox,
            self._training,
            self._keeper,
            self._undo,
            self._rounds.status,
            self._disk,
        )

    async def run(self, listener: socket.socket) -> int:
        """Serve until the end. Returns the exit code."""
        self._loop = asyncio.get_running_loop()
        house = self._assemble()
        undo_problem = await asyncio.to_thread(self._undo.load)
        await self._remember_figures()
        await self._remember_best()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        await self._look_at_versions()
        await self._keeper.settling.finish()
        await self._rounds.look_around()  # so that the first answer is whole
        record = daemon_record(self._workspace, status.version(), self._started_at)
        await asyncio.to_thread(durable.replace, self._workspace.daemon_file, record)
        server = make_server(api.make_app(house), self._settings.config.api.token)
        serving = self._start(server.serve(sockets=[listener, *self._tcp()]))
        self._teller.say("info", "daemon", f"the daemon serves {self._workspace.root}")
        if self._before is not None:
            await predecessor.tell(self._workspace, self._before, self._teller)
        intent, findings = self._training.intent, self._desk.findings
        first_words.tell(self._teller, self._settings, intent, findings, undo_problem, self._early)
        sleep = partial(nap, self._ending)
        work = [
            self._start(steady(name, run, self._teller.say, sleep)) for name, run in self._parts()
        ]
        notify_systemd("READY=1")
        await self._ending.wait()
        notify_systemd("STOPPING=1")
        await self._shut_down(server, serving, work)
        return self._exit_code

    def _parts(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """The tasks that run as long as the daemon does; training comes first."""
        hang_watch = HangWatch(
            self._workspace, self._settings, self._training, self._teller, self._meters
        )
        upkeep = Upkeep(self._workspace, self._settings, self._desk, self._history, self._teller)
        return [
            ("training", self._training.run),
            ("inbox", self._inbox.run),
            ("checks", self._checks.run),
            ("queue", self._desk.run),
            ("restores", self._keeper.finish_restores),
            ("rounds", self._rounds.run),
            ("orphans", self._wait_for_orphans),
            ("hang watch", hang_watch.run),
            ("disk", self._disk.run),
            ("upkeep", upkeep.run),
            ("guardian", Guardian(self._workspace, self._teller).run),
        ]

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        """A part that fails takes the daemon down: whoever watches starts a whole one."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.critical("a part of the daemon failed", exc_info=task.exception())
            self._end(1)

    def _end(self, exit_code: int) -> None:
        self._exit_code = self._exit_code or exit_code
        self._ending.set()

    def _tcp(self) -> list[socket.socket]:
        api_config = self._settings.config.api
        if not api_config.listen:
            return []
        if not api_config.token:
            self._teller.say(
                "error", "api", "[api] listen is set without a token: TCP stays closed"
            )
            return []
        try:
            return [listen_tcp(api_config.listen)]
        except (OSError, ValueError) as problem:
            self._teller.say("error", "api", f"cannot listen on {api_config.listen}: {problem}")
            return []

    async def _remember_figures(self) -> None:
        """Show what was known before a restart."""
        wanted = ["loss", "val_loss", "learning_rate", "grad_norm"]
        try:
            known = await asyncio.wrap_future(self._history.last_values(wanted))
        except Exception as problem:  # noqa: BLE001 - an edge: history is never needed
            log.warning("history could not be read: %s", problem)
            return
        figures = self._training.figures
        for name, (_, value) in known.items():
            setattr(figures, name, value)

    async def _remember_best(self) -> None:
        """History mixes slices and sets; what is committed says of which set its figure is."""
        try:
            best = await self._keeper.ask(lambda store: keeping.best_known(store.workspace))
        except (OSError, TrainerTuiError) as problem:
            log.warning("the best figure could not be read: %s", problem)
            return
        if best is not None:
            self._training.figures.remember_best(best.set_id, best.loss)

    async def _look_at_versions(self) -> None:
        """Training needs none of them: what is wrong with the shelf must not keep it from going."""
        try:
            await self._keeper.refresh()
        except (OSError, TrainerTuiError) as problem:
            self._teller.say("error", "version", f"the versions cannot be read: {problem}")

    # --- beginning and context ------------------------------------------------------------------

    async def _wait_for_orphans(self) -> None:
        """A trainer of a killed daemon finishes its step and commits before ours may start."""
        patience = Grace(clock.monotonic_s())
        while left := await asyncio.to_thread(processes.tagged, f"{self._run_tag}:"):
            self._training.blocker = "the trainer of the last daemon finishes its step"
            moved = sum(processes.bytes_written(process) for process in left)
            waits = any(processes.state_of(process) == "D" for process in left)
            if patience.over(moved, waits, clock.monotonic_s()):
                self._teller.say("warning", "trainer", f"{len(left)} left-over processes ended")
                for process in left:
                    cgroup.kill_with(process.pid)
                    processes.send(process, signal.SIGKILL)
            await asyncio.sleep(ORPHAN_LOOK_S)
        await asyncio.to_thread(cgroup.sweep)
        self._rounds.orphans_left = False
        self._training.blocker = await asyncio.to_thread(self._rounds.find_blocker)
        self._training.poke()

    def _on_queue_change(self) -> None:
        self._training.poke()
        self._checks.wake()

    def _why_no_intake(self) -> str:
        """A full disk, or a training that was given up, takes no more files in."""
        if self._training.intent.training == "degraded":
            return "training was given up; trainer-tui resume tries again"
        return self._training.holds.get(disk_watch.KIND, "")

    def _job_context(self) -> Context:
        """What views of jobs depend on, at this moment."""
        training, figures = self._training, self._training.figures
        facts = training.facts()
        fractions = {
            job.id: figures.fraction if job.id == training.in_hand else training.fraction_of(job.id)
            for job in self._desk.processing
        }
        idle = facts.wish == "run" and not (facts.blocker or facts.hold)
        epochs, pace = self._settings.config.epochs, eta.pace(figures)
        in_hand_s = eta.job_span(figures) or (eta.NOW_S if figures.job_id is None else None)
        return Context(
            now=datetime.now().astimezone(),
            quiet=self._desk.quiet(),
            not_training="" if idle else status.not_training(training, facts),
            pace=pace,
            epochs=epochs,
            in_hand=figures.job_id,
            in_hand_s=in_hand_s,
            begun_s=eta.and_then(pace, in_hand_s, training.begun_again(), epochs),
            fractions=fractions,
            trained=training.trained,
            key=self._desk.key,
        )

    # --- undo ------------------------------------------------------------------------------------

    async def _apply(self, act: Act, by: str) -> None:
        match act:
            case undo.SetIntent():
                await commands.set_back(self._training, act, by)
            case _:
                await self._desk.ask(api_jobs.undo_act(act), act.job_id)

    # --- going down ------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        """The first asks; the second hurries the trainer; the third ends it."""
        self._signals += 1
        trainer = self._training.trainer
        if self._signals == 2 and trainer is not None:
            trainer.signal(signal.SIGTERM)
        elif self._signals > 2 and trainer is not None:
            trainer.signal(signal.SIGKILL)
        self._ending.set()

    def _say_from_thread(self, text: str) -> None:
        log.error("%s", text)
        if self._loop is None:
            self._early.append(text)
            return
        with contextlib.suppress(RuntimeError):  # after the loop
            self._loop.call_soon_threadsafe(self._teller.say, "error", "history", text)

    async def _shut_down(
        self, server: Server, serving: asyncio.Task[Any], work: list[asyncio.Task[Any]]
    ) -> None:
        training = self._training
        training.ending = True
        training.poke()
        await self._rounds.publish()
        training_runs = not work[0].done()
        if training_runs and not await training.until(
            lambda: training.trainer is None, END_TIMEOUT_S
        ):
            log.error("the trainer did not end within %.0f s: it is killed", END_TIMEOUT_S)
        if training.trainer is not None:
            training.trainer.signal(signal.SIGKILL)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await asyncio.gather(self._inbox.close(), self._checks.close())
        await self._keeper.close()
        self._teller.say("info", "daemon", "the daemon ends")
        await self._rounds.publish()
        self._bus.close()
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        self._desk.close()
        await asyncio.to_thread(self._notifier.close)
        await asyncio.to_thread(self._history.close)
