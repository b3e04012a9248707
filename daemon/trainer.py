"""The handle of one trainer process: its pid, our end of its pipe, its end.

Invariant: every message is delivered, in order, before `on_end`; `on_end` comes exactly once, and
only when the process has been waited for. Everything public runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from trainer_tui.safety import cgroup, child, clock, crash, messages, processes
from trainer_tui.safety.meters import Gpu
from trainer_tui.safety.pipe import PipeEnd
from trainer_tui.safety.processes import RUN_KEY

LAST_WORDS_BYTES = 16 << 10
LAST_FRAMES_S = 2.0  # after the end of the process; a grandchild may hold the pipe open

log = logging.getLogger("daemon")


class Trainer:
    """`on_message(trainer, message)`, `on_end(trainer, wait_status)`: wait_status is negative for
    a signal, else the exit code."""

    def __init__(
        self,
        entry: str,
        spec: messages.TrainerSpec,
        tag: str,
        output: Path,
        on_message: Callable[[Trainer, messages.FromTrainer], None],
        on_end: Callable[[Trainer, int], None],
    ) -> None:
        """Starts the process. Must be called on the main thread, inside the loop. `tag` marks it
        and all it starts (`safety.processes`).

        Raises:
            OSError: it could not be started.
        """
        self.run_id = spec.run_id
        self.tag = tag
        self.heartbeat = Path(spec.heartbeat)
        self.started_at_s = clock.monotonic_s()
        # "hang" once the hang monitor has given it up, "stop" once a person has had it killed
        self.ended_by_us = ""
        self.peak_bytes = 0  # of physical memory, as the rounds saw it
        self.foreign_gpu_bytes: int | None = None  # what others held of the GPU, seen last
        self.gpus_before: tuple[Gpu, ...] = ()  # as the rounds saw them first
        self.oom_kills_before = crash.oom_kill_count()
        self._output = output
        self._output_before = output.stat().st_size if output.exists() else 0
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_end = on_end
        ours, theirs = multiprocessing.Pipe(duplex=True)
        outside = os.environ.get(RUN_KEY)
        os.environ[RUN_KEY] = tag
        try:
            self._process = child.spawn(
                entry, theirs, msgspec.msgpack.encode(spec), output, "trainer"
            )
        except BaseException:
            ours.close()
            raise
        finally:
            if outside is None:
                del os.environ[RUN_KEY]
            else:
                os.environ[RUN_KEY] = outside
            theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.identity = processes.identify(self.pid)
        self.group = cgroup.make(spec.run_id)  # where ours may be divided
        if self.group is not None:
            cgroup.put(self.group, self.pid)
        self._pidfd = os.pidfd_open(self.pid)
        self._pipe_closed = asyncio.Event()
        self._pipe = PipeEnd(ours, self._frame_from_thread, self._closed_from_thread, "trainer")
        self._pipe.start()
        self._loop.add_reader(self._pidfd, self._process_ended)

    def send(self, message: messages.ToTrainer) -> bool:
        """Never waits; False when the trainer is gone."""
        return self._pipe.send(messages.encode(message))

    def signal(self, number: signal.Signals) -> None:
        """A process that is gone is no error."""
        with contextlib.suppress(ProcessLookupError, OSError):
            signal.pidfd_send_signal(self._pidfd, number)

    async def kill(self) -> None:
        """End it and all it started, at once: what no checkpoint holds is lost."""
        self.ended_by_us = "stop"
        self.signal(signal.SIGKILL)
        if self.group is not None:
            await asyncio.to_thread(cgroup.kill, self.group)
        for process in await asyncio.to_thread(processes.tagged, self.tag):
            processes.send(process, signal.SIGKILL)

    def last_words(self) -> str:
        """The end of what it wrote to stdout and stderr; reads a file."""
        try:
            with self._output.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(self._output_before, size - LAST_WORDS_BYTES))
                return stream.read(LAST_WORDS_BYTES).decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def close_pipe(self) -> None:
        """What the trainer also sees when the daemon dies: it finishes its step and commits."""
        self._pipe.close()

    def _frame_from_thread(self, frame: bytes) -> None:
        try:
            message = messages.decode_from_trainer(frame)
        except msgspec.MsgspecError as problem:
            log.error("a message of the trainer cannot be read: %s", problem)
            return
        self._call_soon(lambda: self._on_message(self, message))

    def _closed_from_thread(self) -> None:
        self._call_soon(self._pipe_closed.set)

    def _call_soon(self, action: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it our interest
            self._loop.call_soon_threadsafe(action)

    def _process_ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._ending = self._loop.create_task(self._end())

    async def _end(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._pipe_closed.wait(), LAST_FRAMES_S)
        self._process.join()
        status = self._process.exitcode
        self._process.close()
        self._pipe.close()
        os.close(self._pidfd)
        self._on_end(self, 0 if status is None else status)
