"""An answer to an edit of the settings says what is true of it."""

from __future__ import annotations

import errno
import os
from typing import Any

from daemon_harness import Harness, chat_rows, wait_for

SHUT = f"""
import pathlib
plain = pathlib.Path.read_bytes
def read_bytes(path):
    if path.name == "config.toml" and not path.stat().st_mode & 0o400:
        raise PermissionError({errno.EACCES}, {os.strerror(errno.EACCES)!r}, str(path))
    return plain(path)
pathlib.Path.read_bytes = read_bytes
"""


def edit(daemon: Harness, **values: Any) -> Any:
    return daemon.call("PATCH", "/v1/config", {"values": values})


def test_an_edit_of_the_api_waits_for_the_next_start_and_shows_no_token(serve) -> None:
    daemon = serve().start()
    said = edit(daemon, **{"api.listen": "127.0.0.1:1"}).json
    assert "api.listen is edited and acts when the daemon starts again" in said["text"]
    said = edit(daemon, **{"api.token": "s3cret"})
    assert b"s3cret" not in said.body
    assert [(p["key"], p["when"]) for p in said.json["pending"]] == [
        ("api.listen", "restart"),
        ("api.token", "restart"),
    ]
    assert "s3cret" not in str(daemon.status())
    wait_for(lambda: len(daemon.status()["config"]["pending"]) == 2)
    daemon.stop()
    assert daemon.start().get("/v1/config")["pending"] == []


def test_an_address_and_quiet_hours_that_are_none_are_refused_by_their_names(serve) -> None:
    daemon = serve().start()
    for key, value in (("api.listen", "x"), ("intake.quiet_hours", "25:00-99:00")):
        refused = edit(daemon, **{key: value})
        assert refused.status == 409 or refused.status == 422, refused
        assert f"{key} = {value!r}" in refused.json["detail"]
    assert edit(daemon, **{"intake.quiet_hours": "8:00–17:00"}).status == 200
    assert daemon.get("/v1/config")["problem"] is None


def test_settings_made_unreadable_are_a_problem_until_they_can_be_read_again(serve) -> None:
    daemon = serve(settings="save_steps = 77\n")
    daemon.prelude = SHUT
    daemon.start()
    file = daemon.workspace.config_file
    file.chmod(0)
    problem = wait_for(lambda: daemon.status()["config"]["problem"])
    assert "config.toml cannot be read: Permission denied" in problem
    assert daemon.said("the settings in force stay: ")
    assert daemon.get("/v1/config")["values"]["save_steps"] == 77
    assert not daemon.said("tried again in")
    file.chmod(0o600)
    wait_for(lambda: daemon.status()["config"]["problem"] is None)


def test_while_the_settings_are_broken_a_file_comes_in_under_the_last_good_ones(serve) -> None:
    daemon = serve().start()
    daemon.workspace.config_file.write_text("save_steps = 'often'\n")
    wait_for(lambda: daemon.status()["config"]["problem"])
    (daemon.workspace.inbox / "a.jsonl").write_bytes(chat_rows(3, "a"))
    daemon.until_job("a.jsonl", "completed")
