"""Notices reach a real local HTTP server and a real command, once per interval and topic."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from daemon_harness import wait_for

from trainer_tui.safety import notify
from trainer_tui.safety.config import Notify
from trainer_tui.safety.notify import Notice, Notifier, request_for

NOTICE = Notice("incident", "error", "trainer ended", "no memory left", "gpubox", "2026-01-01")


class Server:
    def __init__(self, status: int = 200) -> None:
        self.got: list[dict[str, object]] = []
        self.arrived = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                outer.got.append(json.loads(self.rfile.read(size)))
                self.send_response(status)
                self.end_headers()
                outer.arrived.set()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


def test_a_webhook_gets_the_whole_event(server: Server) -> None:
    notifier = Notifier(lambda: Notify(webhook=server.url))
    assert notifier.tell(NOTICE)
    assert server.arrived.wait(10)
    notifier.close()
    assert server.got == [
        {
            "topic": "incident",
            "level": "error",
            "title": "trainer ended",
            "text": "no memory left",
            "host": "gpubox",
            "at": "2026-01-01",
        }
    ]


def test_the_same_topic_is_told_once_per_interval_and_the_rest_is_counted(server: Server) -> None:
    interval = {"s": 3600.0}
    notifier = Notifier(lambda: Notify(webhook=server.url, min_interval_s=interval["s"]))
    assert [notifier.tell(NOTICE) for _ in range(4)] == [True, False, False, False]
    interval["s"] = 1e-9
    assert notifier.tell(NOTICE)
    notifier.close()
    assert len(server.got) == 2
    assert "3 more" in str(server.got[1]["text"])


WARNING = replace(NOTICE, level="warning", title="a gradient spike")


def titles(server: Server) -> list[object]:
    return [got["title"] for got in server.got]


def test_an_error_passes_after_a_warning_and_a_warning_not_after_an_error(server: Server) -> None:
    notifier = Notifier(lambda: Notify(webhook=server.url, min_interval_s=3600))
    told = [notifier.tell(notice) for notice in (WARNING, NOTICE, WARNING, NOTICE)]
    assert told == [True, True, False, False]
    notifier.close()
    assert titles(server)[:2] == ["a gradient spike", "trainer ended"]


def test_what_was_held_back_goes_when_the_interval_ends(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst of it, with the number of the others, and nobody has to say something more."""
    interval, now = {"s": 0.5}, {"s": 100.0}
    monkeypatch.setattr(notify.clock, "monotonic_s", lambda: now["s"])
    notifier = Notifier(lambda: Notify(webhook=server.url, min_interval_s=interval["s"]))
    assert notifier.tell(NOTICE)
    held = replace(NOTICE, title="trainer ended again")
    assert [notifier.tell(notice) for notice in (WARNING, held, WARNING)] == [False] * 3
    now["s"] += 0.5
    wait_for(lambda: len(server.got) == 2)
    assert titles(server) == ["trainer ended", "trainer ended again"]
    assert "2 more" in str(server.got[1]["text"])
    interval["s"] = 3600
    assert not notifier.tell(WARNING), "what was flushed begins an interval"
    notifier.close()


def test_what_is_held_back_at_the_end_is_told(server: Server) -> None:
    notifier = Notifier(lambda: Notify(webhook=server.url, min_interval_s=3600))
    assert [notifier.tell(NOTICE), notifier.tell(NOTICE)] == [True, False]
    notifier.close()
    assert len(server.got) == 2


def test_an_interval_that_grew_meanwhile_holds(server: Server) -> None:
    interval = {"s": 3600.0}
    notifier = Notifier(lambda: Notify(webhook=server.url, min_interval_s=interval["s"]))
    notifier.tell(NOTICE)
    assert not notifier.tell(WARNING)
    notifier._flush("incident")
    assert notifier._waiting.qsize() <= 1 and "incident" in notifier._held
    interval["s"] = 1e-9
    notifier._flush("incident")
    assert notifier._held == {}
    notifier.close()
    assert titles(server) == ["trainer ended", "a gradient spike"]


def test_a_command_gets_the_event_on_standard_input(tmp_path: Path) -> None:
    target = tmp_path / "told.json"
    code = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"
    notifier = Notifier(lambda: Notify(command=(sys.executable, "-c", code, str(target))))
    assert notifier.tell(NOTICE)
    notifier.close(20)
    assert json.loads(target.read_text())["title"] == "trainer ended"


def test_a_dead_webhook_and_a_missing_command_hurt_nobody(caplog: pytest.LogCaptureFixture) -> None:
    settings = Notify(command=("no-such-command-here",), webhook="http://127.0.0.1:9/secret-token")
    notifier = Notifier(lambda: settings)
    assert notifier.tell(NOTICE)
    notifier.close(20)
    assert "notify.command" in caplog.text and "notify.webhook" in caplog.text
    assert "secret-token" not in caplog.text


class OddServer:
    """Answers its first request with something that is not HTTP, and the others well."""

    def __init__(self) -> None:
        self.seen = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/secret-token"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                connection.recv(65536)
                self.seen += 1
                good = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
                connection.sendall(b"garbage\r\n\r\n" if self.seen == 1 else good)


def test_an_odd_answer_does_not_end_notifications(caplog: pytest.LogCaptureFixture) -> None:
    server = OddServer()
    notifier = Notifier(lambda: Notify(webhook=server.url, min_interval_s=1e-9))
    assert notifier.tell(NOTICE) and notifier.tell(NOTICE)
    notifier.close(20)
    assert server.seen == 2
    assert "notify.webhook 127.0.0.1: garbage" in caplog.text
    assert "secret-token" not in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        Notify(webhook="http://127.0.0.1:9/secret token", min_interval_s=1e-9),
        Notify(webhook="http://127.0.0.1:secret/", min_interval_s=1e-9),
        Notify(webhook="http://[secret/", min_interval_s=1e-9),
        Notify(command=("secret\0",), min_interval_s=1e-9),
    ],
)
def test_a_setting_that_cannot_work_is_said_and_its_correction_does(
    wrong: Notify, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    settings = [wrong, Notify(webhook=server.url, min_interval_s=1e-9)]
    notifier = Notifier(lambda: settings[0])
    assert notifier.tell(NOTICE)
    wait_for(lambda: "notify." in caplog.text)
    del settings[0]
    assert notifier.tell(NOTICE)
    notifier.close(20)
    assert len(server.got) == 1
    assert "secret" not in caplog.text


def test_one_message_that_fails_in_an_unknown_way_is_said_and_the_next_is_sent(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = notify.request_for, threading.Event()

    def fails_once(url: str, notice: Notice) -> Any:
        if not failed.is_set():
            failed.set()
            raise KeyError(url)
        return real(url, notice)

    monkeypatch.setattr(notify, "request_for", fails_once)
    notifier = Notifier(lambda: Notify(webhook=server.url, min_interval_s=1e-9))
    assert notifier.tell(NOTICE) and notifier.tell(NOTICE)
    notifier.close(20)
    assert len(server.got) == 1
    assert "a notification was not sent: KeyError" in caplog.text
    assert server.url not in caplog.text


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://hooks.slack.com/services/T/B/x", b'"text"'),
        ("https://discord.com/api/webhooks/1/x", b'"content"'),
        ("https://ntfy.sh/mytopic", b"no memory left"),
    ],
)
def test_known_services_get_their_own_shape(url: str, expected: bytes) -> None:
    request = request_for(url, NOTICE)
    assert isinstance(request.data, bytes) and expected in request.data
