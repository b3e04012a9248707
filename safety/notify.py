"""Telling a person who is away: a command and a webhook, rate-limited, never in anyone's way.

One thread sends; the caller only queues. What cannot be delivered is logged and dropped: a
notification is a courtesy, the event itself is in the history. Within the interval an error passes
after what was no error; what is held back goes as one notice, the worst of it, when the interval
ends or the daemon does. Shapes: Slack (`text`), Discord
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
from dataclasses import asdict, dataclass, replace
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
LONGEST_S = 86_400.0  # a timer waits at most so long and looks again
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

    @property
    def at_once(self) -> bool:
        return self.level in LEVELS_AT_ONCE


@dataclass(slots=True)
class HeldBack:
    """What the rate limit holds back of one topic: the worst of it, the newest of equals."""

    notice: Notice
    count: int = 1
    timer: threading.Timer | None = None

    def add(self, notice: Notice) -> None:
        self.count += 1
        if notice.at_once or not self.notice.at_once:
            self.notice = notice


class Notifier:
    """Owns one thread, and a timer for each topic that is held back. `close` waits for what is
    queued, briefly."""

    def __init__(self, settings: Callable[[], Notify]) -> None:
        self._settings = settings
        self._waiting: queue.Queue[Notice | None] = queue.Queue(WAITING)
        self._last: dict[str, tuple[float, bool]] = {}  # by topic: when, and whether an error
        self._held: dict[str, HeldBack] = {}
        self._lock = threading.Lock()  # the caller and the timers
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
        self._thread.start()

    def tell(self, notice: Notice) -> bool:
        """Queue it; False when the rate limit or a full queue holds it back."""
        settings = self._settings()
        if not settings.command and not settings.webhook:
            return False
        with self._lock:
            held = self._held.get(notice.topic)
            if held is not None:
                held.add(notice)
            else:
                held = HeldBack(notice)
            _, was_error = self._last.get(notice.topic, (0.0, False))
            left_s = self._left_s(notice.topic, settings)
            if left_s > 0 and (was_error or not notice.at_once):
                self._held[notice.topic] = held
                self._arm(held, left_s)
                return False
            return self._queue(held)

    def _left_s(self, topic: str, settings: Notify) -> float:
        """Of the interval since the last notice of this topic."""
        if topic not in self._last:
            return 0.0
        return self._last[topic][0] + settings.min_interval_s - clock.monotonic_s()

    def _queue(self, held: HeldBack) -> bool:
        notice, topic = held.notice, held.notice.topic
        if held.count > 1:
            text = f"{notice.text} (and {held.count - 1} more of this kind)"
            notice = replace(notice, text=text)
        if held.timer is not None:
            held.timer.cancel()
        self._held.pop(topic, None)
        try:
            self._waiting.put_nowait(notice)
        except queue.Full:
            log.warning("notifications are stuck; one is given up: %s", printable(notice.title))
            return False
        self._last[topic] = (clock.monotonic_s(), notice.at_once)
        return True

    def _arm(self, held: HeldBack, left_s: float) -> None:
        if held.timer is not None and held.timer.is_alive():
            return
        held.timer = threading.Timer(min(left_s, LONGEST_S), self._flush, [held.notice.topic])
        held.timer.daemon = True
        try:
            held.timer.start()
        except RuntimeError as problem:  # no thread to be had: the next notice takes it along
            held.timer = None
            log.warning("notifications that are held back wait for the next one: %s", problem)

    def _flush(self, topic: str) -> None:
        """The interval is over, unless the setting grew meanwhile."""
        settings = self._settings()
        with self._lock:
            held = self._held.get(topic)
            if held is None:
                return
            held.timer = None
            left_s = self._left_s(topic, settings)
            if left_s > 0:
                self._arm(held, left_s)
            else:
                self._queue(held)

    def close(self, timeout_s: float = 5.0) -> None:
        with self._lock:
            for held in list(self._held.values()):
                self._queue(held)
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
