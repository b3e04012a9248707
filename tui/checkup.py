"""`trainer-tui doctor` as a child process, so that torch's import makes no screen wait."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import msgspec

from trainer_tui.safety.errors import Refused
from trainer_tui.tui.findings import Finding

TIMEOUT_S = 90.0
NOT_OURS = frozenset({"terminal"})  # the child has none; the screen has


async def examine(workspace: Path | None) -> tuple[Finding, ...]:
    """What the doctor finds, the worst first. The child ends with this call.

    Raises:
        Refused: it found nothing to say, or took longer than `TIMEOUT_S`.
    """
    if workspace is None:
        raise Refused("this screen does not know its workspace")
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "trainer_tui.tui.cli", "-w", str(workspace), "doctor", "--json",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        told, complaint = await asyncio.wait_for(child.communicate(), TIMEOUT_S)
        found = msgspec.json.decode(told, type=tuple[Finding, ...])
    except TimeoutError:
        words = f"the doctor did not answer in {TIMEOUT_S:.0f} s"
        raise Refused(words, "trainer-tui doctor") from None
    except msgspec.MsgspecError:
        last = (complaint.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise Refused(f"the doctor failed: {last}", "trainer-tui doctor") from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
    rank = {"fail": 0, "note": 1}
    shown = [finding for finding in found if finding.subject not in NOT_OURS]
    return tuple(sorted(shown, key=lambda finding: rank.get(finding.level, 2)))
