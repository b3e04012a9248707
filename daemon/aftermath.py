"""After a trainer's unasked end: the evidence, the judgement, the incident, the job in hand.

Invariant: every unasked end leaves an incident with its evidence in `state/incidents/<run>/`, and
every attempt of a job that ended so is counted before the next begins.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import msgspec

from trainer_tui.daemon import after_end, memory_wait
from trainer_tui.daemon.after_end import End, Record, Verdict
from trainer_tui.daemon.desk import Desk, Where
from trainer_tui.daemon.memory_wait import Need
from trainer_tui.daemon.settings import Settings
from trainer_tui.daemon.teller import Teller
from trainer_tui.daemon.trainer import Trainer
from trainer_tui.safety import (
    cgroup,
    clock,
    crash,
    filesystems,
    heartbeat,
    incidents,
    messages,
    processes,
)
from trainer_tui.safety.crash import Action, Evidence
from trainer_tui.safety.meters import Meters
from trainer_tui.safety.workspace import Workspace

log = logging.getLogger("daemon")
LEFTOVER_GRACE_S = 5.0
STACK_CHARACTERS = 8000


class Aftermath:
    """`restarts`: unasked ends since the daemon started. `last`: the newest verdict."""

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        desk: Desk,
        teller: Teller,
        meters: Meters,
    ) -> None:
        self._workspace, self._settings = workspace, settings
        self._desk, self._teller, self._meters = desk, teller, meters
        self._record = Record()
        self.restarts = 0
        self.last: Verdict | None = None
        self.back_off_until_s = 0.0
        self.memory_need: Need | None = None

    def begin_anew(self) -> None:
        """Something was committed, or a person said go on: what was before counts no more."""
        self._record, self.back_off_until_s = Record(), 0.0
        self.memory_need = None

    async def crashed(self, trainer: Trainer, end: End, failed: messages.Failed | None) -> Verdict:
        """Judge, tell, keep the evidence, and do what it means for the job in hand. Counted last:
        what the disk did not let be done is done again."""
        evidence = await asyncio.to_thread(self._evidence, trainer, end, failed)
        finding = crash.classify(evidence)
        supervision = self._settings.config.supervision
        verdict, record = after_end.judge(
            end, finding, self._record, supervision.attempts, supervision.backoff_s
        )
        self.memory_need = memory_wait.need_after(
            finding, trainer.peak_bytes, trainer.foreign_gpu_bytes, _memory_total_bytes()
        )
        self._teller.say(
            "error",
            "trainer",
            f"the trainer ended: {finding.text}",
            hint=finding.suggestion,
            error_class=str(finding.crash_class),
            action=str(finding.action),
            wait_status=end.wait_status,
            job=end.in_hand,
            incident=trainer.run_id,
        )
        if finding.action is Action.SMALLER_MICRO_BATCH:
            await self._shrink_steps()
        if end.in_hand is not None:
            await self._set_aside(end.in_hand, verdict, _where(trainer, evidence))
        await self._keep_incident(trainer, end, evidence, verdict)
        self.restarts, self.last, self._record = self.restarts + 1, verdict, record
        self.back_off_until_s = clock.monotonic_s() + verdict.wait_s
        return verdict

    async def _shrink_steps(self) -> None:
        try:
            sizes = await asyncio.to_thread(memory_wait.halve_micro_batches, self._workspace.cache)
        except OSError as problem:
            log.error("the micro-batch stays as it is: %s", problem)
            return
        if sizes:
            text = f"the next trainer begins with a micro-batch of {min(sizes.values())} tokens"
            self._teller.say("info", "trainer", text)

    async def _set_aside(self, job_id: int, verdict: Verdict, where: Where) -> None:
        finding = verdict.finding
        if job_id not in {job.id for job in self._desk.processing}:
            return  # done before the disk failed
        await self._desk.end_attempt(job_id, "crashed", str(finding.crash_class))
        if verdict.park:
            name = self._desk.name_of(job_id)
            await self._desk.fail(
                job_id,
                str(finding.crash_class),
                finding.text,
                finding.suggestion,
                where=where,
            )
            text = f"#{job_id} {name} was set aside: {finding.text}"
            self._teller.say("error", "job", text, job=job_id)

    def _evidence(self, trainer: Trainer, end: End, failed: messages.Failed | None) -> Evidence:
        """Gathered in a thread."""
        report = crash.read_report(self._workspace.incidents / trainer.run_id / "error.json")
        if failed is not None:  # the file also names the rows of the step
            report = {**(report or {}), **msgspec.to_builtins(failed)}
        before = trainer.gpus_before
        gpu_problem, xids = self._meters.gpu_evidence(trainer.started_at_s, before)
        return Evidence(
            exit_code=end.wait_status,
            reported=report,
            ended_by_us=trainer.ended_by_us,
            oom_kills=crash.oom_kill_count() - trainer.oom_kills_before,
            fault_text=trainer.last_words(),
            disk_free_bytes=min(
                filesystems.measure(place).free_bytes
                for place in (self._workspace.root, self._workspace.current_model)
            ),
            foreign_gpu_bytes=trainer.foreign_gpu_bytes,
            gpu_problem=gpu_problem,
            xids=tuple(xids),
        )

    async def _keep_incident(
        self, trainer: Trainer, end: End, evidence: Evidence, verdict: Verdict
    ) -> None:
        finding = verdict.finding
        done = "the file was set aside" if verdict.park else "a new trainer goes on"
        if verdict.then == "degrade":
            done = "training was given up until a person looks"
        beat = heartbeat.read(trainer.heartbeat)
        document = {
            "at": clock.now_iso(),
            "class": str(finding.crash_class),
            "text": finding.text,
            "suggestion": finding.suggestion,
            "done": done,
            "job": end.in_hand,
            "wait_status": end.wait_status,
            "phase": beat.phase.label if beat else None,
            "global_step": beat.global_step if beat else None,
            "reported": evidence.reported,
            "oom_kills": evidence.oom_kills,
            "gpu_problem": evidence.gpu_problem,
            "xids": [xid.text for xid in evidence.xids],
            "disk_free_bytes": evidence.disk_free_bytes,
            "last_words": evidence.fault_text[-4000:],
        }
        folder = self._workspace.incidents / trainer.run_id
        await asyncio.to_thread(incidents.keep, folder, document)

    async def end_leftovers(self, trainer: Trainer) -> None:
        """What the trainer started and left behind: time to finish a write, then the end."""
        deadline_s, group = clock.monotonic_s() + LEFTOVER_GRACE_S, trainer.group
        while True:
            left = await asyncio.to_thread(processes.tagged, trainer.tag)
            if not left and (group is None or cgroup.empty(group)):
                break
            if clock.monotonic_s() >= deadline_s:
                if group is not None:
                    await asyncio.to_thread(cgroup.kill, group)
                for process in left:
                    processes.send(process, signal.SIGKILL)
                words = f"{len(left)} left-over processes ended"
                self._teller.say("warning", "trainer", words)
                break
            await asyncio.sleep(0.1)
        if group is not None:
            await asyncio.to_thread(cgroup.remove, group)


def _where(trainer: Trainer, evidence: Evidence) -> Where:
    """From what the trainer said, else from its last heartbeat and its last words."""
    said = evidence.reported or {}
    beat = heartbeat.read(trainer.heartbeat)
    rows = said.get("rows") or [0]
    return Where(
        phase=str(said.get("phase") or (beat.phase.label if beat else "")),
        step=int(said.get("global_step") or (beat.global_step if beat else 0)),
        stack=str(said.get("stack") or evidence.fault_text)[-STACK_CHARACTERS:],
        line=int(rows[0]),
    )


def _memory_total_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
