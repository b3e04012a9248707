"""The pure parts: figures, rows, charts, news. Any size and any value gives rows that fit."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest

from trainer_tui.tui import chart, figures, glyphs, ink, reduce
from trainer_tui.tui.deeds_versions import rollback_words
from trainer_tui.tui.panels import events, header, loss, machine
from trainer_tui.tui.plot import draw
from trainer_tui.tui.verbs import training as verbs
from trainer_tui.tui.view import (
    Evaluated,
    History,
    Job,
    Jobs,
    JobsChanged,
    Live,
    Lost,
    Machine,
    Model,
    Panel,
    Point,
    Said,
    Status,
    Step,
    Training,
    Version,
    View,
)
from trainer_tui.tui.watch import Seen, look


@pytest.mark.parametrize("set_", [glyphs.UNICODE, glyphs.ASCII], ids=["unicode", "ascii"])
def test_a_chart_of_anything_fits(set_: Any) -> None:
    rng = random.Random(3)
    for _ in range(60):
        width, height = rng.randint(8, 90), rng.randint(2, 20)
        count = rng.choice([1, 2, 5, 300])
        values = [rng.choice([1.0, 0.0, -2.0, 1e9, rng.random()]) for _ in range(count)]
        points = tuple((float(x), y) for x, y in enumerate(values))
        low, high = rng.choice([(0.0, float(count)), (0.0, 1.0), (-5.0, 3.0)])
        series = [chart.Series("train", points), chart.Series("val", points[::3])]
        axes = chart.axes_for(series, low, high, rng.random() < 0.3)
        marks = [
            chart.Mark(rng.uniform(-9, count + 9), "v001", "mark"),
            chart.Mark(rng.uniform(-9, count + 9), "x", "bad", rng.choice(["foot", "axis"])),
        ]
        rows = chart.plot(series, axes, marks, width, height, set_, cursor=rng.uniform(-1, count))
        assert len(rows) == height
        assert all(ink.width_of(row) == width for row in rows)


def test_smoothing_leaves_out_what_is_not_finite() -> None:
    points = [Point(step=1, mean=2.0), Point(step=2, mean=None), Point(step=3, mean=math.inf)]
    assert chart.smoothed(points, 0.9) == ((1.0, pytest.approx(2.0)),)


def test_the_envelope_keeps_the_extremes() -> None:
    points = [Point(step=float(i), mean=5.0 if i == 37 else 1.0) for i in range(100)]
    assert max(y for _, y in chart.envelope(points, 0, 100, 10)) == 5.0
    assert len(chart.envelope(points, 0, 100, 10)) <= 20


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (figures.count(18420), "18 420"),
        (figures.short_count(41_800), "41.8k"),
        (figures.short_count(602_000_000), "602M"),
        (figures.size(1.2 * 2**30), "1.2G"),
        (figures.used_of(71.2 * 2**30, 80 * 2**30), "71.2/80G"),
        (figures.duration(22_320), "6h12m"),
        (figures.duration(59.6), "1m00s"),
        (figures.duration(200_000), "2d7h"),
        (figures.span(21_120, 23_520), "6h12m±20m"),
        (figures.rate(2e-4), "2.0e-4"),
        (figures.signed(-0.021), "−0.0210"),
        (figures.loss(None), "–"),
        (figures.loss(math.nan), "NaN"),
        (figures.clock("nonsense", None), "--:--:--"),
        (figures.coarse(14 * 86400), "14d"),
    ],
)
def test_figures(shown: str, expected: str) -> None:
    assert shown == expected


def test_rows_fit_whatever_text_went_in() -> None:
    for text in ("", "a", "漢字かな", "e\u0301" * 9, "x" * 50, "🙂🙂🙂🙂🙂🙂"):
        for width in (1, 2, 7, 20):
            row = ink.Line().add(text, "good").row(width)
            assert ink.width_of(row) == width
            assert ink.width_of(ink.cut(row, width)) == width
            assert ink.width_of(((ink.fit_text(text, width), ""),)) == width


@pytest.mark.parametrize("place", ["", "models"])
def test_the_machine_names_the_disk_that_its_figures_are_of(place: str) -> None:
    figures_ = {"disk_used_bytes": 87.0, "disk_free_bytes": 3.0, "disk_total_bytes": 90.0}
    view = View(status=Status(machine=Machine(disk_place=place, **figures_)))
    shown = ["".join(t for t, _ in row) for row in machine.rows(view, 60, 9, glyphs.UNICODE)]
    assert ("of models" in shown[-1]) == bool(place)
    words = verbs._machine_line({"gpus": [], "disk_place": place, **figures_})
    assert ("disk of models 3B free" if place else "disk 3B free") in words


def test_bars_are_exact() -> None:
    for fraction in (0.0, 0.01, 0.31, 0.999, 1.0, 7.0, None):
        filled, rest = glyphs.bar(fraction, 18, glyphs.UNICODE)
        assert len(filled + rest) == 18


def job(number: int, place: int | None, state: str = "waiting") -> Job:
    return Job(id=number, name=str(number), place=place, state=state)


def test_jobs_keep_the_apis_order() -> None:
    view, _ = reduce.reduce(View(), reduce.JobsCame(Jobs(jobs=[job(1, 1), job(2, 2)], total=2)))
    change = JobsChanged(changed=[job(2, 1), job(1, 2), job(3, None, "processing")], removed=[9])
    view, touched = reduce.reduce(view, reduce.JobsChangedCame(change))
    assert [item.id for item in view.jobs] == [3, 2, 1]
    assert Panel.QUEUE in touched and Panel.METERS not in touched


def test_points_of_a_long_visit_stay_few_and_keep_extremes() -> None:
    view = View()
    for start in range(0, 20_000, 100):
        steps = tuple(
            Step(step=i, loss=9.0 if i == 777 else 1.0) for i in range(start, start + 100)
        )
        view, _ = reduce.reduce(view, reduce.StepsCame(steps, 0.0))
    curve = view.curves["loss"]
    assert len(curve) <= reduce.POINTS_KEPT
    assert max(point.max or point.mean or 0 for point in curve) == 9.0
    assert curve[-1].step == 19_999


def test_after_a_rollback_the_curve_goes_on_from_there() -> None:
    view = View()
    for steps in ((1, 2, 3, 4), (3,)):
        came = reduce.StepsCame(tuple(Step(step=s, loss=1.0) for s in steps), 0.0)
        view, _ = reduce.reduce(view, came)
    assert [point.step for point in view.curves["loss"]] == [1, 2, 3]


def test_news_touch_only_what_changes() -> None:
    status = Status()
    view, touched = reduce.reduce(View(), reduce.StatusCame(status, 1.0))
    assert Panel.QUEUE in touched and isinstance(view.link, Live)
    view, touched = reduce.reduce(view, reduce.StatusCame(status, 2.0))
    assert touched == {Panel.HEADER, Panel.STATUS}
    view, touched = reduce.reduce(view, reduce.EvaluatedCame(Evaluated(step=3, loss=1.0)))
    assert touched == {Panel.LOSS}
    view, _ = reduce.reduce(view, reduce.SaidCame(Said(id=1, text="a")))
    view, _ = reduce.reduce(view, reduce.SaidCame(Said(id=1, text="a")))
    assert len(view.said) == 1, "an event that comes twice is one"
    events = [Said(id=2, level="info"), Said(id=3, level="error"), Said(id=4, level="warning")]
    view, _ = reduce.reduce(view, reduce.HistoryCame(History(events=events), seen=2))
    assert [event.id for event in view.away] == [3, 4], "the worst first"
    view, touched = reduce.reduce(view, reduce.LinkChanged(Lost(1.0, 1, "gone"), 3.0))
    assert len(touched) == len(Panel)


class Client:
    """What the command line hands to `plot` and `watch`."""

    def __init__(self, fake: Any) -> None:
        self.state = fake.FakeDaemon()

    def get(self, path: str) -> dict[str, Any]:
        from urllib.parse import parse_qs, urlsplit

        url = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        return dict(self.state.get(url.path, query)[1])


def test_plot_is_plain_text_for_scripts(fake: Any) -> None:
    text = draw(Client(fake), ["loss", "val_loss"], 60, 12)
    assert len(text.splitlines()) == 12
    assert "\x1b" not in text and "loss" in text.splitlines()[0]


def test_watch_tells_each_change_once(fake: Any) -> None:
    client, told = Client(fake), []
    seen = look(client, Seen(), 0.0, told.append)
    assert told[0] == "training: training" and "step 18 420" in told[1]
    seen = look(client, seen, 1.0, told.append)
    assert len(told) == 2, "nothing changed"
    client.state.said("warning", "gradient", "gradient spike \x1b[31m")
    client.state.state, client.state.reason = "paused", "asked by ada"
    look(client, seen, 2.0, told.append)
    assert told[2].endswith("warning: gradient spike \\x1b[31m")
    assert told[3] == "training: paused: asked by ada"


def test_the_figure_beside_the_chart_is_smoothed_as_it_says() -> None:
    points = (Point(step=1, mean=4.0), Point(step=2, mean=2.0))
    status = Status(training=Training(loss=2.0, loss_ema=3.5))
    view = View(status=status, curves={"loss": points})

    def train(ema: int) -> str:
        rows = loss.readout(view, loss.Look(ema=ema), 12, glyphs.UNICODE)
        return next(t for t in ink.plain_text(rows).splitlines() if t.lstrip().startswith("train"))

    assert "2.0000" in train(0)
    assert "3.5000" in train(loss.EMAS.index(0.9)), "the daemon's own, over all steps"
    assert len({train(ema) for ema in range(len(loss.EMAS))}) == len(loss.EMAS)


def test_the_header_names_the_newest_version_that_is_in_the_model() -> None:
    status = Status(model=Model(name="models/Tiny", latest_version=7))
    left, live = Version(number=7), Version(number=3, live=True)
    assert header.model_name(View(status=status, versions=(left, live))) == "tiny v003"
    assert header.model_name(View(status=status, versions=(left,))) == "tiny"
    assert header.model_name(View(status=status)) == "tiny v007", "the list is still on its way"


def test_going_back_into_a_branch_that_was_left_names_no_step_that_the_model_never_learnt() -> None:
    training = Training(global_step=1722, lineage=2)
    other = rollback_words(training, Version(number=7, global_step=1229, lineage=1), [], "")
    assert not any("unlearnt" in line for line in other)
    assert any("at step 1 229" in line for line in other)
    same = rollback_words(training, Version(number=8, global_step=1600, lineage=2), [], "")
    assert "Steps 1 601 to 1 722 are unlearnt." in same


@pytest.mark.parametrize(("said", "text"), [(5, "1 error"), (200, "1+ errors")])
def test_errors_among_events_that_were_not_read_are_not_denied(said: int, text: str) -> None:
    events_ = tuple(Said(id=n, level="error" if n == 2 else "info") for n in range(said))
    panel = SimpleNamespace(_filter="", screen_app=SimpleNamespace(view=View(said=events_)))
    corner = events.EventsPanel.corner(panel, 80)  # type: ignore[arg-type]
    assert corner is not None and ink.plain_text([tuple(corner.spans)]).strip() == text
