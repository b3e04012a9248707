"""The one table of actions. Bindings, footer, help, palette and the README's keys come from it.

Invariant: ids are unique; a key belongs to one action per scope, so a press has one meaning.
`python -m trainer_tui.tui.actions` prints the table for the README.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer_tui.tui import deeds as do
from trainer_tui.tui import deeds_keeping as keeping
from trainer_tui.tui import deeds_look as look
from trainer_tui.tui import deeds_settings as settings
from trainer_tui.tui import deeds_training as training
from trainer_tui.tui import deeds_versions as versions
from trainer_tui.tui import situation as can
from trainer_tui.tui.situation import Situation, may_change
from trainer_tui.tui.view import Panel

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp

Check = Callable[[Situation], str | None]
Run = Callable[["TrainerApp"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that can be done.

    Attributes:
        keys: Textual's names or single characters; the first is the one shown.
        scope: the panel that must have the focus for the key; None: anywhere.
        guard: "undoable", "guarded" (asks first) or "" (changes nothing lasting).
        footer: rank in the footer, 1 first; 0 is not shown there.
        shown, pair: keys and words where this action stands for its opposite too.
        hidden: left out of help and README, because another stands for it.
    """

    id: str
    keys: tuple[str, ...]
    label: str
    help: str
    run: Run
    check: Check | None = None
    changes: bool = False
    scope: Panel | None = None
    guard: str = ""
    footer: int = 0
    shown: str = ""
    pair: str = ""
    hidden: bool = False

    def why_not(self, at: Situation) -> str | None:
        """None when it can be done now, else the reason."""
        if self.changes and (reason := may_change(at)):
            return reason
        return self.check(at) if self.check else None

    @property
    def words(self) -> str:
        """For help and README."""
        return self.pair or self.help

    @property
    def keys_shown(self) -> str:
        return self.shown or " ".join(KEY_WORDS.get(key, key) for key in self.keys[:1])


KEY_WORDS = {
    "escape": "esc", "shift+up": "shift+↑", "shift+down": "shift+↓", "left": "←", "right": "→",
    "up": "↑", "down": "↓", "pageup": "pgup", "pagedown": "pgdn",
}  # fmt: skip

_Q, _L, _V = Panel.QUEUE, Panel.LOSS, Panel.VERSIONS

_PANELS = (Panel.LOSS, Panel.QUEUE, Panel.VERSIONS, Panel.EVENTS, Panel.MACHINE, Panel.INSPECTOR)

