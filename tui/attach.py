"""Starting the screen on a real terminal: colours, what was seen last; and leaving it."""

from __future__ import annotations

import contextlib
import getpass
import os
import sys
from pathlib import Path

import msgspec

from trainer_tui.safety import durable
from trainer_tui.safety.workspace import Workspace
from trainer_tui.tui import glyphs, signals, terminal
from trainer_tui.tui.view import Lost, View

SEEN_FILE = "screen.json"


class Seen(msgspec.Struct, frozen=True):
    """What the screen remembers between visits."""

    last_event_id: int | None = None


def attach(workspace_root: Path, *, read_only: bool, socket: Path) -> int:
    """Run the screen on this terminal. 0 when the person left, 1 when the screen failed."""
    workspace = Workspace(workspace_root)
    answer = terminal.ask_background()  # the terminal answers while the imports run
    from trainer_tui.tui.control import TrainerApp
    from trainer_tui.tui.remote import Remote

    actor = f"the screen of {_user()}"
    light = answer.wait()
    app = TrainerApp(
        Remote(socket, actor),
        palette=terminal.palette("", light, os.environ),
        glyphs=glyphs.choose(encoding=sys.stdout.encoding or "ascii"),
        read_only=read_only,
        actor=actor,
        seen=_read_seen(workspace),
        pictures_folder=Path.cwd(),
        workspace=workspace.root,
    )
    app.run()
    if sys.stdout.isatty():
        sys.stdout.write(signals.RESTORE_TITLE)
    if app.return_code:
        return app.return_code
    if not app.read_only:
        _write_seen(workspace, app.view)
    print(leaving_words(app.view))
    return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in a container
        return str(os.getuid())


def leaving_words(view: View) -> str:
    """The exit line: what goes on without the screen."""
    if isinstance(view.link, Lost) or view.status is None:
        return "detached; the daemon did not answer. trainer-tui doctor looks for the reason."
    training = view.training
    match training.state:
        case "training" | "evaluating" | "saving" | "starting":
            at = f" (step {training.global_step})" if training.global_step else ""
            return f"detached; training goes on{at}. trainer-tui comes back to it."
        case state:
            return (
                f"detached; the daemon goes on, training is {state}. trainer-tui comes back to it."
            )


def _read_seen(workspace: Workspace) -> int | None:
    try:
        content = (workspace.state / SEEN_FILE).read_bytes()
        return msgspec.json.decode(content, type=Seen).last_event_id
    except (OSError, msgspec.DecodeError):
        return None


def _write_seen(workspace: Workspace, view: View) -> None:
    newest = max((event.id for event in view.said), default=None)
    if newest is None:
        return
    with contextlib.suppress(OSError):  # a memory of the last visit is worth no failure
        durable.replace_view(workspace.state / SEEN_FILE, msgspec.json.encode(Seen(newest)))
