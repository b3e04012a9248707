"""The systemd user unit: written, looked at, removed. Lingering is checked, because without it
logind ends every process of a user at the last logout.

Only `systemctl --user` and `loginctl` are called, with fixed arguments.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from trainer_tui.safety import durable
from trainer_tui.safety.errors import Refused
from trainer_tui.safety.workspace import Workspace

TIMEOUT_S = 20.0
_UNIT = """\
# Written by `trainer-tui service install` for {root}
[Unit]
Description=trainer-tui daemon for {root}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={python} -P -m trainer_tui.daemon --workspace {workspace}
WatchdogSec=30
WatchdogSignal=SIGKILL
Restart=on-failure
RestartPreventExitStatus=2 3
RestartSec=2
KillMode=mixed
TimeoutStopSec=330
UMask=0077
NoNewPrivileges=yes
OOMPolicy=continue

[Install]
WantedBy=default.target
"""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """`active`, `enabled`: systemd's words. `lingering`: None when it cannot be known."""

    unit: Path
    installed: bool
    active: str
    enabled: str
    lingering: bool | None
    hints: tuple[str, ...]


def unit_name(workspace: Workspace) -> str:
    """One unit for each workspace: `trainer-tui.service` would serve only one."""
    escaped = "".join(c if c.isalnum() else "-" for c in str(workspace.root)).strip("-")
    return f"trainer-tui-{escaped[-80:]}.service"


def unit_file(workspace: Workspace) -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "systemd" / "user" / unit_name(workspace)


def unit_text(workspace: Workspace, python: str = sys.executable) -> str:
    """The unit. Raises Refused: a path that a unit cannot carry."""
    for path in (str(workspace.root), python):
        if any(char in path for char in "\n\r\0"):
            raise Refused(f"{path!r} cannot stand in a systemd unit", "rename the folder")
    plain = str(workspace.root).replace("%", "%%")
    return _UNIT.format(root=plain, workspace=_quoted(str(workspace.root)), python=_quoted(python))


def _quoted(word: str) -> str:
    """systemd.service(5), "Command lines": double quotes, backslash escapes, %% and $$."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def install(workspace: Workspace) -> ServiceStatus:
    """Write the unit, enable and start it.

    Raises:
        Refused: there is no systemd for this user, or it refuses.
    """
    _require_systemd()
    file = unit_file(workspace)
    durable.make_directory(file.parent)
    durable.replace(file, unit_text(workspace).encode(), 0o644)
    _must("daemon-reload")
    _must("enable", "--now", unit_name(workspace))
    return status(workspace)


def remove(workspace: Workspace) -> ServiceStatus:
    """Stop (the trainer commits first), disable, delete the unit. Raises Refused."""
    _require_systemd()
    if unit_file(workspace).exists():
        _must("disable", "--now", unit_name(workspace))
        durable.remove_file(unit_file(workspace))
        _must("daemon-reload")
    return status(workspace)


def status(workspace: Workspace) -> ServiceStatus:
    """Never raises: without systemd everything is `unknown`."""
    file, name = unit_file(workspace), unit_name(workspace)
    linger = lingering()
    hints = []
    if linger is False:
        hints.append(
            "lingering is off: logind ends the daemon at your last logout;"
            f" turn it on with: loginctl enable-linger {_user()}"
        )
    if shutil.which("systemctl") is None:
        hints.append("systemd is not here: `trainer-tui` starts its own watchdog instead")
    return ServiceStatus(
        unit=file,
        installed=file.exists(),
        active=_ask("is-active", name),
        enabled=_ask("is-enabled", name),
        lingering=linger,
        hints=tuple(hints),
    )


def lingering() -> bool | None:
    """Whether this user's processes outlive the last logout; None: no logind here."""
    if shutil.which("loginctl") is None:
        return None
    done = _run("loginctl", "show-user", _user(), "--property=Linger", "--value")
    if done is None or done.returncode != 0:
        # A user without a session is unknown to logind unless lingering is on.
        mark = Path("/var/lib/systemd/linger") / _user()
        return mark.exists() if mark.parent.is_dir() else None
    return done.stdout.strip() == "yes"


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _require_systemd() -> None:
    done = _run("systemctl", "--user", "is-system-running")
    if done is None or "offline" in done.stdout or "Failed to connect" in done.stderr:
        raise Refused(
            "there is no systemd user manager here",
            "run the daemon in tmux or a container: trainer-tui --daemon",
        )


def _must(*words: str) -> None:
    done = _run("systemctl", "--user", *words)
    if done is None or done.returncode != 0:
        said = done.stderr.strip() if done else "systemctl does not answer"
        raise Refused(f"systemctl --user {' '.join(words)}: {said}")


def _ask(*words: str) -> str:
    done = _run("systemctl", "--user", *words)
    text = done.stdout.strip() if done else ""
    return text.splitlines()[0] if text else "unknown"


def _run(*command: str) -> subprocess.CompletedProcess[str] | None:
    """None when the command is missing or does not answer."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
