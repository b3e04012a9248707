"""A first visit, incidents, settings, an earlier file: what is reached by palette and dialogs."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from trainer_tui.safety.errors import Refused
from trainer_tui.tui import moments, picture
from trainer_tui.tui.findings import Finding
from trainer_tui.tui.glyphs import UNICODE
from trainer_tui.tui.panels import events, queue
from trainer_tui.tui.panels.loss import marks_of
from trainer_tui.tui.view import Point, Said, View


def nothing_yet(state: Any) -> None:
    state.jobs, state.points, state.val = [], [], []
    state.state, state.step, state.versions = "waiting", None, []
    state.reason = "there is no model at /home/me/ws/models/base (base_model in config.toml)"


async def test_a_first_visit_shows_findings_and_one_key_fixes(
    server: Any, stage: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nothing_yet(server.state)

    async def doctor(_: object) -> tuple[Finding, ...]:
        return (
            Finding(level="fail", subject="disk", text="1 GB of 100 GB free", hint="make room"),
            Finding(level="ok", subject="python", text="3.11"),
        )

    monkeypatch.setattr("trainer_tui.tui.checkup.examine", doctor)
    async with stage(server, empty=True, workspace=tmp_path) as on:
        await on.until(lambda: on.app.view.findings, "the doctor has answered")
        await on.pilot.pause(0.1)
        loss, queue = on.text("loss"), on.text("queue")
        for part in ("1 GB of 100 GB free", "make room", "b choose the model"):
            assert part in loss, part
        assert "What to do next" in queue and "trainer-tui demo" in queue and "A by path" in queue
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "tokenizer.json").write_text("{}")
        await on.press("b")
        await on.until(lambda: on.dialog, "asks for the model")
        await on.press(*str(tmp_path / "none"), "enter")
        await on.until(lambda: "there is no folder" in str(on.app.screen._body), "says why not")
        on.app.screen.query_one("Input").value = str(tmp_path)
        await on.press("enter")
        await on.until(on.asked, "sent")
        body = on.asked()[-1][2]
        assert body["values"]["base_model"] == str(tmp_path) and "base_model" in body["approve"]


async def test_a_doctor_that_hangs_holds_nothing_up(
    server: Any, stage: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nothing_yet(server.state)

    async def doctor(_: object) -> tuple[Finding, ...]:
        await asyncio.sleep(60)
        return ()

    monkeypatch.setattr("trainer_tui.tui.checkup.examine", doctor)
    async with stage(server, empty=True, workspace=tmp_path) as on:
        assert "looking at this machine" in on.text("loss")
        await on.press("p")
        assert on.asked()[-1][1] == "/v1/training/pause"


async def test_the_inspector_shows_an_incidents_evidence(server: Any, stage: Any) -> None:
    state = server.state
    state.said("error", "trainer", "the trainer ended: out of memory")
    state.events[0]["data"] = {"incident": "run-7"}
    state.incidents = [
        {"id": "run-7", "class": "cuda_oom", "text": "out of memory", "suggestion": "pack_tokens",
         "done": "a new trainer goes on", "wait_status": -9, "files": ["error.json"],
         "last_words": "Traceback: boom", "at": "2026-11-24T12:00:00.000Z", "job": 31}
    ]  # fmt: skip
    async with stage(server, (160, 48)) as on:
        await on.press("4", "g")
        await on.until(lambda: "cuda_oom" in on.text("inspector"), "the evidence")
        shown = on.text("inspector")
        for part in ("a new trainer goes on", "SIGKILL", "state/incidents/run-7", "boom"):
            assert part in shown, part


async def test_a_refused_setting_is_mended_in_its_dialog(server: Any, stage: Any) -> None:
    problem = {"title": "wrong value", "detail": "learning_rate must be above 0", "hint": ""}
    server.state.settings = {"learning_rate": 2e-4}
    server.state.refuse["/v1/config"] = (422, problem)
    async with stage(server) as on:
        on.app.do("setting")
        await on.until(lambda: on.dialog, "asks which")
        await on.press(*"learning_rate", "enter")
        await on.until(lambda: "The new value" in str(on.app.screen._body), "asks what")
        on.app.screen.query_one("Input").value = "-1"
        await on.press("enter")
        await on.until(lambda: "must be above 0" in str(on.app.screen._body), "the schema's words")
        server.state.refuse.clear()
        on.app.screen.query_one("Input").value = "1e-4"
        await on.press("enter")
        await on.until(lambda: len(on.app.screen_stack) == 1, "taken")
        assert on.asked()[-1] == ("PATCH", "/v1/config", {"values": {"learning_rate": 1e-4}})


async def test_an_earlier_file_lies_over_the_one_in_hand(server: Any, stage: Any) -> None:
    state = server.state
    for index, point in enumerate(state.points):
        point["at"] = f"2026-11-24T{10 + index // 360:02d}:{index // 6 % 60:02d}:{index % 6}0.000Z"
    done = next(job for job in state.jobs if job["state"] == "completed")
    done["started_at"], done["finished_at"] = "2026-11-24T10:30:00.000Z", "2026-11-24T10:50:00.000Z"
    for job in state.jobs:
        if job["state"] == "processing":
            job["started_at"] = "2026-11-24T11:00:00.000Z"
    async with stage(server, (120, 40)) as on:
        await on.press("G")
        on.app.do("compare_file")
        await on.until(lambda: on.app.loss.look.earlier, "read")
        assert on.app.loss.look.earlier.points[0].step == 0
        await on.pilot.pause(0.1)
        assert "tone-2.jsonl" in on.text("loss").splitlines()[0]
        on.app.do("compare_file")
        await on.until(lambda: on.app.loss.look.earlier is None, "taken away")


async def test_a_trained_file_waits_for_its_checkpoint(server: Any, stage: Any) -> None:
    job = server.state.jobs[0]
    job["fraction"], job["why_waiting"] = 1.0, "trained, waits for its checkpoint"
    async with stage(server) as on:
        row = on.text("queue").splitlines()[1]
        assert "trained, not saved" in row and "%" not in row
        await on.pilot.resize_terminal(200, 60)
        await on.until(lambda: "waits for its checkpoint" in on.text("queue"), "with room, why")


def test_checkpoints_and_pauses_are_marked() -> None:
    points = tuple(Point(step=s, mean=1.0, at=f"2026-11-24T10:00:{s:02d}Z") for s in range(50))
    said = (
        Said(id=1, topic="checkpoint", text="checkpoint-20: 1.2 MB in 0.1 s"),
        Said(id=2, topic="training", text="to pause", data={"intent": "pause", "step": 30}),
        Said(id=3, topic="training", text="to go on", data={"intent": "run", "step": 31}),
        Said(id=4, level="error", text="bad", at="2026-11-24T10:00:40Z"),
    )
    marks = marks_of(View(curves={"loss": points}, said=said), UNICODE)
    found = {(mark.step, mark.place, mark.role) for mark in marks}
    assert found == {(20, "axis", "good"), (30, "foot", "warn"), (40, "foot", "bad")}


def test_steps_without_a_finite_loss_are_marked() -> None:
    points = tuple(Point(step=s, mean=math.nan if s == 7 else 1.0) for s in range(20))
    marks = marks_of(View(curves={"loss": points}), UNICODE)
    assert [(mark.step, mark.label, mark.place) for mark in marks] == [(7, UNICODE.cross, "foot")]


def test_moments_as_people_write_them() -> None:
    now = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    assert moments.parse("", now) is None
    assert str(moments.parse("2h", now)) == "2026-11-24 14:00:00+00:00"
    assert str(moments.parse("08:30", now)) == "2026-11-25 08:30:00+00:00"
    assert str(moments.parse("2026-12-01 08:00", now)) == "2026-12-01 08:00:00+00:00"
    for wrong in ("soon", "25:00", "2020-01-01"):
        with pytest.raises(Refused):
            moments.parse(wrong, now)


async def test_pictures_of_screen_and_chart(
    server: Any, stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "png", lambda text: b"a picture")
    async with stage(server, pictures_folder=tmp_path) as on:
        for action in ("picture", "chart_picture"):
            on.app.do(action)
            await on.until(lambda: "saved" in on.text("statusline"), "saved")
            on.app.statusline.notice = None
        await on.until(lambda: len(list(tmp_path.glob("*.png"))) == 2, "both")
    chart = (tmp_path / "trainer-tui-loss-1.svg").read_text()
    assert "Loss" in chart and "Queue" not in chart


async def test_a_png_is_the_screen_with_its_curves(server: Any, stage: Any, tmp_path: Path) -> None:
    """Real cairo. The curve's colour is in it, although no font here need have braille."""
    pytest.importorskip("cairosvg", reason="the extra `png` is not installed")
    image = pytest.importorskip("PIL.Image")
    async with stage(server, pictures_folder=tmp_path) as on:
        await on.until(lambda: on.app.view.curves, "curves")
        await on.pilot.pause(0.2)
        on.app.do("picture")
        await on.until(lambda: "and trainer-tui-1.png" in on.text("statusline"), "both are saved")
    shown = image.open(tmp_path / "trainer-tui-1.png").convert("RGB")
    assert shown.width > 1200 and shown.height > 700
    chart = shown.crop((60, 110, shown.width * 6 // 10, 330))
    blue = [rgb for _, rgb in chart.getcolors(1 << 20) if rgb[2] > 180 and rgb[0] < 160]
    assert blue, "the loss is drawn"


def test_braille_is_drawn_dot_by_dot() -> None:
    run = '<text class="r1" x="12.2" y="20" textLength="24.4">a\u2881</text>'
    drawn = picture._TEXT.sub(picture._with_dots, run)
    assert drawn.count("<circle") == 2 and ">a&#160;</text>" in drawn
    plain = run.replace("\u2881", "b")
    assert picture._TEXT.sub(picture._with_dots, plain) == plain


def test_without_cairosvg_the_reply_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cairosvg", None)
    files, missing = picture.save_picture("<svg/>", tmp_path)
    assert [file.suffix for file in files] == [".svg"] and "trainer-tui[png]" in missing


def finish(server: Any, job: dict[str, Any]) -> dict[str, Any]:
    """A job is done: it moves to the end of the list."""
    state = server.state
    done = job | {"state": "completed", "place": None, "finished_at": "2026-11-24T12:00:00.000Z"}
    state.jobs = [other for other in state.jobs if other["id"] != job["id"]] + [done]
    state.revision += 1
    state.publish("jobs", {"revision": state.revision, "changed": [done], "removed": []})
    return done


async def test_left_alone_the_events_show_the_newest(
    server: Any, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(server, (120, 40)) as on:
        panel = on.app.query_one("#events")

        async def more(word: str) -> None:
            for number in range(30):
                server.state.said("info", "job", f"{word} {number}")
            await on.until(lambda: on.app.view.said[0].text == f"{word} 29", "they came")
            await on.pilot.pause(0.1)

        await more("first")
        assert "first 29" in on.text("events").splitlines()[1], "nobody has chosen an older one"
        await on.press("4", "j", "j", "j")
        assert panel.event.text == "first 26"
        await more("second")
        assert panel.event.text == "first 26" and "first 26" in on.text("events")
        monkeypatch.setattr(events, "LEFT_ALONE_S", -1.0)
        await more("third")
        assert "third 29" in on.text("events").splitlines()[1]


async def test_left_alone_the_queue_shows_what_trains_not_what_was_selected_first(
    server: Any, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first waiting job is selected at the start; weeks later it has long been done."""
    first = next(job for job in server.state.jobs if job["state"] == "waiting")
    running = server.state.jobs[0]
    async with stage(server) as on:
        panel = on.app.query_one("#queue")
        assert panel.selected == first["id"]
        monkeypatch.setattr(queue, "LEFT_ALONE_S", -1.0)
        finish(server, first)
        await on.until(lambda: panel.selected != first["id"], "let go of")
        assert panel.job is not None and panel.job.state == "waiting"
        assert f"#{running['id']}" in on.text("queue").splitlines()[1], "what trains is in sight"

        monkeypatch.setattr(queue, "LEFT_ALONE_S", 60.0)
        await on.press("2", "j")
        chosen = panel.selected
        finish(server, next(job for job in server.state.jobs if job["id"] == chosen))
        await on.until(lambda: on.app.view.job(chosen).state == "completed", "done")
        assert panel.selected == chosen, "somebody is looking at it"
        panel.changed()  # as by a key: the job had ended by then
        monkeypatch.setattr(queue, "LEFT_ALONE_S", -1.0)
        await on.pilot.pause(0.1)
        assert panel.selected == chosen, "and reads how it went, as long as it takes"
