"""What the screen knows, as frozen data: the API's documents and what has been heard since.

Invariant: nothing here is ever changed in place; `reduce` makes the next view from the last.
Unknown fields of the API are ignored, absent ones are None: neighbouring versions get along.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from trainer_tui.tui.findings import Finding


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object of the API."""


class Daemon(Document, frozen=True, kw_only=True):
    pid: int | None = None
    version: str = ""
    started_at: str | None = None
    uptime_s: float | None = None
    host: str = ""
    workspace: str = ""
    viewers: int | None = None


class Intent(Document, frozen=True, kw_only=True):
    training: str = "run"
    by: str | None = None
    at: str | None = None
    why: str | None = None


class Current(Document, frozen=True, kw_only=True):
    """The job in hand."""

    id: int
    name: str = ""
    step: int | None = None
    steps: int | None = None
    fraction: float | None = None
    epoch: int | None = None
    epochs: int | None = None


class Training(Document, frozen=True, kw_only=True):
    state: str = "starting"
    reason: str | None = None
    intent: Intent = Intent()
    phase: str | None = None
    phase_age_s: float | None = None
    trainer_pid: int | None = None
    restarts: int | None = None
    global_step: int | None = None
    lineage: int | None = None
    epoch: float | None = None
    checkpoint: str | None = None
    job: Current | None = None
    loss: float | None = None
    loss_ema: float | None = None
    val_loss: float | None = None
    best_val_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    supervised_tokens_per_s: float | None = None
    step_s: float | None = None
    mfu: float | None = None
    tokens_seen: float | None = None
    supervised_tokens_seen: float | None = None
    eta_job_s: float | None = None
    eta_job_p90_s: float | None = None
    eta_queue_s: list[float | None] | None = None
    last_sample_at: str | None = None
    last_sample_age_s: float | None = None
    unsaved_steps: int | None = None


class Model(Document, frozen=True, kw_only=True):
    name: str | None = None
    parameters: float | None = None
    device: str | None = None
    precision: str | None = None
    attention: str | None = None
    latest_version: int | None = None


class QueueCounts(Document, frozen=True, kw_only=True):
    waiting: int = 0
    high: int = 0
    normal: int = 0
    low: int = 0
    processing: int = 0
    recently_completed: int = 0
    failed: int = 0


class Gpu(Document, frozen=True, kw_only=True):
    index: int = 0
    name: str = "GPU"
    utilisation_percent: float | None = None
    memory_used_bytes: float | None = None
    memory_total_bytes: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None


class Machine(Document, frozen=True, kw_only=True):
    gpus: list[Gpu] = []
    gpu_problem: str | None = None
    cores: int | None = None
    load_percent: float | None = None
    memory_used_bytes: float | None = None
    memory_total_bytes: float | None = None
    swap_used_bytes: float | None = None
    disk_used_bytes: float | None = None
    disk_free_bytes: float | None = None
    disk_total_bytes: float | None = None
    disk_place: str = ""


class ConfigState(Document, frozen=True, kw_only=True):
    hash: str | None = None
    problem: Any = None
    pending: list[Any] = []


class Status(Document, frozen=True, kw_only=True):
    """`GET /v1/status`."""

    revision: int = 0
    now: str | None = None
    last_event_id: int | None = None
    daemon: Daemon = Daemon()
    training: Training = Training()
    model: Model | None = None
    queue: QueueCounts = QueueCounts()
    machine: Machine | None = None
    config: ConfigState = ConfigState()


class Trouble(Document, frozen=True, kw_only=True):
    """Why a job failed."""

    class_: str | None = msgspec.field(default=None, name="class")
    message: str | None = None
    hint: str | None = None


class Job(Document, frozen=True, kw_only=True):
    id: int
    name: str = ""
    state: str = "waiting"
    priority: str = "normal"
    place: int | None = None
    rows: int | None = None
    rejected_rows: int | None = None
    bytes: float | None = None
    tokens: float | None = None
    supervised_tokens: float | None = None
    steps: int | None = None
    verdict: str = "unchecked"
    summary: str | None = None
    attempts: int = 0
    held: bool = False
    not_before: str | None = None
    added_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    seconds: float | None = None
    fraction: float | None = None
    added_by: str | None = None
    eta_s: list[float | None] | None = None
    eta_p90_s: list[float | None] | None = None
    why_waiting: str | None = None
    error: Trouble | None = None
    val_before: float | None = None
    val_after: float | None = None
    trained_rows: int | None = None
    trained_tokens: float | None = None


class Jobs(Document, frozen=True, kw_only=True):
    revision: int = 0
    jobs: list[Job] = []
    total: int = 0


class Version(Document, frozen=True, kw_only=True):
    number: int
    name: str = ""
    description: str | None = None
    created_at: str | None = None
    automatic: bool = False
    global_step: int | None = None
    lineage: int | None = None
    parent: int | str | None = None
    tokens: float | None = None
    files: list[dict[str, Any]] | None = None
    validation: dict[str, float | None] | None = None
    bytes: float | None = None
    pinned: bool = False
    weights_only: bool = False
    live: bool = False
    state: str = "ok"

    @property
    def loss(self) -> float | None:
        """Validation loss on the fixed set, else on whichever set was measured."""
        measured = self.validation or {}
        fixed = measured.get("fixed")
        return fixed if fixed is not None else next(iter(measured.values()), None)


