"""The `trainer-tui` command: one entry for the screen, the daemon and every verb.

Verbs never import Textual, and never another room: they ask the daemon, or start the owning
room's module as a child. Exit codes: 0 done, 1 refused, 2 usage, 3 no daemon.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from trainer_tui.safety.errors import TrainerTuiError
from trainer_tui.safety.workspace import Workspace
from trainer_tui.tui.client import Client
from trainer_tui.tui.context import context, ensure_daemon, module_command
from trainer_tui.tui.verbs import backup, config, jobs, local, service, training, versions

app = typer.Typer(
    name="trainer-tui",
    help="Keeps one small language model learning for ever. Alone: opens the screen.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
training.register(app)
local.register(app)
app.add_typer(jobs.app, name="queue")
app.add_typer(versions.app, name="versions")
app.add_typer(backup.app, name="backup")
app.add_typer(config.app, name="config")
app.add_typer(service.app, name="service")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata  # a tenth of a verb's start

        print(f"trainer-tui {metadata.version('trainer-tui')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    invoked: typer.Context,
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-w", help="The workspace; default: the nearest.")
    ] = None,
    daemon: Annotated[
        bool, typer.Option("--daemon", help="Run the daemon here, without the screen.")
    ] = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Watch; no key changes anything.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    context.explicit = workspace
    if invoked.invoked_subcommand is not None:
        return
    space = context.workspace
    if daemon:
        _become_daemon(space)
    if not sys.stdout.isatty():
        raise TrainerTuiError(
            "the screen needs a terminal",
            "for scripts: trainer-tui status --json; trainer-tui watch",
        )
    ensure_daemon(space)
    from trainer_tui.tui import app as screen

    raise typer.Exit(screen.run(space.root, socket=space.socket, read_only=read_only))


def _become_daemon(space: Workspace) -> NoReturn:
    """Under our watchdog, so that a crash is answered; systemd plays that part itself."""
    module, options = "trainer_tui.safety.watchdog", ["--foreground"]
    if "NOTIFY_SOCKET" in os.environ or Client(space.socket).alive():  # who is there, it says
        module, options = "trainer_tui.daemon", []
    command = module_command(module, "--workspace", str(space.root), *options)
    os.execv(command[0], command)


def main() -> None:
    """Console entry. Errors a user can act on are a sentence on stderr and an exit code."""
    try:
        app()
    except TrainerTuiError as problem:
        print(f"trainer-tui: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
