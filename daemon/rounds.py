"""The daemon's rounds, once a second: meters, heartbeat, `.stop`, config edits, lock, status.

Looking is done in a thread; what is found is acted on by the event loop. The status document goes
out when something in it changed, and into `training_status.json` at least every few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from trainer_tui.daemon import memory_wait, neighbour, status
from trainer_tui.daemon.bus import Bus
from trainer_tui.daemon.figures import points
from trainer_tui.daemon.history import History
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.status import Sources
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.training import Training
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
GPU_KIND = "gpu"
GPU_GONE_TOPIC = "gpu"


@dataclass(frozen=True, slots=True)
class Look:
    """What a round found on disk and in the machine."""

    machine: Machine | None
    foreign_bytes: int | None
    beat: Beat | None
    stop_file: bool
    config_changed: bool
    lock_lost: bool
    blocker: str


class Rounds:
    """`end(exit_code)` ends the daemon."""

    def __init__(
        self,
        sources: Sources,
        history: History,
        teller: Teller,
        meters: Meters,
        lock: Lock,
        end: Callable[[int], None],
    ) -> None:
        self._sources = sources
        self._workspace: Workspace = sources.workspace
        self._settings: Settings = sources.settings
        self._training: Training = sources.training
        self._bus: Bus = sources.bus
        self._history, self._teller = history, teller
        self._meters, self._lock, self._end = meters, lock, end
        self._machine: Machine = meters.sample()
        self._beat: Beat | None = None
        self._gpu_problem = self._machine.gpu_problem
        self._last: dict[str, float] = {}
        self._told = b""
        self.orphans_left = True

    def status(self) -> dict[str, Any]:
        """The status document of this moment. The heartbeat is read afresh: a page of memory."""
        if self._training.trainer is not None:
            self._beat = heartbeat.read(self._training.trainer.heartbeat)
        return status.build(self._sources, self._machine, self._beat)

    async def run(self) -> None:
        """Ends by cancellation."""
        while True:
            await asyncio.sleep(TICK_S)
            await self.look_around()

    async def look_around(self) -> None:
        look = await asyncio.to_thread(self._look)
        self._beat = look.beat
        if look.machine is not None:
            self._machine = look.machine
            self._record_machine(look.machine)
            self._mind_the_gpu(look.machine, look.foreign_bytes)
            self._mind_memory(look.machine, look.foreign_bytes)
        if look.lock_lost:
            log.critical("the lock file was taken from under this daemon: it ends")
            self._end(3)
        if look.stop_file:
            await self._stop_file()
        if look.config_changed:
            await self._config_changed()
        if look.blocker != self._training.blocker and not self.orphans_left:
            self._training.blocker = look.blocker
            self._training.poke()
        await self.publish()

    def _look(self) -> Look:
        trainer = self._training.trainer
        machine = self._meters.sample() if self._due("meters", METERS_EVERY_S) else None
        foreign = None
        if machine is not None and machine.gpus:
            ours = frozenset({trainer.pid}) if trainer else frozenset()
            foreign = self._meters.foreign_gpu_bytes(ours)
        if machine is not None and trainer is not None and trainer.identity is not None:
            now_bytes = processes.resident_bytes(trainer.identity)
            trainer.peak_bytes = max(trainer.peak_bytes, now_bytes)
            trainer.foreign_gpu_bytes = foreign
            trainer.gpus_before = trainer.gpus_before or machine.gpus
        return Look(
            machine=machine,
            foreign_bytes=foreign,
            beat=heartbeat.read(trainer.heartbeat) if trainer else None,
            stop_file=os.path.lexists(self._workspace.stop_file),
            config_changed=self._settings.changed_on_disk(),
            lock_lost=self._due("lock", LOCK_LOOK_EVERY_S) and not self._lock.still_ours(),
            blocker=self.find_blocker() if trainer is None else "",
        )

    def _due(self, name: str, every_s: float) -> bool:
        now_s = clock.monotonic_s()
        if now_s - self._last.get(name, -every_s) < every_s:
            return False
        self._last[name] = now_s
        return True

    def find_blocker(self) -> str:
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

    async def publish(self) -> None:
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
        self._end(0)

    async def _config_changed(self) -> None:
        problem = await asyncio.to_thread(self._settings.reload)
        if problem:
            self._teller.say("error", "config", f"the settings in force stay: {problem}")
        else:
            waiting = [pending.key for pending in self._settings.pending()]
            more = f"; waiting: {', '.join(waiting)}" if waiting else ""
            self._teller.say("info", "config", f"config.toml was read again{more}")
        self._training.settings_changed()

    def _mind_memory(self, machine: Machine, foreign_bytes: int | None) -> None:
        """After an end for want of memory: wait until there is as much as it had."""
        holds, kind = self._training.holds, memory_wait.KIND
        before = holds.get(kind, "")
        now = memory_wait.hold(self._training.aftermath.memory_need, machine, foreign_bytes)
        if now:
            holds[kind] = now
        else:
            holds.pop(kind, None)
        if bool(now) != bool(before):
            text = f"training waits: {now}" if now else "there is memory again: training goes on"
            self._teller.say("warning" if now else "info", kind, text)
            self._training.poke()

    def _mind_the_gpu(self, machine: Machine, foreign_bytes: int | None) -> None:
        """Too hot or too crowded: stand still. Lost or back: say so."""
        holds = self._training.holds
        before = holds.get(GPU_KIND, "")
        now = neighbour.hold(machine, self._settings.config.gpu, foreign_bytes, before)
        if now:
            holds[GPU_KIND] = now
        else:
            holds.pop(GPU_KIND, None)
        if bool(now) != bool(before):
            text = f"training pauses: {now}" if now else "training goes on: the GPU is well again"
            self._teller.say("warning" if now else "info", GPU_KIND, text)
            self._training.poke()
        if machine.gpu_problem != self._gpu_problem:
            lost = machine.gpu_problem and not machine.gpus
            text = f"the GPU does not answer: {machine.gpu_problem}" if lost else "the GPU is back"
            self._teller.say("error" if lost else "info", GPU_KIND, text)
            self._gpu_problem = machine.gpu_problem
