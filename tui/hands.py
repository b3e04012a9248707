"""What an action may use: changes by the API, questions, the reply line, the clipboard.

Invariant: changes are done one after the other, in the order of the keys that asked for them;
each looks at the view as the one before left it. A reply is shown after its effect.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from textual.app import App

from trainer_tui.safety.errors import TrainerTuiError
from trainer_tui.safety.text import printable
from trainer_tui.tui import actions as table
from trainer_tui.tui import reduce as news
from trainer_tui.tui.actions import Action
from trainer_tui.tui.dialogs import ask
from trainer_tui.tui.feed import Feed
from trainer_tui.tui.glyphs import UNICODE, Glyphs, plain
from trainer_tui.tui.remote import Backend, Declined
from trainer_tui.tui.signals import osc52
from trainer_tui.tui.situation import Situation, may_change
from trainer_tui.tui.view import Job, JobsChanged, Panel, View

WAITING_CHANGES = 12  # more keys than this while one change is under way are dropped


class Hands(App[int]):
    """The half of the app that acts; `TrainerApp` is the half that shows."""

    backend: Backend
    feed: Feed
    view: View
    glyphs: Glyphs = UNICODE
    palette: str = "dark"
    read_only: bool = False
    actor: str = "screen"
    workspace: Path | None = None  # where the doctor looks

    def __init__(self) -> None:
        super().__init__(ansi_color=True)
        self._turn = asyncio.Lock()
        self._queued = 0
        self.pictures = 0

    # --- given by the showing half ---

    def situation(self) -> Situation:
        raise NotImplementedError

    def hear(self, item: news.News) -> None:
        raise NotImplementedError

    def say(self, text: str, role: str = "") -> None:
        raise NotImplementedError

    def focus_panel(self, panel: Panel) -> None:
        raise NotImplementedError

    # --- doing ---

    def act(self, action: Action, *, anywhere: bool = False, by_mouse: bool = False) -> None:
        """Do it, or say why not. `anywhere`: the focus does not matter (palette)."""
        at = self.situation()
        if action.scope is not None and action.scope is not at.focus and not (anywhere or by_mouse):
            number = list(Panel).index(action.scope) - 1
            self.say(
                f"{action.keys_shown} is for {action.scope.value}: press {number} first", "dim"
            )
            return
        reason = action.why_not(at)
        if reason is not None:
            self.say(f"{action.label.rstrip('…')}: {reason}", "warn")
            return
        if not action.changes:
            self.run_worker(self._do(action), group="look")
            return
        if self._queued >= WAITING_CHANGES:
            self.say("too fast: still busy with the changes before", "warn")
            return
        self._queued += 1
        self.run_worker(self._do_in_turn(action), group="change")

    async def _do_in_turn(self, action: Action) -> None:
        try:
            async with self._turn:
                reason = action.why_not(self.situation())
                if reason is not None:
                    self.say(f"{action.label.rstrip('…')}: {reason}", "warn")
                    return
                await self._do(action)
        finally:
            self._queued -= 1

    async def _do(self, action: Action) -> None:
        try:
            await action.run(self)  # type: ignore[arg-type]
        except Declined as problem:
            self.refused(action, problem)
        except TrainerTuiError as problem:
            self.say(f"{self.glyphs.cross} {action.label.rstrip('…')}: {problem.message}", "bad")
        except msgspec.MsgspecError as problem:  # a daemon of another version; the screen stays
            words = f"the answer cannot be read: {problem}"
            self.say(f"{self.glyphs.cross} {action.label.rstrip('…')}: {words}", "bad")

    def refused(self, action: Action, problem: Declined) -> None:
        """Show the daemon's refusal; a stale state is read anew."""
        words = problem.message + (f" · {problem.hint}" if problem.hint else "")
        self.say(f"{self.glyphs.cross} {printable(words)}", "bad")
        if len(words) > self.size.width - 6:
            self.notify(
                printable(words), title=action.label.rstrip("…"), severity="warning", markup=False
            )
        if problem.status == 409:
            self.feed_again("jobs")

    def do(self, action_id: str) -> None:
        self.act(table.BY_ID[action_id], anywhere=True)

    # --- changes ---

    async def change(self, method: str, path: str, body: object = None) -> Any:
        """Send a change; the answer as plain data. Raises NoDaemon, Declined."""
        answer = await self.backend.send(method, path, body)
        try:
            return msgspec.json.decode(answer) if answer else None
        except msgspec.DecodeError:
            return None

    async def patch_job(self, job_id: int, body: dict[str, object]) -> None:
        """Change a job, show it where it now is, and say so."""
        answer = await self.backend.send("PATCH", f"/v1/jobs/{job_id}", body)
        job = msgspec.json.decode(answer, type=Job)
        self.hear(news.JobsChangedCame(JobsChanged(changed=replaced(self.view, job))))
        self.feed_again("jobs")
        words = "next" if job.place == 1 else f"place {job.place}"
        weight = job.priority.upper() if job.priority == "high" else job.priority
        self.say(f"{self.glyphs.check} #{job.id} {weight}, {words} · u undoes it", "good")

    def move_job(self, job_id: int, body: dict[str, object]) -> None:
        """Move by mouse: in turn with the keys."""
        if reason := may_change(self.situation()):
            self.say(reason, "warn")
            return

        async def run(_: object) -> None:
            await self.patch_job(job_id, body)

        self._queued += 1
        moving = replace(table.BY_ID["move_down"], run=run, check=None)
        self.run_worker(self._do_in_turn(moving), group="change")

    def blocked_reason(self) -> str | None:
        return may_change(self.situation())

    def forget_job(self, job_id: int) -> None:
        self.hear(news.JobsChangedCame(JobsChanged(removed=[job_id])))
        self.feed_again("jobs")

    def feed_again(self, what: str) -> None:
        self.feed.again(what)

    # --- asking ---

    def plain(self, text: str) -> str:
        """`text` in the characters that this terminal has."""
        return plain(text, self.glyphs)

    async def confirm(self, title: str, lines: Sequence[str]) -> bool:
        return await self.confirm_or_more(title, lines, "") == "y"

    async def confirm_or_more(self, title: str, lines: Sequence[str], also: str) -> str | None:
        """`y`, or `w`: with what `also` says; None: neither."""
        shown = [self.plain(line) for line in lines]
        question = ask.confirmation(self.plain(title), shown, self.palette, self.plain(also))
        return await self.push_screen_wait(question)

    async def choose(self, title: str, options: Sequence[ask.Option], below: str) -> str | None:
        shown = [(key, self.plain(name), self.plain(words), why and self.plain(why))
                 for key, name, words, why in options]  # fmt: skip
        question = ask.choice(self.plain(title), shown, self.plain(below), self.palette)
        return await self.push_screen_wait(question)

    async def pick(self, title: str, items: Sequence[ask.Item], below: str = "") -> int | None:
        """One of a list, by its index; None: none of them."""
        shown = [(self.plain(name), self.plain(more)) for name, more in items]
        question = ask.Pick(self.plain(title), shown, self.plain(below), self.palette)
        return await self.push_screen_wait(question)

    async def ask(
        self,
        title: str,
        question: str,
        value: str = "",
        problem: str = "",
        words: Sequence[str] = (),
    ) -> str | None:
        """One line of text, begun with `value`; `problem` is what was wrong with the last one,
        `words` are completed."""
        prompt = ask.Prompt(
            self.plain(title), self.plain(question), value, self.plain(problem), words, self.palette
        )
        return await self.push_screen_wait(prompt)

    async def show_page(self, title: str, lines: Sequence[str]) -> None:
        shown = [self.plain(line) for line in lines]
        await self.push_screen(ask.text_page(self.plain(title), shown))

    async def show_help(self) -> None:
        at = self.situation()
        listed = [
            (a.keys_shown, a.words, a.why_not(at) or "") for a in table.help_actions(at.focus)
        ]
        rows = [(self.plain(k), self.plain(w), self.plain(why)) for k, w, why in listed]
        name = at.focus.value if at.focus else "screen"
        await self.push_screen(ask.key_page(f"Keys · {name}", rows, "", self.palette))

    # --- the terminal ---

    def to_terminal(self, sequence: str) -> None:
        """Write past the screen: nothing when there is no terminal."""
        if self._driver is not None and not self.is_headless:
            self._driver.write(sequence)
            self._driver.flush()

    def copy(self, text: str) -> None:
        """OSC 52, wrapped for tmux; and a file, because no terminal says whether it took it."""
        if not text:
            self.say("nothing to copy here", "dim")
            return
        self.to_terminal(osc52(text, os.environ))
        where = self.copy_file()
        if where is not None:
            where.write_text(text + "\n", encoding="utf-8")
        also = f" · also in {where}" if where else ""
        self.say(f"{self.glyphs.check} copied {printable(text.splitlines()[0], 40)}{also}", "good")

    def copy_file(self) -> Path | None:
        """Where copied text is kept for terminals that do not take OSC 52."""
        folder = os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("TMPDIR")
        return Path(folder) / f"trainer-tui-copied-{os.getuid()}.txt" if folder else None


def replaced(view: View, job: Job) -> list[Job]:
    """`job` as it now is, and the waiting jobs whose place that changed."""
    if job.state != "waiting" or job.place is None:
        return [job]
    others = [other for other in view.waiting if other.id != job.id]
    others.insert(max(0, min(job.place - 1, len(others))), job)
    return [
        msgspec.structs.replace(other, place=place)
        for place, other in enumerate(others, 1)
        if other.place != place or other.id == job.id
    ]
