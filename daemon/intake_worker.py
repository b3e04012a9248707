"""The intake worker as a child of the daemon: started when there is a file to take, one at a time.

Invariant: a request has one answer, also when the worker dies over it. The worker ends by itself
after some idle time, and at once when the daemon is gone (its input closes).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from trainer_tui.queue.job import DATA_NAME
from trainer_tui.safety import durable, logs, processes
from trainer_tui.safety.processes import RUN_KEY
from trainer_tui.safety.workspace import Workspace

log = logging.getLogger("intake")
MODULE = "trainer_tui.queue.intake_worker"
REPLY_BYTES = 16 << 20
END_TIMEOUT_S = 5.0
WAIT_BASE_S = 3000.0
WAIT_BYTES_PER_S = 5_000


class Reply(msgspec.Struct, frozen=True, rename={"error_class": "class"}):
    """`ok`: `staged` is a complete directory to admit. Otherwise `error_class` and `message`."""

    ok: bool
    staged: str = ""
    meta: dict[str, Any] = {}
    verdict: str = ""
    error_class: str = ""
    message: str = ""
    hint: str = ""


class IntakeWorker:
    """`take` is asked by one task at a time; the rest wait in order."""

    def __init__(self, workspace: Workspace, run_tag: str) -> None:
        self._workspace, self._run_tag = workspace, run_tag
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def take(
        self,
        path: Path,
        priority: str,
        *,
        again: bool,
        keep_original: bool,
        added_by: str,
        unchanged_s: float = 0.0,
    ) -> Reply:
        """Copy, hash, check and count one file into a staging directory."""
        request = {
            "do": "take",
            **_named(path),
            "priority": priority,
            "again": again,
            "keep_original": keep_original,
            "added_by": added_by,
            "unchanged_s": unchanged_s,
        }
        async with self._turn:
            return await self._ask(request, await asyncio.to_thread(_limit_s, path))

    async def check(self, job: Path) -> Reply:
        """Make the report of a job's directory again, in a staging directory."""
        async with self._turn:
            limit_s = await asyncio.to_thread(_limit_s, job / DATA_NAME)
            return await self._ask({"do": "check", **_named(job)}, limit_s)

    def _clear_away(self, pid: int) -> None:
        """What a dead worker was copying."""
        for folder in self._workspace.queue.glob(f"{durable.STAGING_PREFIX}{pid}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    async def _ask(self, request: dict[str, Any], limit_s: float) -> Reply:
        line = msgspec.json.encode(request) + b"\n"
        for _ in range(2):  # an idle worker may end just when we write to it
            process = await self._running()
            assert process.stdin is not None and process.stdout is not None
            answer, late = b"", False
            try:
                async with asyncio.timeout(limit_s):
                    process.stdin.write(line)
                    await process.stdin.drain()
                    answer = await process.stdout.readline()
            except (BrokenPipeError, ConnectionResetError):
                pass
            except TimeoutError:
                late = True
                kill(process)
            if answer:
                return _decode(answer)
            code = await process.wait()
            self._process = None
            await asyncio.to_thread(self._clear_away, process.pid)
            if code != 0:
                how = f"had no answer in {limit_s:.0f} s" if late else f"ended with {code}"
                return Reply(
                    False,
                    error_class="worker_died",
                    message=f"the intake worker {how} over this file",
                    hint="state/logs/intake.out",
                )
        return Reply(False, error_class="worker_died", message="the intake worker does not stay")

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        output = self._workspace.logs / "intake.out"
        logs.make_room(output)
        environment = {**os.environ, RUN_KEY: f"{self._run_tag}/intake"}
        with output.open("ab") as stream:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", MODULE, "--workspace", str(self._workspace.root)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stream,
                limit=REPLY_BYTES,
                env=environment,
                start_new_session=True,
            )
        return self._process

    async def close(self) -> None:
        """Close its input, and end it if that is not enough."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 0.5)
        except TimeoutError:
            kill(process)
            await asyncio.wait_for(process.wait(), END_TIMEOUT_S)


def kill(process: asyncio.subprocess.Process) -> None:
    """SIGKILL by pidfd. `Process.kill` polls first and so may reap a process that just ended; then
    asyncio's own wait finds nobody and makes up the exit code 255."""
    found = processes.identify(process.pid)
    if found is not None:
        processes.send(found, signal.SIGKILL)


def _limit_s(path: Path) -> float:
    """Seconds of the clock for a file: ten times those of the processor that the worker gives
    itself, because training comes first; it is there for a disk that does not answer."""
    try:
        size = path.lstat().st_size
    except OSError:
        size = 0
    return WAIT_BASE_S + size / WAIT_BYTES_PER_S


def _named(path: Path) -> dict[str, str]:
    """A name that is not UTF-8 travels as its bytes."""
    raw = os.fsencode(path)
    try:
        return {"path": raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {"path_bytes": base64.b64encode(raw).decode()}


def _decode(line: bytes) -> Reply:
    try:
        return msgspec.json.decode(line, type=Reply)
    except msgspec.MsgspecError as problem:
        log.error("the intake worker answered what cannot be read: %s", problem)
        return Reply(False, error_class="worker_died", message="the intake worker spoke nonsense")
