"""`trainer-tui service …`: a systemd user unit for this workspace, so that reboots are survived."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import typer

from trainer_tui.safety import durable
from trainer_tui.safety.errors import Refused
from trainer_tui.tui.context import context

app = typer.Typer(help="Run the daemon under systemd --user.", no_args_is_help=True)

UNIT = """\
[Unit]
Description=trainer-tui daemon of {workspace}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={python} -P -m trainer_tui.daemon --workspace {workspace}
WatchdogSec=30
WatchdogSignal=SIGKILL
# Exit 0 is final (asked to end), 2 and 3 would only happen again; the rest is a crash.
Restart=on-failure
RestartPreventExitStatus=2 3
RestartSec=2
# The daemon asks the trainer to commit and to exit; only then is the rest ended.
KillMode=mixed
Delegate=yes
TimeoutStopSec=330
UMask=0077
NoNewPrivileges=yes
OOMPolicy=continue

[Install]
WantedBy=default.target
"""


def unit_name(root: Path) -> str:
    """One unit per workspace: its folder's name, and its path's hash because names repeat."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", root.name).strip("-") or "workspace"
    return f"trainer-tui-{readable}-{hashlib.sha256(bytes(root)).hexdigest()[:6]}.service"


def unit_text(root: Path) -> str:
    return UNIT.format(python=_quoted(sys.executable), workspace=_quoted(str(root)))


def _quoted(text: str) -> str:
    """As systemd.service(5) reads a word: quoted, `%` and `$` doubled."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("%", "%%").replace("$", "$$") + '"'


def unit_file(root: Path) -> Path:
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "systemd" / "user" / unit_name(root)


def _systemctl(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    if not shutil.which("systemctl"):
        raise Refused(
            "there is no systemd on this machine",
            "trainer-tui starts a watchdog of its own; it lasts until the next reboot",
        )
    done = subprocess.run(
        ["systemctl", "--user", *words], capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise Refused(f"systemctl --user {' '.join(words)}: {done.stderr.strip()}")
    return done


@app.command()
def install() -> None:
    """Write the unit, enable and start it; says when lingering is off."""
    root = context.workspace.root
    if context.client.alive() and not unit_file(root).exists():
        raise Refused("a daemon runs already", "end it first: touch .stop in the workspace")
    _systemctl("--version")
    path = unit_file(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.replace(path, unit_text(root).encode(), 0o644)
    _systemctl("daemon-reload")
    _systemctl("enable", "--now", path.name)
    print(f"{path.name} runs; its file: {path}")
    if not lingers():
        print(f"  lingering is off, so logout ends it: loginctl enable-linger {_user()}")


@app.command()
def status() -> None:
    """What systemd says of the unit."""
    path = unit_file(context.workspace.root)
    if not path.exists():
        raise Refused(f"no unit is installed ({path})", "trainer-tui service install")
    print(_systemctl("status", "--no-pager", path.name, check=False).stdout.rstrip())
    print(f"lingering: {'on' if lingers() else 'off: logout ends it'}")


@app.command()
def remove() -> None:
    """Stop and remove the unit. The training stops with a checkpoint."""
    path = unit_file(context.workspace.root)
    if not path.exists():
        raise Refused(f"no unit is installed ({path})")
    _systemctl("disable", "--now", path.name)
    durable.remove_file(path)
    _systemctl("daemon-reload")
    print(f"{path.name} is removed")


def _user() -> str:
    return os.environ.get("USER") or str(os.geteuid())


def lingers() -> bool:
    """Whether logind keeps this user's services after logout; loginctl(1)."""
    if not shutil.which("loginctl"):
        return False
    asked = subprocess.run(
        ["loginctl", "show-user", _user(), "--property=Linger", "--value"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return asked.stdout.strip() == "yes"
