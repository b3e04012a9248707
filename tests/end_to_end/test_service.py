"""The systemd unit that `service install` would write, and its refusals without systemd."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from person import COMMAND

from trainer_tui.tui.verbs import service
from trainer_tui.tui.workspace_setup import make_workspace

ROOT = Path(__file__).parents[2]


def test_the_unit_names_this_python_and_this_workspace_whatever_its_name() -> None:
    text = service.unit_text(Path('/home/me/my "50%" $ws'))
    line = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    assert '"/home/me/my \\"50%%\\" $$ws"' in line
    assert "Restart=on-failure" in text and "KillMode=mixed" in text


def test_two_workspaces_of_one_name_have_two_units() -> None:
    assert service.unit_name(Path("/a/ws")) != service.unit_name(Path("/b/ws"))


def test_the_unit_in_the_docs_says_the_same() -> None:
    documented = (ROOT / "docs" / "trainer-tui.service").read_text()
    ours = service.unit_text(Path("/w"))

    def settings(text: str) -> set[str]:
        lines = {line for line in text.splitlines() if "=" in line and not line.startswith("#")}
        return {line for line in lines if not line.startswith(("ExecStart=", "Description="))}

    assert settings(documented) == settings(ours)


def test_without_systemd_it_is_refused_with_a_sentence(tmp_path: Path) -> None:
    make_workspace(tmp_path / "ws")
    done = subprocess.run(
        [COMMAND, "-w", str(tmp_path / "ws"), "service", "install"],
        capture_output=True, text=True, check=False, env={**os.environ, "PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "no systemd" in done.stderr and "Traceback" not in done.stderr
