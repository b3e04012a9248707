"""Verbs that work without a daemon: workspace, files, logs, charts, keys and measuring."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from trainer_tui.safety.errors import Refused
from trainer_tui.safety.workspace import Workspace
from trainer_tui.tui.context import context, print_json, run_module


def register(app: typer.Typer) -> None:
    for verb in (init, validate, doctor, demo, logs, watch, plot, bench, keys):
        app.command()(verb)


def init(
    folder: Path,
    model: Annotated[str, typer.Option(help="Hub id, or a model folder to use in place.")] = "",
) -> None:
    """Make a workspace: config.toml, inbox/, models/."""
    from trainer_tui.tui.workspace_setup import make_workspace

    space = make_workspace(folder, model)
    print(f"workspace {space.root}")
    print(f"  settings  {space.config_file}")
    print(f"  drop .jsonl chats into {space.inbox}, then: trainer-tui -w {folder}")


def validate(
    files: list[Path],
    as_json: Annotated[bool, typer.Option("--json")] = False,
    sample: Annotated[int, typer.Option(help="Only so many rows, for huge files.")] = 0,
) -> None:
    """Check files as intake would. Exit code 0: fine, 1: would be blocked, 2: cannot be read."""
    options = ["--json"] if as_json else []
    options += ["--sample", str(sample)] if sample else []
    options += ["--workspace", str(context.workspace.root)]
    worst = 0
    for file in files:
        worst = max(worst, run_module("trainer_tui.queue.report", str(file), *options))
    raise typer.Exit(worst)


def doctor(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """What works on this machine and what does not."""
    from trainer_tui.tui import doctor as examination

    findings = examination.examine(context)
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    else:
        print(examination.describe(findings))
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Where to make it.")] = Path("demo"),
    headless: Annotated[
        bool, typer.Option("--headless", help="No screen: progress lines.")
    ] = False,
    rows: Annotated[int, typer.Option(min=50, help="Rows of the longest file.")] = 1000,
) -> None:
    """Watch a tiny model learn syllogisms and sums, in about three minutes."""
    from trainer_tui.tui import demo as show

    raise typer.Exit(show.run(folder, headless=headless, rows=rows))


def logs(
    lines: Annotated[int, typer.Option("--lines", "-n", min=1)] = 50,
    which: Annotated[str, typer.Argument(help="daemon | trainer | watchdog")] = "daemon",
) -> None:
    """The end of a log."""
    file = _log_file(context.workspace, which)
    with file.open(encoding="utf-8", errors="replace") as stream:
        for line in deque(stream, maxlen=lines):
            print(line, end="")


def _log_file(space: Workspace, which: str) -> Path:
    found = sorted(path.stem for path in space.logs.glob("*.log")) if space.logs.is_dir() else []
    if which not in found:
        raise Refused(
            f"there is no log of {which!r}", f"there is: {', '.join(found) or 'none yet'}"
        )
    return space.logs / f"{which}.log"


def watch(
    plain: Annotated[
        bool, typer.Option("--plain", help="One line per change (the default).")
    ] = True,
) -> None:
    """One line per change, for logs and screen readers."""
    from trainer_tui.tui import watch as lines

    raise typer.Exit(lines.run(context.client))


def plot(
    series: Annotated[list[str] | None, typer.Argument(help="loss, val_loss, …")] = None,
    width: Annotated[int, typer.Option(min=20)] = 100,
    height: Annotated[int, typer.Option(min=5)] = 24,
) -> None:
    """A static chart of the history."""
    from trainer_tui.tui import plot as chart

    print(chart.draw(context.client, series or ["loss", "val_loss"], width, height))


def bench() -> None:
    """Measure this card: tokens/s, MFU, peak memory, the largest micro-batch that fits."""
    raise typer.Exit(
        run_module("trainer_tui.engine.bench", "--workspace", str(context.workspace.root))
    )


def keys() -> None:
    """Every action of the screen with its keys, as [screen.keys] has them."""
    from trainer_tui.safety.config import load
    from trainer_tui.tui import actions

    table, problems = actions.by_key(load(context.workspace.config_file).screen.keys)
    of_action: dict[str, list[str]] = {}
    for key, there in table.items():
        for action in there:
            of_action.setdefault(action.id, []).append(key)
    for action in actions.ACTIONS:
        where = f" (in {action.scope.value})" if action.scope else ""
        print(f"{action.id:<20} {' '.join(of_action.get(action.id, [])):<18} {action.help}{where}")
    for problem in problems:
        print(problem, file=sys.stderr)
    raise typer.Exit(1 if problems else 0)