ACTIONS: tuple[Action, ...] = (
    Action("pause", ("p",), "Pause", "Pause after this step, or resume", training.pause,
           can.pausable, changes=True, guard="undoable", footer=1),
    Action("release", (), "Pause, free the GPU", "Pause and free the GPU's memory",
           training.pause_and_release, can.pausable, changes=True, guard="undoable"),
    Action("add", ("A",), "Add a file…", "Add a file by its path", do.add_file, changes=True),
    Action("stop", ("s",), "Stop…", "Stop after this file, or now; skip this file; kill (typed)",
           training.stop, can.stoppable, changes=True, guard="guarded", footer=2),
    Action("kill", (), "Kill the trainer…", "Kill the trainer at once: says what is lost, is typed",
           training.kill, can.killable, changes=True, guard="guarded"),
    Action("move_down", ("J", "shift+down"), "Move", "Move the job down", do.move_down,
           can.waiting_job, changes=True, scope=_Q, guard="undoable", footer=3, shown="J/K",
           pair="Move the job down or up; also shift+arrows, or drag it"),
    Action("move_up", ("K", "shift+up"), "Move up", "Move the job up", do.move_up,
           can.waiting_job, changes=True, scope=_Q, guard="undoable", hidden=True),
    Action("move_top", ("T",), "To the top", "Move the job to the top", do.move_top,
           can.waiting_job, changes=True, scope=_Q, guard="undoable", shown="T B",
           pair="To the top or bottom of its priority"),
    Action("move_bottom", ("B",), "To the bottom", "Move the job to the bottom", do.move_bottom,
           can.waiting_job, changes=True, scope=_Q, guard="undoable", hidden=True),
    Action("raise", ("+", "="), "Priority", "Raise the job's priority", do.raise_priority,
           can.waiting_job, changes=True, scope=_Q, guard="undoable", footer=4, shown="+/-",
           pair="Raise or lower the job's priority"),
    Action("lower", ("-",), "Lower", "Lower the job's priority", do.lower_priority,
           can.waiting_job, changes=True, scope=_Q, guard="undoable", hidden=True),
    Action("remove", ("x",), "Remove", "Remove the job; its file is kept in the trash",
           do.remove, can.removable, changes=True, scope=_Q, guard="undoable"),
    Action("retry", ("r",), "Retry", "Retry a failed job, with the fix; or train a done one again",
           do.retry, can.retriable, changes=True, scope=_Q, guard="undoable"),
    Action("hold", ("h",), "Hold", "Hold the job back, or let it go", do.hold,
           can.waiting_job, changes=True, scope=_Q, guard="undoable"),
    Action("postpone", (), "Not before…", "Let the job wait until a time", do.postpone,
           can.waiting_job, changes=True, guard="undoable"),
    Action("compare_file", (), "Compare file", "Lay the loss of the selected done file over the"
           " one in hand", do.compare_file, can.done_job),
    Action("checkpoint", ("c",), "Checkpoint", "Save a checkpoint now", training.checkpoint,
           can.saveable, changes=True),
    Action("rate", (), "Learning rate…", "Multiply the learning rate from now on", training.rate,
           can.saveable, changes=True),
    Action("version", ("C",), "Make version", "Make a version, with a description",
           versions.make_version, can.saveable, changes=True),
    Action("versions", ("v",), "Versions", "Show the versions", versions.show_versions, footer=5),
    Action("rollback", ("R",), "Roll back…", "Roll back to a version: shows what changes first",
           versions.roll_back, can.has_version, changes=True, guard="guarded"),
    Action("rollback_weights", (), "Roll back the weights…", "Roll back without the optimizer: a"
           " way round a damaged one", versions.roll_back_weights, can.has_version, changes=True,
           guard="guarded"),
    Action("rollback_one", (), "Roll back one…", "Roll back to the version before the state of"
           " now", versions.roll_back_one, can.has_version, changes=True, guard="guarded"),
    Action("diff", ("D",), "Diff", "Compare the version with the one before", versions.diff_version,
           can.has_version, scope=_V),
    Action("pin", (), "Pin version", "Keep the version for ever, or no longer", versions.pin,
           can.has_version, changes=True, guard="undoable"),
    Action("compare", (), "Compare", "Draw the version's validation loss in the chart",
           versions.compare, can.has_version),
    Action("verify", (), "Verify version", "Check the version's files against their hashes",
           versions.verify, can.has_version, changes=True),
    Action("delete_version", (), "Delete version…", "Delete the selected version: asks first",
           versions.delete_version, can.has_version, changes=True, guard="guarded"),
    Action("undelete_version", (), "Bring a version back…", "Bring a deleted version back from the"
           " trash", keeping.undelete_version, changes=True),
    Action("lineage", (), "Lineage", "Where the model comes from: versions and restores as a graph",
           keeping.show_lineage),
    Action("emergency", (), "Undo a restore…", "Go back to what was there before a restore",
           keeping.restore_emergency, changes=True, guard="guarded"),
    Action("export", (), "Export…", "Copy the version to a new folder, for another machine",
           keeping.export_version, can.trained_version, changes=True),
    Action("backup", (), "Back up now", "Copy the versions to the second location now",
           keeping.back_up, changes=True),
    Action("backup_status", (), "Backups", "What the second location has, what is copied now",
           keeping.show_backup),
    Action("backup_fetch", (), "Fetch a version…", "Bring a lost or damaged version back from the"
           " second location", keeping.fetch_version, changes=True),
    Action("undo", ("u",), "Undo", "Undo the last change", do.undo, changes=True, footer=9),
    Action("redo", ("ctrl+r",), "Redo", "Do again what was undone", do.redo, changes=True),
    Action("approve", ("a",), "Approve…", "Approve a pending config change: shows it first",
           settings.approve, can.pending_config, changes=True, guard="guarded"),
    Action("setting", (), "Change a setting…", "Change a setting of config.toml, checked by its"
           " schema", settings.change_setting, changes=True),
    Action("settings", (), "Settings", "Show every setting", settings.show_settings),
    Action("model", ("b",), "Model…", "Choose the model, before the first step",
           settings.choose_model, can.untrained, changes=True),
    Action("doctor", ("d",), "Doctor", "What works on this machine and what does not",
           look.show_doctor),
    Action("incidents", (), "Incidents", "What went wrong, the evidence, what was done",
           look.show_incidents),
    Action("older", (), "Older events", "Events from before those shown, or all that match the"
           " filter", look.older_events),
    Action("disk", (), "Disk", "Room on the disk, and what would go when it is short",
           look.show_disk),
    Action("find", ("/",), "Find", "Show only what matches in the focused panel", do.find,
           footer=6),
    Action("next", ("n",), "Next", "Next match or row", do.next_found, shown="n N",
           pair="Next or previous match"),
    Action("previous", ("N",), "Previous", "Previous match or row", do.previous_found,
           hidden=True),
    Action("copy", ("y",), "Copy", "Copy the row (OSC 52, with a file as fall-back)", do.copy),
    Action("open", ("enter",), "Open", "Show all there is about the selection", do.open_selected),
    *(
        Action(f"panel_{number}", (str(number),), "Panel", "Focus a panel, by its number",
               do.focus_panel(panel), shown="1-6", hidden=number > 1)
        for number, panel in enumerate(_PANELS, 1)
    ),
    Action("next_panel", ("tab",), "Next panel", "Focus the next panel", do.next_panel),
    Action("previous_panel", ("shift+tab",), "Previous panel", "Focus the panel before",
           do.previous_panel, hidden=True),
    Action("down", ("j", "down"), "Down", "Select the row below", do.by_rows(1), shown="j k arrows",
           pair="Move; also pgup and pgdn"),
    Action("up", ("k", "up"), "Up", "Select the row above", do.by_rows(-1), hidden=True),
    Action("page_down", ("pagedown",), "Page down", "A page down", do.by_rows(10), hidden=True),
    Action("page_up", ("pageup",), "Page up", "A page up", do.by_rows(-10), hidden=True),
    Action("first", ("g", "home"), "First", "Go to the first row", do.first, shown="g G",
           pair="Go to the first or last row"),
    Action("last", ("G", "end"), "Last", "Go to the last row", do.last, hidden=True),
    Action("zoom", ("z",), "Zoom", "Give the focused panel the whole screen, or back", do.zoom),
    Action("back", ("escape",), "Back", "Back: closes, clears, un-zooms", do.back),
    Action("log_axis", ("l",), "Log axis", "Loss on a logarithmic axis", do.log_axis, scope=_L),
    Action("ema", ("e",), "Smoothing", "Smoothing: EMA 0, .6, .9, .99", do.ema, scope=_L),
    Action("follow", ("f",), "Follow", "Follow the newest step or hold still", do.follow, scope=_L),
    Action("cursor_left", ("left",), "Cursor", "Cursor with read-out", do.cursor(-1), scope=_L,
           shown="← →"),
    Action("cursor_right", ("right",), "Cursor right", "Cursor right", do.cursor(1), scope=_L,
           hidden=True),
    Action("zoom_in", ("<", ","), "Zoom", "Fewer steps in the chart", do.chart_zoom(0.5),
           scope=_L, shown="< >", pair="Fewer or more steps in the chart; also the wheel"),
    Action("zoom_out", (">", "."), "Zoom out", "More steps in the chart", do.chart_zoom(2.0),
           scope=_L, hidden=True),
    Action("palette", (":", "ctrl+p"), "Palette", "Every action, and why one is disabled",
           do.palette),
    Action("help", ("?",), "Help", "Keys of the focused panel", do.show_help, footer=7),
    Action("mouse", ("m",), "Mouse", "Mouse off, so that the terminal can select; and on again",
           do.mouse),
    Action("repaint", ("ctrl+l",), "Repaint", "Draw the whole screen again", do.repaint),
    Action("picture", (), "Save a picture", "Save the screen as SVG, and as PNG", look.picture),
    Action("chart_picture", (), "Save the chart", "Save the chart as SVG, and as PNG",
           look.chart_picture),
    Action("theme", (), "Light or dark", "Switch the colours", do.theme),
    Action("quit", ("q", "ctrl+c"), "Detach", "Leave; training goes on", do.detach, footer=8,
           shown="q"),
)  # fmt: skip