class Versions(Document, frozen=True, kw_only=True):
    versions: list[Version] = []
    best: int | None = None  # on the fixed set in use
    current_lineage: int | None = None


class DiskForecast(Document, frozen=True, kw_only=True):
    """What the screen wants of `GET /v1/disk`. None: the disk does not fill."""

    seconds_left: float | None = None


class ScreenSettings(Document, frozen=True, kw_only=True):
    """The `[screen]` section of config.toml."""

    theme: str = "trainer"
    read_only: bool = False
    keys: dict[str, str] = {}


class SettingsValues(Document, frozen=True, kw_only=True):
    screen: ScreenSettings = ScreenSettings()


class SettingsDocument(Document, frozen=True, kw_only=True):
    """What the screen wants of `GET /v1/config`."""

    values: SettingsValues = SettingsValues()


class Said(Document, frozen=True, kw_only=True):
    """One line of what happened."""

    id: int = 0
    at: str | None = None
    level: str = "info"
    topic: str | None = None
    text: str = ""
    data: Any = None


class History(Document, frozen=True, kw_only=True):
    events: list[Said] = []


class Point(Document, frozen=True, kw_only=True):
    """A bucket of one series: one step, or several drawn as one."""

    step: float
    mean: float | None = None
    min: float | None = None
    max: float | None = None
    at: str | None = None


class Metrics(Document, frozen=True, kw_only=True):
    series: dict[str, list[Point]] = {}
    from_step: float | None = None
    to_step: float | None = None


class Step(Document, frozen=True, kw_only=True):
    """A `step` event."""

    step: int
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    supervised_tokens_per_s: float | None = None
    at: str | None = None


class Evaluated(Document, frozen=True, kw_only=True):
    step: int
    series: str = "val_loss"
    loss: float | None = None
    rows: int | None = None
    whole: bool | None = None
    at: str | None = None


class JobsChanged(Document, frozen=True, kw_only=True):
    revision: int = 0
    changed: list[Job] = []
    removed: list[int] = []


class Panel(Enum):
    """What can be touched by news; the values are the CSS ids of the panels."""

    HEADER = "header"
    METERS = "meters"
    LOSS = "loss"
    QUEUE = "queue"
    VERSIONS = "versions"
    EVENTS = "events"
    MACHINE = "machine"
    INSPECTOR = "inspector"
    STATUS = "statusline"


ALL_PANELS = frozenset(Panel)


@dataclass(frozen=True, slots=True)
class Connecting:
    """Nothing has been heard yet."""


@dataclass(frozen=True, slots=True)
class Live:
    """The event stream is open."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The daemon does not answer; what is shown is old."""

    since_s: float  # monotonic
    attempts: int
    why: str


Link = Connecting | Live | Lost


@dataclass(frozen=True, slots=True)
class View:
    """Everything the panels draw from.

    `jobs` is in the API's order. `said` is newest first. `heard_at_s` is the monotonic time of
    the last news; `sample_at_s` that of the last training sample.
    """

    link: Link = Connecting()
    status: Status | None = None
    jobs: tuple[Job, ...] = ()
    jobs_total: int = 0
    versions: tuple[Version, ...] = ()
    best_version: int | None = None
    said: tuple[Said, ...] = ()
    away: tuple[Said, ...] = ()  # what happened since the last visit, worst first
    curves: dict[str, tuple[Point, ...]] = field(default_factory=dict)
    machine_past: tuple[Machine, ...] = ()
    disk_left_s: float | None = None
    findings: tuple[Finding, ...] | None = None  # the doctor's; None: not asked yet
    heard_at_s: float = 0.0
    sample_at_s: float | None = None

    @property
    def training(self) -> Training:
        return self.status.training if self.status else Training()

    @property
    def is_new(self) -> bool:
        """A workspace in which nothing was trained and nothing is queued: a first visit."""
        known = self.status is not None and isinstance(self.link, Live)
        return known and not self.jobs and not self.training.global_step

    @property
    def waiting(self) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.state == "waiting")

    def in_hand(self, job: Job) -> Job:
        """`job` with its newest progress: the list has the committed, the status the trained."""
        current = self.training.job
        if current is None or current.id != job.id or current.fraction is None:
            return job
        left_s, late_s = self.training.eta_job_s, self.training.eta_job_p90_s
        eta_s = job.eta_s if left_s is None else [0.0, left_s]
        late = job.eta_p90_s if late_s is None else [0.0, late_s]
        fraction = max(current.fraction, job.fraction or 0.0)
        return msgspec.structs.replace(job, fraction=fraction, eta_s=eta_s, eta_p90_s=late)

    def job(self, job_id: int | None) -> Job | None:
        return next((job for job in self.jobs if job.id == job_id), None)

    def version(self, number: int | None) -> Version | None:
        return next((item for item in self.versions if item.number == number), None)
