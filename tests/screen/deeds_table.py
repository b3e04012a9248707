"""What every action must come to: the change that reaches the daemon, or what is then to be seen.

`CHANGES` and `LOOKS` together name every action of the table; `REASONS` names every route of the
API that no action asks for, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trainer_tui.tui.view import Panel


def nothing(state: Any) -> None:
    pass


@dataclass(frozen=True)
class Case:
    """`prepare(state)` sets the fake daemon, `before` are keys that select, `answers` are typed
    into the dialogs one after the other. A change names its `request`, (method, path, body); what
    only looks has a `check(on)` that is false before and true after."""

    action: str
    prepare: Callable[[Any], None] = nothing
    before: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    request: tuple[str, str, dict[str, Any]] | None = None
    check: Callable[[Any], Any] | None = None
    name: str = field(default="")


def pending(state: Any) -> None:
    state.pending = [{"key": "max_length", "old": 4096, "new": 8192, "when": "needs_approval"}]


def untrained(state: Any) -> None:
    state.step = None


def settings(state: Any) -> None:
    state.settings = {"learning_rate": 2e-4}


def held(state: Any) -> None:
    state.jobs[1]["held"] = True


def paused(state: Any) -> None:
    state.state = state.intent = "paused"
    state.intent = "pause"


def times(state: Any) -> None:
    """Of a done file and the one in hand, among the points."""
    for index, point in enumerate(state.points):
        point["at"] = f"2026-11-24T{10 + index // 360:02d}:{index // 6 % 60:02d}:{index % 6}0.000Z"
    state.jobs[0]["started_at"] = "2026-11-24T11:00:00.000Z"
    state.jobs[-1]["started_at"] = "2026-11-24T10:30:00.000Z"
    state.jobs[-1]["finished_at"] = "2026-11-24T10:50:00.000Z"


def more_events(state: Any) -> None:
    for number in range(600):
        state.events.append(
            {"id": 4000 - number, "at": "2026-11-20T10:00:00.000Z", "level": "info",
             "topic": "job", "text": f"long ago {number}", "data": {}}
        )  # fmt: skip


def V(number: int, deed: str) -> str:
    return f"/v1/versions/{number}/{deed}"


TO = "/v1/training/"
CHANGES = [
    Case("pause", request=("POST", f"{TO}pause", {"release": False})),
    Case("pause", paused, request=("POST", f"{TO}resume", {}), name="resume"),
    Case("release", request=("POST", f"{TO}pause", {"release": True})),
    Case("add", answers=("/a.jsonl",), request=("POST", "/v1/jobs", {"path": "/a.jsonl",
                                                                  "priority": "normal"})),
    Case("stop", answers=("n",), request=("POST", f"{TO}stop", {"now": True})),
    Case("stop", answers=("f",), request=("POST", f"{TO}stop", {"now": False}), name="stop_file"),
    Case("stop", answers=("k",), request=("POST", f"{TO}skip", {"job": 31}), name="skip"),
    Case("stop", answers=("x", "kill"), request=("POST", f"{TO}kill", {}), name="stop_kill"),
    Case("kill", answers=("kill",), request=("POST", f"{TO}kill", {})),
    Case("move_down", request=("PATCH", "/v1/jobs/34", {"after": 32})),
    Case("move_up", before=("j",), request=("PATCH", "/v1/jobs/32", {"before": 34})),
    Case("move_top", before=("j",), request=("PATCH", "/v1/jobs/32", {"place": "top"})),
    Case("move_bottom", request=("PATCH", "/v1/jobs/34", {"place": "bottom"})),
    Case("raise", before=("j",), request=("PATCH", "/v1/jobs/32", {"priority": "high"})),
    Case("lower", request=("PATCH", "/v1/jobs/34", {"priority": "normal"})),
    Case("remove", request=("DELETE", "/v1/jobs/34", {})),
    Case("retry", before=("G", "k"), answers=("t",),
         request=("POST", "/v1/jobs/30/retry", {"accept": False})),
    Case("retry", before=("G",), request=("POST", "/v1/jobs/29/again", {}), name="again"),
    Case("hold", request=("POST", "/v1/jobs/34/hold", {})),
    Case("hold", held, request=("POST", "/v1/jobs/34/unhold", {}), name="unhold"),
    Case("postpone", answers=("",), request=("PATCH", "/v1/jobs/34", {"not_before": None})),
    Case("rate", answers=("0,5",), request=("POST", f"{TO}rate", {"factor": 0.5})),
    Case("checkpoint", request=("POST", f"{TO}checkpoint", {})),
    Case("version", answers=("tone",), request=("POST", "/v1/versions", {"description": "tone"})),
    Case("rollback", answers=("y",), request=("POST", V(42, "restore"), {})),
    Case("rollback", answers=("w",), request=("POST", V(42, "restore"), {"requeue": True}),
         name="rollback-requeue"),
    Case("rollback_weights", answers=("y",),
         request=("POST", V(42, "restore"), {"weights_only": True})),
    Case("rollback_one", answers=("y",),
         request=("POST", "/v1/versions/rollback", {"version": 41})),
    Case("pin", request=("POST", V(42, "pin"), {})),
    Case("pin", before=("v", "j", "j"), request=("POST", V(40, "unpin"), {}), name="unpin"),
    Case("verify", request=("POST", V(42, "verify"), {})),
    Case("delete_version", answers=("y",), request=("DELETE", "/v1/versions/42", {})),
    Case("undelete_version", answers=("",), request=("POST", V(7, "undelete"), {})),
    Case("emergency", answers=("", "y"),
         request=("POST", "/v1/versions/emergencies/3/restore", {})),
    Case("emergency", answers=("", "w"), name="emergency-requeue",
         request=("POST", "/v1/versions/emergencies/3/restore", {"requeue": True})),
    Case("export", answers=("", "w"), request=("POST", V(42, "export"), {"optimizer": False})),
    Case("backup", request=("POST", "/v1/backup", {"wait": False})),
    Case("backup_fetch", answers=("",), request=("POST", "/v1/backup/fetch/42", {})),
    Case("undo", request=("POST", "/v1/undo", {})),
    Case("redo", request=("POST", "/v1/redo", {})),
    Case("approve", pending, answers=("y",), request=("PATCH", "/v1/config", {"approve": True})),
    Case("setting", settings, answers=("learning_rate", ""),
         request=("PATCH", "/v1/config", {"values": {"learning_rate": 2e-4}})),
    Case("model", untrained, answers=("org/name",), request=("PATCH", "/v1/config", {})),
]  # fmt: skip


def shown(name: str) -> Callable[[Any], Any]:
    return lambda on: on.app.root.query_one(f"#{name}").display


def focused(panel: Panel) -> Callable[[Any], Any]:
    return lambda on: on.app.focus_now() is panel


def page(words: str) -> Callable[[Any], Any]:
    """A page is open and says so."""
    return lambda on: len(on.app.screen_stack) == 2 and words in on.page_text()


def told(words: str) -> Callable[[Any], Any]:
    return lambda on: words in on.text("statusline")


def selected(number: int) -> Callable[[Any], Any]:
    return lambda on: on.app.queue.job and on.app.queue.job.id == number


def look(**wanted: Any) -> Callable[[Any], Any]:
    return lambda on: all(getattr(on.app.loss.look, k) == v for k, v in wanted.items())


LOOKS = [
    Case("versions", check=shown("versions")),
    Case("diff", before=("v",), check=page("v041 → v042")),
    Case("compare", before=("v",), check=look(compare=42)),
    Case("compare_file", times, ("G",), check=lambda on: on.app.loss.look.earlier),
    Case("settings", settings, check=page("learning_rate = 0.0002")),
    Case("doctor", check=page("python")),
    Case("incidents", check=page("Nothing has gone wrong")),
    Case("older", more_events, check=told("older events, back to Nov 20")),
    Case("disk", check=page("full in")),
    Case("lineage", check=page("checkpoint-16000")),
    Case("backup_status", check=page("/mnt/second")),
    Case("find", check=lambda on: on.app.finding == ""),
    Case("next", check=selected(32)),
    Case("previous", check=selected(31)),
    Case("copy", check=told("copied #34")),
    Case("open", check=shown("inspector")),
    Case("panel_1", check=focused(Panel.LOSS)),
    Case("panel_2", before=("1",), check=focused(Panel.QUEUE)),
    Case("panel_3", check=focused(Panel.VERSIONS)),
    Case("panel_4", check=focused(Panel.EVENTS)),
    Case("panel_5", check=focused(Panel.MACHINE)),
    Case("panel_6", check=focused(Panel.INSPECTOR)),
    Case("next_panel", check=focused(Panel.EVENTS)),
    Case("previous_panel", check=focused(Panel.LOSS)),
    Case("down", check=selected(32)),
    Case("up", check=selected(31)),
    Case("page_down", check=selected(29)),
    Case("page_up", check=selected(31)),
    Case("first", check=selected(31)),
    Case("last", check=selected(29)),
    Case("zoom", check=lambda on: on.app.root.query_one("#body").has_class("solo")),
    Case("back", before=("z",),
         check=lambda on: not on.app.root.query_one("#body").has_class("solo")),
    Case("log_axis", before=("1",), check=look(log=True)),
    Case("ema", before=("1",), check=look(ema=3)),
    Case("follow", before=("1",), check=look(follow=False)),
    Case("cursor_left", before=("1",), check=lambda on: on.app.loss.look.cursor),
    Case("cursor_right", before=("1",), check=lambda on: on.app.loss.look.cursor),
    Case("zoom_in", before=("1",), check=lambda on: on.app.loss.look.window),
    Case("zoom_out", before=("1", "<", "<"), check=lambda on: on.app.loss.look.window > 5000),
    Case("palette", check=lambda on: len(on.app.screen_stack) == 2),
    Case("help", check=page("Move the job down or up")),
    Case("mouse", check=lambda on: not on.app.mouse_on),
    Case("repaint", check=lambda on: on.app.repainted),
    Case("picture", check=told("saved")),
    Case("chart_picture", check=told("-loss-1.svg")),
    Case("theme", check=lambda on: on.app.palette == "light"),
    Case("quit", check=lambda on: on.app.left),
]  # fmt: skip

# Routes that no action asks for. What the screen reads by itself is checked, too.
BY_ITSELF = {
    ("get", "/v1/status"), ("get", "/v1/jobs"), ("get", "/v1/versions"), ("get", "/v1/history"),
    ("get", "/v1/metrics"), ("get", "/v1/config"), ("get", "/v1/events"), ("get", "/v1/disk"),
    ("get", "/v1/jobs/{job_id}/report"), ("get", "/v1/incidents"),
}  # fmt: skip
REASONS = {
    ("get", "/v1/ping"): "the watchdog's question",
    ("get", "/metrics"): "for Prometheus",
    ("get", "/v1/jobs/{job_id}"): "the list has the same, and its changes come by themselves",
    ("get", "/v1/versions/{number}/files/{name}"): "for an inference machine; export is a copy",
}
