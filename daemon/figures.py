"""The newest figures of training, as the status document shows them. Unknown is None.

Only a view: nothing decides by them.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from trainer_tui.daemon.curves import Point
from trainer_tui.safety import clock
from trainer_tui.safety.messages import Evaluated, JobStarted, Ready, StepDone

EMA_KEEP = 0.9
RATES_KEPT = 256
STEP_TIMES_KEPT = 32
SERIES_OF = {"fixed": "val_loss", "holdout": "holdout_loss", "probe": "probe_loss"}


@dataclass(slots=True)
class Figures:
    """Rates are per second of training, not of the clock."""

    epochs: int = 1
    global_step: int | None = None
    saved_step: int | None = None
    lineage: int | None = None
    checkpoint: str | None = None
    epoch: int | None = None
    job_id: int | None = None
    job_step: int = 0  # both over all epochs
    job_steps: int = 0
    loss: float | None = None
    loss_ema: float | None = None
    val_loss: float | None = None
    best_val_loss: float | None = None  # of the whole set in use: other figures do not compare
    val_set: str = ""
    seen_evaluations: int = 0
    learning_rate: float | None = None
    lr_factor: float = 1.0  # what a ladder or a person multiplies it with
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    supervised_tokens_per_s: float | None = None
    step_s: float | None = None
    mfu: float | None = None
    tokens_seen: int | None = None
    supervised_tokens_seen: int | None = None
    last_sample_at: str | None = None
    last_sample_s: float | None = None
    trainer_memory_bytes: int | None = None
    ready: Ready | None = None
    token_rates: deque[float] = field(default_factory=lambda: deque(maxlen=RATES_KEPT))
    step_times: deque[float] = field(default_factory=lambda: deque(maxlen=STEP_TIMES_KEPT))
    spans: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=RATES_KEPT))
    unbroken_since_s: float | None = None  # monotonic: the last report without a pause since

    @property
    def usual_step_s(self) -> float | None:
        """Seconds of training in a step of late."""
        times = self.step_times
        return sum(times) / len(times) if times else self.step_s

    @property
    def overhead(self) -> float:
        """Seconds of the clock for a second of training, evaluations and commits included: 1.0 is
        no cost. Pauses and waiting for files do not count."""
        trained_s = sum(trained for _, trained in self.spans)
        clock_s = sum(clock for clock, _ in self.spans)
        return max(1.0, clock_s / trained_s) if trained_s > 0 else 1.0

    def stand_still(self) -> None:
        """The time until the next step is not training's."""
        self.unbroken_since_s = None

    def _measure(self, message: StepDone) -> None:
        now_s = clock.monotonic_s()
        if message.tokens_per_s > 0:
            self.token_rates.append(message.tokens_per_s)
            trained_s = message.tokens / message.tokens_per_s
            if self.unbroken_since_s is not None:
                self.spans.append((now_s - self.unbroken_since_s, trained_s))
        if message.step_s > 0:
            self.step_times.append(message.step_s)
        self.unbroken_since_s = now_s

    @property
    def fraction(self) -> float | None:
        """How much of the job in hand is trained, over all its epochs."""
        if self.job_id is None or not self.job_steps:
            return None
        return min(1.0, self.job_step / self.job_steps)

    def start(self, ready: Ready) -> None:
        self.ready = ready
        self.stand_still()
        self.global_step = self.saved_step = ready.global_step
        self.lineage = ready.lineage
        self.checkpoint = ready.checkpoint or None
        self.tokens_seen = ready.tokens

    def leave_model(self) -> None:
        """Another model is in use now: nothing measured before is of it."""
        self.end_job()
        self.saved_step = None  # read again from the new checkpoint
        self.loss = self.loss_ema = self.val_loss = self.grad_norm = None

    def fall_back(self) -> None:
        """The trainer is gone: what it had not saved is too."""
        if self.saved_step is not None:
            self.global_step = self.saved_step

    def start_job(self, message: JobStarted) -> None:
        self.job_id = message.job_id
        self.job_step, self.job_steps = message.step_index, message.steps
        done = message.step_index * self.epochs // message.steps if message.steps else 0
        self.epoch = min(done, self.epochs - 1)

    def end_job(self) -> None:
        self.stand_still()
        self.job_id = None
        self.job_step = self.job_steps = 0

    def step(self, message: StepDone) -> list[Point]:
        """Take in a step and return its points for history."""
        self.global_step = message.global_step
        self.job_id, self.epoch = message.job_id, message.epoch
        self.job_step, self.job_steps = message.step_index, message.steps
        if math.isfinite(message.loss):
            self.loss = message.loss
            old = self.loss_ema if self.loss_ema is not None else message.loss
            self.loss_ema = EMA_KEEP * old + (1 - EMA_KEEP) * message.loss
        self.learning_rate, self.grad_norm = message.learning_rate, _finite(message.grad_norm)
        self.tokens_per_s = message.tokens_per_s
        self.supervised_tokens_per_s = message.supervised_tokens_per_s
        self.step_s, self.mfu = message.step_s, message.mfu or None
        self.tokens_seen = (self.tokens_seen or 0) + message.tokens
        self.supervised_tokens_seen = (self.supervised_tokens_seen or 0) + message.supervised_tokens
        self.trainer_memory_bytes = message.memory_bytes or self.trainer_memory_bytes
        self.last_sample_at, self.last_sample_s = clock.now_iso(), clock.monotonic_s()
        self._measure(message)
        values = {
            "loss": message.loss,
            "learning_rate": message.learning_rate,
            "grad_norm": message.grad_norm,
            "tokens_per_s": message.tokens_per_s,
            "supervised_tokens_per_s": message.supervised_tokens_per_s,
            "step_s": message.step_s,
        }
        return points(message.global_step, values)

    def evaluated(self, message: Evaluated) -> tuple[list[Point], bool]:
        """Take in an evaluation: (its points, whether it is the best fixed loss so far)."""
        best = False
        if message.series == "fixed" and math.isfinite(message.loss):
            self.val_loss = message.loss
            best = self._best(message)
        name = SERIES_OF.get(message.series, message.series)
        return points(message.global_step, {name: message.loss}), best

    def remember_best(self, set_id: str, loss: float) -> None:
        """The best whole look of what is kept, after a restart."""
        self.val_set, self.seen_evaluations, self.best_val_loss = set_id, 1, loss

    def _best(self, message: Evaluated) -> bool:
        """Slices are of other rows each time, and a new set begins anew."""
        if message.set_id != self.val_set:
            self.val_set, self.seen_evaluations, self.best_val_loss = message.set_id, 0, None
        if not message.whole:
            return False
        self.seen_evaluations += 1
        best = self.best_val_loss is None or message.loss < self.best_val_loss
        self.best_val_loss = message.loss if best else self.best_val_loss
        return best


def points(step: int, values: dict[str, float]) -> list[Point]:
    """What is not a finite number has no place in a chart."""
    at_s = clock.now_s()
    return [
        Point(name, step, at_s, value) for name, value in values.items() if math.isfinite(value)
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