BY_ID = {action.id: action for action in ACTIONS}


def for_key(key: str, focus: Panel | None, keys: dict[str, list[Action]]) -> Action | None:
    """What `key` means with the focus there: the panel's own action first, then the general one,
    then one that belongs to another panel (which will say so)."""
    candidates = keys.get(key, [])
    own = [action for action in candidates if action.scope is not None and action.scope is focus]
    general = [action for action in candidates if action.scope is None]
    return next(iter(own or general or candidates), None)


def by_key(rebound: dict[str, str]) -> tuple[dict[str, list[Action]], list[str]]:
    """Actions by key, with the person's own keys (`id = "key key"`), and what is wrong in them."""
    problems = [f"[screen.keys] {name}: no such action" for name in rebound if name not in BY_ID]
    table: dict[str, list[Action]] = {}
    for action in ACTIONS:
        keys = tuple(rebound[action.id].split()) if action.id in rebound else action.keys
        for key in keys:
            if any(other.scope is action.scope for other in table.get(key, [])):
                problems.append(f"[screen.keys] {action.id}: {key} is taken")
                continue
            table.setdefault(key, []).append(action)
    return table, problems


def footer_actions(focus: Panel | None) -> list[Action]:
    """What the footer offers, most wanted first."""
    shown = [action for action in ACTIONS if action.footer]
    return sorted(shown, key=lambda action: action.footer)


def help_actions(focus: Panel | None) -> list[Action]:
    """Keys for the help page: those of the focused panel first, then the general ones."""
    keyed = [action for action in ACTIONS if action.keys and not action.hidden]
    own = [action for action in keyed if action.scope is not None and action.scope is focus]
    return own + [action for action in keyed if action.scope is None]


def markdown() -> str:
    """The README's key table."""
    lines = ["| key | act | |", "|---|---|---|"]
    for action in ACTIONS:
        if not action.keys or action.hidden:
            continue
        where = f" (in {action.scope.value})" if action.scope else ""
        keys = action.keys_shown.replace("|", "\\|")
        lines.append(f"| `{keys}` | {action.words}{where} | {action.guard} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
