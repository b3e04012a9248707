"""Snapshot, then stream: what the daemon says, as news for `reduce`.

Invariant: after every (re)connection the whole state is read first and the stream is opened from
the event id that the snapshot names, so nothing between the two is missed; events that come twice
change nothing. Steps are posted one by one and gathered by the app.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec

from trainer_tui.safety import clock
from trainer_tui.safety.errors import NoDaemon
from trainer_tui.tui import reduce as news
from trainer_tui.tui.remote import Backend, Declined, Event, wait
from trainer_tui.tui.view import (
    DiskForecast,
    Evaluated,
    History,
    Jobs,
    JobsChanged,
    Live,
    Lost,
    Metrics,
    Said,
    SettingsDocument,
    Status,
    Step,
    Versions,
)

T = TypeVar("T")
SERIES = "loss,val_loss"
MORE_SERIES = ",learning_rate,grad_norm,tokens_per_s"  # of the second chart
JOBS_READ = 2000
HISTORY_READ = 200
POINTS_READ = 800
STEADY_S = 5.0  # a stream that lived so long begins the back-off anew, a good snapshot does not
Post = Callable[["news.News"], None]


class Feed:
    """Keeps a view fed. `seen` is the last event id of the visit before this one."""

    def __init__(self, backend: Backend, post: Post, seen: int | None = None) -> None:
        self._backend = backend
        self._post = post
        self._seen = seen
        self._last_id: str | None = None
        self._again: set[str] = set()
        self._reading: asyncio.Task[None] | None = None
        self.hurry = asyncio.Event()
        self.second_chart = False  # whether its series are wanted too
        self.from_step: int | None = None  # where the chart begins; None: at the first step

    async def run(self) -> None:
        """For ever; ends only by cancellation."""
        attempt = 0
        since_s = clock.monotonic_s()
        while True:
            live_s = None
            try:
                await self.read_all()
                live_s = clock.monotonic_s()
                self._post(news.LinkChanged(Live(), live_s))
                await self._stream()
            except (NoDaemon, Declined, msgspec.MsgspecError) as problem:
                if live_s is not None and clock.monotonic_s() - live_s >= STEADY_S:
                    attempt = 0
                if attempt == 0:
                    since_s = clock.monotonic_s()
                attempt += 1
                why = str(problem).splitlines()[0]
                if isinstance(problem, msgspec.MsgspecError):
                    why = f"the daemon speaks another version: {why}"
                lost = Lost(since_s=since_s, attempts=attempt, why=why)
                self._post(news.LinkChanged(lost, clock.monotonic_s()))
                await wait(attempt, self.hurry)

    async def read_all(self) -> None:
        """The whole state anew. The status comes first: it names the event to go on from."""
        status = await self._read("/v1/status", Status)
        if status.last_event_id is not None:
            self._last_id = str(status.last_event_id)
        self._post(news.StatusCame(status, clock.monotonic_s()))
        await asyncio.gather(
            self.read_jobs(), self.read_history(), self.read_metrics(), self.read_versions()
        )
        settings = await self._read("/v1/config", SettingsDocument)
        self._post(news.SettingsCame(settings.values.screen))
        self._seen = None  # only the first snapshot of a visit tells what was missed

    async def read_jobs(self) -> None:
        self._post(news.JobsCame(await self._read("/v1/jobs", Jobs, limit=JOBS_READ)))

    async def read_versions(self) -> None:
        self._post(news.VersionsCame(await self._read("/v1/versions", Versions)))

    async def read_history(self) -> None:
        history = await self._read("/v1/history", History, limit=HISTORY_READ)
        self._post(news.HistoryCame(history, self._seen))

    async def read_metrics(self) -> None:
        metrics = await self._read(
            "/v1/metrics",
            Metrics,
            series=SERIES + MORE_SERIES if self.second_chart else SERIES,
            points=POINTS_READ,
            from_step=self.from_step,
        )
        self._post(news.MetricsCame(metrics))

    async def read_disk(self) -> None:
        forecast = await self._read("/v1/disk", DiskForecast)
        self._post(news.DiskCame(forecast.seconds_left))

    async def _read(self, path: str, kind: type[T], **params: object) -> T:
        answer = await self._backend.get(path, params)
        return msgspec.json.decode(answer, type=kind)

    async def _stream(self) -> None:
        async for event in self._backend.events(self._last_id):
            if event.id:
                self._last_id = event.id
            if event.type == "reset":
                await self.read_all()
            else:
                self._hear(event)

    def _hear(self, event: Event) -> None:
        now_s = clock.monotonic_s()
        decode = msgspec.json.decode
        match event.type:
            case "status":
                self._post(news.StatusCame(decode(event.data, type=Status), now_s))
            case "step":
                step = decode(event.data, type=Step)
                self._post(news.StepsCame((step,), now_s))
            case "evaluated":
                self._post(news.EvaluatedCame(decode(event.data, type=Evaluated)))
            case "jobs":
                self._post(news.JobsChangedCame(decode(event.data, type=JobsChanged)))
            case "versions":
                self.again("versions")
            case "said":
                self._post(news.SaidCame(decode(event.data, type=Said)))
            case _:
                pass  # a newer daemon's event; what it changes also changes the status

    def again(self, what: str) -> None:
        """Read `jobs`, `versions` or `metrics` again soon; many wishes are one reading."""
        self._again.add(what)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_again())

    async def _read_again(self) -> None:
        readers = {
            "jobs": self.read_jobs,
            "versions": self.read_versions,
            "metrics": self.read_metrics,
            "history": self.read_history,
            "disk": self.read_disk,
        }
        try:
            while self._again:
                await readers[self._again.pop()]()
        except (NoDaemon, Declined, msgspec.MsgspecError):
            self._again.clear()  # the stream is failing too and will read everything anew
