"""Stack dumps of a process that does not move, with the machine's figures, into an incident.

faulthandler writes into the process's output when it is asked by SIGUSR1; py-spy, where it is
installed, says more.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from trainer_tui.daemon import intake_worker
from trainer_tui.safety import clock, durable
from trainer_tui.safety.meters import Meters

log = logging.getLogger("daemon")
PY_SPY_TIMEOUT_S = 15.0


async def keep(
    folder: Path,
    number: int,
    pid: int,
    ask: Callable[[], object],
    words: Callable[[], str],
    meters: Meters,
) -> None:
    """Write `stacks-<number>.txt` and `machine-<number>.json`.

    Args:
        ask: sends the process SIGUSR1.
        words: the end of its output; called in a thread.
    """
    ask()
    stacks = await _py_spy(pid)
    machine = await asyncio.to_thread(meters.sample)
    await asyncio.sleep(0.2)  # faulthandler's text is not acknowledged by anything

    def write() -> None:
        durable.make_directory(folder)
        text = f"{clock.now_iso()}\n--- py-spy\n{stacks}\n--- its output\n{words()}\n"
        durable.replace(folder / f"stacks-{number}.txt", text.encode())
        durable.replace(folder / f"machine-{number}.json", msgspec.json.encode(machine))

    try:
        await asyncio.to_thread(write)
    except OSError as problem:
        log.error("the stacks were not kept: %s", problem)


async def _py_spy(pid: int) -> str:
    beside = Path(sys.executable).with_name("py-spy")
    command = str(beside) if beside.exists() else shutil.which("py-spy")
    if command is None:
        return "py-spy is not installed"
    process = await asyncio.create_subprocess_exec(
        *(command, "dump", "--nonblocking", "--pid", str(pid)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), PY_SPY_TIMEOUT_S)
    except TimeoutError:
        intake_worker.kill(process)
        await process.wait()
        return "py-spy did not answer"
    return output.decode("utf-8", "replace")
