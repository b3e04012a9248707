"""The daemon: its parts put together, its ticks, its end.

Invariant: nothing on the event loop waits for the disk. It ends only after the trainer has
committed and exited, or has been ended because it would not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from trainer_tui.daemon import api, api_jobs, eta, status, undo
from trainer_tui.daemon.bus import Bus
from trainer_tui.daemon.desk import Desk
from trainer_tui.daemon.figures import points
from trainer_tui.daemon.history import History
from trainer_tui.daemon.house import House
from trainer_tui.daemon.http_server import Server, listen_tcp, make_server
from trainer_tui.daemon.inbox import Inbox
from trainer_tui.daemon.job_view import Context
from trainer_tui.daemon.keeper import Keeper
from trainer_tui.daemon.run import daemon_record
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.training import Training
from trainer_tui.daemon.training_state import Means
from trainer_tui.daemon.undo import Act, UndoLog
from trainer_tui.safety import checkpoints, clock, config, durable, heartbeat, processes
from trainer_tui.safety.heartbeat import Beat
from trainer_tui.safety.locks import Lock
from trainer_tui.safety.meters import Machine, Meters
from trainer_tui.safety.workspace import Workspace

log = logging.getLogger("daemon")
TICK_S = 1.0
METERS_EVERY_S = 2.0
STATUS_FILE_EVERY_S = 5.0
LOCK_LOOK_EVERY_S = 10.0
END_TIMEOUT_S = 300.0  # for the trainer's last step and commit
ORPHAN_GRACE_S = 60.0
SERIES_FLUSH_S = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """What a tick found on disk and in the machine; gathered in a thread."""

    machine: Machine | None
    beat: Beat | None
    stop_file: bool
    config_changed: bool
    lock_lost: bool
    blocker: str


class Daemon:
    def __init__(self, workspace: Workspace, lock: Lock, entry: str, run_tag: str) -> None:
        self._workspace, self._lock, self._entry, self._run_tag = workspace, lock, entry, run_tag
        self._settings = Settings(workspace)
        self._meters = Meters(workspace.root)
        self._history = History(workspace.history_file, self._say_from_thread)
        self._started_at, self._started_s = clock.now_iso(), clock.monotonic_s()
        self._machine: Machine | None = self._meters.sample()
        self._beat: Beat | None = None
        self._exit_code = 0
        self._ending = asyncio.Event()
        self._signals = 0
        self._last: dict[str, float] = {}
        self._told = b""
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- coming up -------------------------------------------------------------------------------

    def prepare(self) -> None:
        """What may take a while and needs no loop. Raises ConfigProblem, WorkspaceProblem."""
        self._settings.load()
        durable.sweep_staging(self._workspace.state)
        self._history.start()
        first_id = max(int(clock.now_s() * 1000), self._history.last_event_id().result(30) + 1)
        self._bus = Bus(first_id)
        self._teller = Teller(self._bus, self._history)
        self._desk = Desk(self._workspace, self._settings, self._bus)
        self._desk.open()

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
        )
        self._training = Training(means)
        self._training.blocker = "the trainer of the last daemon finishes its step"
        self._desk.on_change = self._training.poke
        self._desk.context = self._job_context
        self._keeper = Keeper(
            self._workspace, self._settings, self._training, self._bus, self._teller
        )
        self._inbox = Inbox(
            self._workspace, self._settings, self._desk, self._teller, self._run_tag
        )
        self._undo = UndoLog(self._workspace, self._apply)
        self._sources = status.Sources(
            self._workspace,
            self._settings,
            self._desk,
            self._training,
            self._keeper,
            self._bus,
            self._started_at,
            self._started_s,
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
            self.status,
        )

    def status(self) -> dict[str, Any]:
        """The status document of this moment. The heartbeat is read afresh: a page of memory."""
        if self._training.trainer is not None:
            self._beat = heartbeat.read(self._training.trainer.heartbeat)
        return status.build(self._sources, self._machine, self._beat)

    async def run(self, listener: socket.socket) -> int:
        """Serve until the end. Returns the exit code."""
        self._loop = asyncio.get_running_loop()
        house = self._assemble()
        await asyncio.to_thread(self._undo.load)
        await self._remember_figures()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        await self._keeper.refresh()
        await self._look_around()  # so that the first answer is whole
        record = daemon_record(self._workspace, status.version(), self._started_at)
        await asyncio.to_thread(durable.replace, self._workspace.daemon_file, record)
        server = make_server(api.make_app(house), self._settings.config.api.token)
        serving = self._start(server.serve(sockets=[listener, *self._tcp()]))
        self._teller.say("info", "daemon", f"the daemon serves {self._workspace.root}")
        if self._settings.problem:
            self._teller.say("error", "config", self._settings.problem)
        work = [
            self._start(self._training.run()),
            self._start(self._inbox.run()),
            self._start(self._desk.run()),
            self._start(self._tick()),
            self._start(self._wait_for_orphans()),
        ]
        await self._ending.wait()
        await self._shut_down(server, serving, work)
        return self._exit_code

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        """A part that fails takes the daemon down: whoever watches starts a whole one."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.critical("a part of the daemon failed", exc_info=task.exception())
            self._exit_code = 1
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
            best = await asyncio.wrap_future(self._history.lowest("val_loss"))
        except Exception as problem:  # noqa: BLE001 - an edge: history is never needed
            log.warning("history could not be read: %s", problem)
            return
        figures = self._training.figures
        for name, (_, value) in known.items():
            setattr(figures, name, value)
        figures.best_val_loss = best

    # --- ticking ---------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self._look_around()

    async def _look_around(self) -> None:
        look = await asyncio.to_thread(self._look)
        self._beat = look.beat
        if look.machine is not None:
            self._machine = look.machine
            self._record_machine(look.machine)
        if look.lock_lost:
            log.critical("the lock file was taken from under this daemon: it ends")
            self._exit_code = 3
            self._ending.set()
        if look.stop_file:
            await self._stop_file()
        if look.config_changed:
            await self._config_changed()
        if look.blocker != self._training.blocker and not self._orphans:
            self._training.blocker = look.blocker
            self._training.poke()
        await self._publish()

    _orphans = True

    def _look(self) -> Look:
        trainer = self._training.trainer
        return Look(
            machine=self._meters.sample() if self._due("meters", METERS_EVERY_S) else None,
            beat=heartbeat.read(trainer.heartbeat) if trainer else None,
            stop_file=os.path.lexists(self._workspace.stop_file),
            config_changed=self._settings.changed_on_disk(),
            lock_lost=self._due("lock", LOCK_LOOK_EVERY_S) and not self._lock.still_ours(),
            blocker=self._find_blocker() if trainer is None else "",
        )

    def _due(self, name: str, every_s: float) -> bool:
        now_s = clock.monotonic_s()
        if now_s - self._last.get(name, -every_s) < every_s:
            return False
        self._last[name] = now_s
        return True

    def _find_blocker(self) -> str:
        """Why training could not even start: said instead of crashing again and again."""
        if checkpoints.list_folders(self._workspace.current_model):
            return ""
        folder = config.base_model_folder(self._settings.in_force(), self._workspace.root)
        if (folder / "config.json").is_file():
            return ""
        return f"there is no model at {folder} (base_model in config.toml)"

    def _record_machine(self, machine: Machine) -> None:
        step = self._training.figures.global_step
        if step is None or self._training.trainer is None:
            return
        values = {"memory": float(machine.memory_used_bytes)}
        if machine.gpus:
            gpu = machine.gpus[0]
            found = {
                "gpu_utilisation": gpu.utilisation_percent,
                "gpu_memory": gpu.memory_used_bytes,
                "temperature": gpu.temperature_c,
            }
            values |= {name: float(value) for name, value in found.items() if value is not None}
        self._history.add_points(points(step, values))

    async def _publish(self) -> None:
        document = self.status()
        lasting = status.lasting(document)
        changed = lasting != self._told
        if changed:
            self._told = lasting
            self._bus.publish("status", document)
        if changed or self._due("status file", STATUS_FILE_EVERY_S):
            self._last["status file"] = clock.monotonic_s()
            await self._write_status_file(document)

    async def _write_status_file(self, document: dict[str, Any]) -> None:
        data = msgspec.json.format(msgspec.json.encode(status.flat(document)), indent=1)
        try:
            await asyncio.to_thread(durable.replace_view, self._workspace.status_file, data)
        except OSError as problem:
            if self._due("status file problem", 60.0):
                log.error("the status file was not written: %s", problem)

    async def _stop_file(self) -> None:
        """`.stop`: the same as `stop --now`, and the daemon ends. Consumed once."""
        await self._training.set_intent("stopped", ".stop file")
        await asyncio.to_thread(durable.remove_file, self._workspace.stop_file)
        self._teller.say("info", "daemon", "a .stop file was found: saving and ending")
        self._ending.set()

    async def _config_changed(self) -> None:
        problem = await asyncio.to_thread(self._settings.reload)
        if problem:
            self._teller.say("error", "config", f"the edit is not used: {problem}")
        else:
            waiting = [pending.key for pending in self._settings.pending()]
            more = f"; waiting: {', '.join(waiting)}" if waiting else ""
            self._teller.say("info", "config", f"config.toml was read again{more}")
        self._training.settings_changed()

    async def _wait_for_orphans(self) -> None:
        """A trainer of a killed daemon finishes its step and commits before ours may start."""
        deadline_s = clock.monotonic_s() + ORPHAN_GRACE_S
        while left := await asyncio.to_thread(processes.tagged, f"{self._run_tag}:"):
            if clock.monotonic_s() > deadline_s:
                self._teller.say("warning", "trainer", f"{len(left)} left-over processes ended")
                for process in left:
                    processes.send(process, signal.SIGKILL)
            await asyncio.sleep(0.2)
        self._orphans = False
        self._training.blocker = await asyncio.to_thread(self._find_blocker)
        self._training.poke()

    def _job_context(self) -> Context:
        """What views of jobs depend on, at this moment."""
        training, figures = self._training, self._training.figures
        facts = training.facts()
        fractions = {
            job.id: figures.fraction if job.id == training.in_hand else training.fraction_of(job.id)
            for job in self._desk.processing
        }
        idle = facts.wish == "run" and not (facts.blocker or facts.hold)
        return Context(
            now=datetime.now().astimezone(),
            quiet=self._desk.quiet(),
            not_training="" if idle else status.not_training(training, facts),
            speed=eta.speed(figures.token_rates),
            epochs=figures.epochs,
            in_hand_s=eta.job_seconds(figures) or (0.0 if figures.job_id is None else None),
            fractions=fractions,
        )

    # --- undo ------------------------------------------------------------------------------------

    async def _apply(self, act: Act, by: str) -> None:
        match act:
            case undo.SetIntent(training="run"):
                await self._training.set_intent("run", by)
            case undo.SetIntent():
                await self._training.set_intent("pause", by)
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
        with contextlib.suppress(RuntimeError, AttributeError):  # before or after the loop
            self._loop.call_soon_threadsafe(self._teller.say, "error", "history", text)

    async def _shut_down(
        self, server: Server, serving: asyncio.Task[Any], work: list[asyncio.Task[Any]]
    ) -> None:
        training = self._training
        training.ending = True
        training.poke()
        await self._publish()
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
        await self._inbox.close()
        await self._keeper.close()
        self._teller.say("info", "daemon", "the daemon ends")
        await self._publish()
        self._bus.close()
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        self._desk.close()
        await asyncio.to_thread(self._history.close)
