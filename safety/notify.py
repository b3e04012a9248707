"""Telling a person who is away: a command and a webhook, rate-limited, never in anyone's way.

One thread sends; the caller only queues. What cannot be delivered is logged and dropped: a
notification is a courtesy, the event itself is in the history. Shapes: Slack (`text`), Discord
(`content`), ntfy (plain text, title in a header), anything else gets the whole event as JSON.
"""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http.client import HTTPException, InvalidURL
from urllib.parse import urlsplit

from trainer_tui.safety import clock
from trainer_tui.safety.config import Notify
from trainer_tui.safety.text import printable

log = logging.getLogger("notify")
WAITING = 64
COMMAND_TIMEOUT_S = 30.0
WEBHOOK_TIMEOUT_S = 10.0
ANSWER_SHOWN = 200  # characters of an odd answer
LEVELS_AT_ONCE = frozenset({"error"})


@dataclass(frozen=True, slots=True)
class Notice:
    """`topic`: incident | queue_done | new_best | version | …; the rate limit is per topic."""

    topic: str
    level: str
    title: str
    text: str
    host: str
    at: str


class Notifier:
    """Owns one thread. `close` waits for what is queued, briefly."""

    def __init__(self, settings: Callable[[], Notify]) -> None:
        self._settings = settings
        self._waiting: queue.Queue[Notice | None] = queue.Queue(WAITING)
        self._last_s: dict[str, float] = {}
        self._held_back: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
        self._thread.start()

    def tell(self, notice: Notice) -> bool:
        """Queue it; False when the rate limit or a full queue holds it back."""
        settings = self._settings()
        if not settings.command and not settings.webhook:
            return False
        now = clock.monotonic_s()
        last = self._last_s.get(notice.topic)
        if last is not None and now - last < settings.min_interval_s:
            self._held_back[notice.topic] = self._held_back.get(notice.topic, 0) + 1
            return False
        more = self._held_back.pop(notice.topic, 0)
        if more:
            text = f"{notice.text} (and {more} more of this kind before it)"
            notice = Notice(**{**asdict(notice), "text": text})
        try:
            self._waiting.put_nowait(notice)
        except queue.Full:
            return False
        self._last_s[notice.topic] = now
        return True

    def close(self, timeout_s: float = 5.0) -> None:
        try:
            self._waiting.put(None, timeout=timeout_s)
        except queue.Full:
            log.warning("notifications are stuck; %d given up", self._waiting.qsize())
            return
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (notice := self._waiting.get()) is not None:
            try:
                self._send(notice)
            except Exception as problem:  # noqa: BLE001 - the thread's edge: the next one may pass
                # Not its words: they may hold the webhook's address, which is a secret.
                log.error("a notification was not sent: %s", type(problem).__name__)

    def _send(self, notice: Notice) -> None:
        settings = self._settings()
        if settings.command:
            _run_command(settings.command, notice)
        if settings.webhook:
            _post(settings.webhook, notice)


def _run_command(command: tuple[str, ...], notice: Notice) -> None:
    document = json.dumps(asdict(notice)).encode()
    try:
        done = subprocess.run(
            command, input=document, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as problem:  # ValueError: a NUL in it
        log.warning("notify.command: %s", problem)
        return
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip()[-200:]
        log.warning("notify.command exited %d: %s", done.returncode, printable(words))


def request_for(url: str, notice: Notice) -> urllib.request.Request:
    """The request that the service behind `url` understands."""
    host = urlsplit(url).hostname or ""
    line = f"{notice.title}: {notice.text}" if notice.text else notice.title
    headers = {"Content-Type": "application/json", "User-Agent": "trainer-tui"}
    if host.endswith("slack.com"):
        body = json.dumps({"text": f"[{notice.host}] {line}"}).encode()
    elif host.endswith(("discord.com", "discordapp.com")):
        body = json.dumps({"content": f"[{notice.host}] {line}"[:2000]}).encode()
    elif "ntfy" in host:
        title = f"[{notice.host}] {notice.title}".encode("ascii", "replace").decode()
        priority = "high" if notice.level == "error" else "default"
        headers |= {"Content-Type": "text/plain; charset=utf-8", "Title": title}
        headers["Priority"] = priority
        body = (notice.text or notice.title).encode()
    else:
        body = json.dumps(asdict(notice)).encode()
    return urllib.request.Request(url, data=body, headers=headers, method="POST")


def _post(url: str, notice: Notice) -> None:
    # A webhook's address is a secret (its path holds the token): only the host is logged.
    host = ""
    try:
        host = urlsplit(url).hostname or ""
        if urlsplit(url).scheme not in ("http", "https"):
            log.warning("notify.webhook must begin with http:// or https://")
            return
        with urllib.request.urlopen(request_for(url, notice), timeout=WEBHOOK_TIMEOUT_S):
            pass
    except (InvalidURL, ValueError):
        log.warning("notify.webhook %s: the address is malformed, such as by a space in it", host)
    except (OSError, HTTPException) as problem:
        words = str(problem) or type(problem).__name__
        log.warning("notify.webhook %s: %s", host, printable(words, ANSWER_SHOWN))
