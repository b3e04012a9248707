"""The systemd unit: one for each workspace, its paths quoted as systemd reads them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from trainer_tui.safety import service
from trainer_tui.safety.errors import Refused
from trainer_tui.safety.workspace import Workspace

ODD = Workspace(Path('/home/me/my 100% "odd" $work'))


def test_odd_paths_are_quoted_for_systemd():
    text = service.unit_text(ODD, "/opt/py thon")
    line = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    assert line == (
        'ExecStart="/opt/py thon" -P -m trainer_tui.daemon'
        ' --workspace "/home/me/my 100%% \\"odd\\" $$work"'
    )
    for wanted in (
        "Type=notify",
        "Restart=on-failure",
        "KillMode=mixed",
        "StartLimitIntervalSec=0",
    ):
        assert wanted in text
    with pytest.raises(Refused, match="cannot stand"):
        service.unit_text(Workspace(Path("/a\nExecStart=/bin/evil")))


def test_every_workspace_has_a_unit_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    first, second = (service.unit_file(Workspace(Path(f"/w/{name}"))) for name in "ab")
    assert first != second and first.parent == tmp_path / "systemd" / "user"


def test_systemd_accepts_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    unit = tmp_path / "trainer-tui-test.service"
    unit.write_text(service.unit_text(Workspace(tmp_path)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)], capture_output=True, text=True
    )
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert not complaints, complaints


def test_without_systemd_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(Refused, match="no systemd user manager"):
        service.install(Workspace(tmp_path))
    found = service.status(Workspace(tmp_path))
    assert not found.installed and found.active == "unknown"
    assert any("watchdog" in hint for hint in found.hints)
