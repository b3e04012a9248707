"""An edit of `config.toml` is taken in once, for everyone, whatever fails meanwhile."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from trainer_tui.daemon.settings import Settings
from trainer_tui.queue import check
from trainer_tui.safety.workspace import Workspace


@pytest.fixture
def loaded(tmp_path: Path) -> tuple[Workspace, Settings]:
    made = Workspace(tmp_path / "ws")
    made.state.mkdir(parents=True)
    made.config_file.write_text("epochs = 2\n")
    settings = Settings(made)
    settings.load()
    return made, settings


def test_an_edit_that_could_not_be_read_for_want_of_descriptors_is_still_taken_in(loaded) -> None:
    made, settings = loaded
    made.config_file.write_text("epochs = 3\n")
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, usual[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            settings.reload()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
    assert settings.changed_on_disk()
    assert settings.reload() is None
    assert settings.config.epochs == 3 and not settings.changed_on_disk()


def test_training_and_intake_refuse_a_linked_file_alike(loaded, tmp_path: Path) -> None:
    made, settings = loaded
    (tmp_path / "kept.toml").write_text("epochs = 9\n")
    made.config_file.unlink()
    made.config_file.symlink_to(tmp_path / "kept.toml")
    assert "is a link" in (settings.reload() or "")
    assert check.settings_in_force(made).epochs == settings.in_force().epochs == 2
