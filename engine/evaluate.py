"""Losses on rows that are not trained: a fixed rotating slice while training, the whole set when
there is time.

Invariant: evaluation costs at most `time_share` of the training time, measured, not guessed; it
uses the rows' own masks and the same mean over supervised tokens as training; it draws no random
number and moves no weight.

Series: `fixed` (the workspace's validation set), `holdout` (rows of the file in hand that do not
train), `probe` (rows of that file that have been trained).
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer_tui.data.packing import shuffled
from trainer_tui.engine.behaviour_metrics import measure
from trainer_tui.engine.head_loss import forward_loss_sum
from trainer_tui.engine.micro_batches import split
from trainer_tui.engine.profiles import Profile
from trainer_tui.engine.step import Stepper, TokenMask
from trainer_tui.safety import clock

BEHAVIOUR_ROWS = 16
MIN_SHARE = 0.5  # less of a slice than this says too little to be worth its time
SLICE_SEED = 0x51
RATES_KEPT = 5


@dataclass(frozen=True, slots=True)
class Series:
    """Documents that can be asked for by index. `set_id` changes when the documents do."""

    name: str
    set_id: str
    count: int
    document: Callable[[int], TokenMask]


@dataclass(frozen=True, slots=True)
class Result:
    """`loss`: mean over supervised tokens. `standard_error`: of that mean, over documents."""

    series: str
    set_id: str
    loss: float
    standard_error: float
    rows: int
    supervised_tokens: int
    seconds: float
    whole: bool


@dataclass(slots=True)
class Budget:
    """How much evaluation the training so far has paid for.

    Half of what is earned is kept for the next look at the whole fixed set until that is paid;
    slices have the rest. The first look at a series is free: without it there is nothing to
    compare with. Looks that somebody asked for are a debt that later ones pay. A token's cost
    is the median of the last few looks: a hiccup in one must not forbid the next whole one.
    """

    time_share: float
    seconds_left: float = 0.0
    kept_for_whole_s: float = 0.0
    whole_tokens: int = 0
    seconds_per_token: float | None = None
    _free: set[tuple[str, str]] = field(default_factory=set)
    _rates: deque[float] = field(default_factory=lambda: deque(maxlen=RATES_KEPT))

    def earn(self, trained_s: float) -> None:
        earned_s = trained_s * self.time_share
        cost_s = self.whole_tokens * (self.seconds_per_token or 0.0)
        kept_s = min(earned_s / 2, max(0.0, cost_s - self.kept_for_whole_s))
        self.kept_for_whole_s += kept_s
        self.seconds_left += earned_s - kept_s

    def spend(self, seconds: float, tokens: int, *, whole: bool = False) -> None:
        kept_s = min(seconds, self.kept_for_whole_s) if whole else 0.0
        self.kept_for_whole_s -= kept_s
        self.seconds_left -= seconds - kept_s
        if tokens:
            self._rates.append(seconds / tokens)
            self.seconds_per_token = statistics.median(self._rates)

    def first_look(self, series: Series) -> bool:
        """Whether this series was never looked at; remembered from now on."""
        key = (series.name, series.set_id)
        if key in self._free:
            return False
        self._free.add(key)
        return True

    def affords(self, tokens: int) -> bool:
        if self.seconds_per_token is None:
            return True
        return tokens * self.seconds_per_token <= self.seconds_left

    def affords_whole(self) -> bool:
        if self.seconds_per_token is None:
            return True
        cost_s = self.whole_tokens * self.seconds_per_token
        return cost_s <= self.seconds_left + self.kept_for_whole_s


def slice_of(count: int, slice_rows: int, turn: int) -> list[int]:
    """The `turn`th slice of a set: the same rows come back after a full round.

    Rows are dealt to slices by a fixed shuffle: a set is gathered file by file, and slices of
    one kind of row each would make the loss jump with the turn.
    """
    if count <= slice_rows:
        return list(range(count))
    slices = -(-count // slice_rows)
    return [int(index) for index in shuffled(count, SLICE_SEED)[turn % slices :: slices]]


def affordable(lengths: Sequence[int], budget: Budget) -> int:
    """How many of these documents, from the first on, the budget pays for."""
    tokens = 0
    for number, length in enumerate(lengths):
        tokens += length
        if not budget.affords(tokens):
            return number
    return len(lengths)


@dataclass(frozen=True, slots=True)
class Evaluator:
    """`beat` after every micro-batch; `urgent`: somebody waits, so end early and say nothing."""

    stepper: Stepper
    budget: Budget
    slice_rows: int
    beat: Callable[[], None]
    urgent: Callable[[], bool]

    def slice(self, series: Series, turn: int) -> Result | None:
        """The slice whose turn it is, or as much of it as there is time for; None for none."""
        documents = [series.document(i) for i in slice_of(series.count, self.slice_rows, turn)]
        if not self.budget.first_look(series):
            paid = affordable([len(ids) for ids, _ in documents], self.budget)
            if paid < len(documents) * MIN_SHARE:
                return None
            documents = documents[:paid]
        return self._measure(series, documents)

    def whole(self, series: Series, *, wanted: bool = False) -> Result | None:
        """The whole set when the budget pays for it or it is `wanted`; None when it is not."""
        documents = [series.document(i) for i in range(series.count)]
        self.budget.whole_tokens = sum(len(ids) for ids, _ in documents)
        small = series.count <= self.slice_rows and self.budget.first_look(series)
        if not (wanted or small or self.budget.affords_whole()):
            return None
        return self._measure(series, documents)

    def behaviour(self, series: Series, profile: Profile) -> dict[str, float]:
        """Teacher-forced figures of a behaviour profile on the set's first rows; {} for none."""
        if not (profile.shapes_loss or profile.forbidden_ids):
            return {}
        documents: list[TokenMask] = []
        tokens = 0
        for index in range(min(series.count, BEHAVIOUR_ROWS)):
            document = series.document(index)
            tokens += len(document[0])
            if documents and tokens > self.stepper.micro_batch_tokens:
                break
            documents.append(document)
        if not self.budget.affords(tokens):
            return {}
        started_s = clock.monotonic_s()
        self.stepper.model.eval()
        try:
            with self.stepper.precision():
                return measure(self.stepper.model, profile, documents, self.stepper.device)
        finally:
            self.stepper.model.train()
            self.budget.spend(clock.monotonic_s() - started_s, tokens)

    def _measure(self, series: Series, documents: list[TokenMask]) -> Result | None:
        if not documents:
            return None
        started_s = clock.monotonic_s()
        measured = self._losses(documents)
        if measured is None:
            return None
        sums, counts = measured
        seconds = clock.monotonic_s() - started_s
        whole = len(documents) == series.count
        tokens = sum(len(ids) for ids, _ in documents)
        self.budget.spend(seconds, tokens, whole=whole and series.name == "fixed")
        supervised = sum(counts)
        loss = sum(sums) / max(supervised, 1)
        return Result(
            series=series.name,
            set_id=series.set_id,
            loss=loss,
            standard_error=_standard_error(sums, counts, loss),
            rows=len(documents),
            supervised_tokens=supervised,
            seconds=seconds,
            whole=whole,
        )

    def _losses(self, documents: list[TokenMask]) -> tuple[list[float], list[int]] | None:
        """Loss sums and supervised tokens by micro-batch; None when it was cut short."""
        model, device = self.stepper.model, self.stepper.device
        sums: list[Tensor] = []
        counts: list[int] = []
        model.eval()
        try:
            with torch.no_grad(), self.stepper.precision():
                budget = min(self.stepper.micro_batch_tokens, _chunk_tokens(documents))
                for batch in split([documents], budget, lambda document: len(document[0])):
                    if self.urgent():
                        return None
                    packed = self.stepper.shape(batch, device).batch  # weights, no penalties
                    sums.append(forward_loss_sum(model, packed).detach())
                    counts.append(packed.supervised)
                    self.beat()
        finally:
            model.train()
        # The host waits for the device: once, at the end of an evaluation.
        return torch.stack(sums).tolist(), counts


def _chunk_tokens(documents: list[TokenMask]) -> int:
    """An eighth of the set at least, so that the standard error has something to stand on."""
    return max(512, sum(len(ids) for ids, _ in documents) // 8)


def _standard_error(sums: list[float], counts: list[int], loss: float) -> float:
    """Of a ratio of sums over micro-batches (Cochran, Sampling Techniques, 6.3)."""
    groups = [(s, n) for s, n in zip(sums, counts, strict=True) if n]
    if len(groups) < 2:
        return 0.0
    mean_count = sum(n for _, n in groups) / len(groups)
    spread = sum((s - loss * n) ** 2 for s, n in groups) / (len(groups) - 1)
    return float((spread / len(groups)) ** 0.5 / mean_count)
