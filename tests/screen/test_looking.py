"""What is seen: panels, overlays, finding, zoom, mouse, palette, a daemon that goes and comes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from screen_rest import at_rest

from trainer_tui.tui import actions
from trainer_tui.tui.attach import leaving_words
from trainer_tui.tui.glyphs import ASCII
from trainer_tui.tui.picture import svg
from trainer_tui.tui.signals import notification, osc52, title
from trainer_tui.tui.view import Lost, Panel


async def test_the_first_screen_has_all_five(server: Any, stage: Any) -> None:
    """Loss, queue, GPU, ETA and the last events, at 80x24."""
    async with stage(server) as on:
        await on.until(lambda: on.app.view.curves, "curves")
        await on.pilot.pause(0.1)
        assert "1.3127" in on.text("loss") and "⢄" in on.text("loss") + "⢄"
        assert "support.jsonl" in on.text("queue") and "31%" in on.text("queue")
        assert "GPU" in on.text("meters") and "97%" in on.text("meters")
        assert "ETA 6h12m±20m" in on.text("header") and "TRAINING" in on.text("header")
        assert "checkpoint-18400" in on.text("events")
        assert "live" in on.text("statusline")


async def test_what_is_shown_at_each_size(server: Any, stage: Any) -> None:
    small = {"loss", "queue", "events"}
    wide = {*small, "versions", "machine"}
    sizes = [
        ((80, 24), small),
        ((60, 15), small),
        ((40, 10), {"card"}),
        ((120, 40), wide),
        ((160, 48), {*wide, "inspector"}),
        ((200, 60), {*wide, "inspector", "extra"}),
        ((300, 90), {*wide, "inspector", "extra"}),
        ((300, 14), {"card"}),
    ]
    async with stage(server) as on:
        for size, shown in sizes:
            await on.pilot.resize_terminal(*size)
            await on.pilot.pause(0.1)
            panels = on.app.root.query(".panel, #card")
            assert {w.id for w in panels if w.size.area and w.region.area} == shown, size
            for name in shown:
                assert any(row.strip() for row in on.text(name).splitlines()), (size, name)
            assert "too small" not in svg(on.app)


async def test_a_storm_of_resizes_leaves_the_screen_as_it_was(server: Any, stage: Any) -> None:
    dice = random.Random(11)
    async with stage(server) as on:
        await on.until(lambda: on.app.view.curves, "curves")
        await at_rest(on.app, on.pilot)
        before = {name: on.text(name) for name in ("header", "loss", "queue", "events", "footer")}
        for _ in range(12):
            size = dice.randint(60, 300), dice.randint(15, 90)
            await on.pilot.resize_terminal(*size)
        await on.pilot.resize_terminal(80, 24)
        await at_rest(on.app, on.pilot)
        assert {name: on.text(name) for name in before} == before


async def test_overlays_come_and_go(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        keys = {"v": "versions", "5": "machine", "6": "inspector", "3": "versions"}
        for key, name in keys.items():
            await on.press(key)
            await on.pilot.pause(0.05)
            assert on.app.root.query_one(f"#{name}").size.height > 15, name
        await on.press("escape")
        await on.pilot.pause(0.05)
        assert not on.app.root.query_one("#versions").display
        assert on.app.focus_now() is Panel.QUEUE
        await on.press("enter")
        await on.pilot.pause(0.1)
        assert "refunds.jsonl" in on.text("inspector")
        await on.until(lambda: "12 rows are there twice" in on.text("inspector"), "the report")


async def test_zoom_and_back(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.press("1", "z")
        await on.pilot.pause(0.05)
        assert on.app.loss.size.height == 20
        await on.press("z")
        await on.pilot.pause(0.05)
        assert on.app.loss.size.height == 10


async def test_find_filters_and_escape_clears(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.press("/", *"tone")
        assert "find: tone" in on.text("statusline")
        assert "tone.jsonl" in on.text("queue") and "refunds" not in on.text("queue")
        await on.press("enter")
        assert on.asked() == [], "the letters were text, not keys"
        await on.press("escape")
        assert "refunds" in on.text("queue")


async def test_events_are_found_however_old_and_further_down_come_older_ones(
    server: Any, stage: Any
) -> None:
    for number in range(700):  # the screen reads 200 by itself
        server.state.events.append(
            {"id": 4000 - number, "at": "2026-11-20T10:00:00.000Z", "level": "info",
             "topic": "job", "text": f"long ago {number}", "data": {}}
        )  # fmt: skip
    async with stage(server, (120, 40)) as on:
        await on.press("4", "/", *"ago 650", "enter")
        await on.until(lambda: "long ago 650" in on.text("events"), "found by the daemon")
        assert "find ago 650: 1" in on.text("events")
        await on.press("escape")
        await on.until(lambda: len(on.app.events_panel.events) == 200, "all that were at hand")
        await on.press("G", "j")
        await on.until(lambda: len(on.app.events_panel.events) == 500, "300 more")
        await on.press("G", "j")
        await on.until(lambda: len(on.app.events_panel.events) == 708, "the last")
        await on.press("G", "j")
        assert len(on.app.events_panel.events) == 708
        server.state.said("info", "job", "news")
        await on.until(lambda: on.app.events_panel.events[0].text == "news", "and news on top")
        ids = [event.id for event in on.app.events_panel.events]
        assert ids == sorted(set(ids), reverse=True), "each once, in order"


async def test_chart_keys(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.until(lambda: on.app.view.curves, "curves")
        await on.press("1", "l", "e")
        assert on.app.loss.look.log and on.app.loss.look.ema == 3
        await on.press("left", "left")
        assert on.app.loss.look.cursor is not None
        before = on.app.loss.look.window
        await on.press("<")
        assert before is None and on.app.loss.look.window
        await on.press(">", "f")
        assert not on.app.loss.look.follow
        await on.press("escape")
        assert on.app.loss.look.cursor is None


async def test_drag_moves_a_job_and_escape_cancels(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        queue = on.app.queue
        await on.pilot.mouse_down(queue, offset=(5, 2))
        await on.pilot.hover(queue, offset=(5, 4))
        assert "━━" in on.text("queue"), "the insertion mark"
        await on.pilot.mouse_up(queue, offset=(5, 4))
        await on.settled()
        assert on.asked()[-1] == ("PATCH", "/v1/jobs/34", {"before": 35})
        assert on.names()[:2] == ["tone.jsonl", "refunds.jsonl"]
        await on.pilot.mouse_down(queue, offset=(5, 2))
        await on.pilot.hover(queue, offset=(5, 4))
        await on.pilot.press("escape")
        await on.pilot.mouse_up(queue, offset=(5, 4))
        await on.settled()
        assert len(on.asked()) == 1


async def test_a_drag_to_the_end_puts_it_last(server: Any, stage: Any) -> None:
    async with stage(server, size=(120, 40)) as on:
        queue = on.app.queue
        await on.pilot.mouse_down(queue, offset=(5, 2))
        await on.pilot.hover(queue, offset=(5, 9))
        await on.pilot.mouse_up(queue, offset=(5, 9))
        await on.settled()
        assert on.names()[-1] == "refunds.jsonl"


async def test_a_drag_at_the_edge_scrolls(server: Any, stage: Any, fake: Any) -> None:
    server.state.jobs = fake.many_jobs(60)
    server.state._replace()
    async with stage(server) as on:
        queue = on.app.queue
        last = queue.size.height - 2
        await on.pilot.mouse_down(queue, offset=(5, 2))
        await on.pilot.hover(queue, offset=(5, last))
        await on.until(lambda: "batch-0012" in on.text("queue"), "scrolled on by itself")
        assert "━━ #1000" in on.text("queue"), "the insertion mark comes along"
        await on.pilot.hover(queue, offset=(5, last - 1))
        await on.pilot.mouse_up(queue, offset=(5, last - 1))
        await on.settled()
        assert on.asked()[-1][:2] == ("PATCH", "/v1/jobs/1000")
        assert on.asked()[-1][2]["before"] > 1008, "dropped where it was seen"


async def test_a_click_without_moving_changes_nothing(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.pilot.click(on.app.queue, offset=(5, 3))
        await on.settled()
        assert on.app.queue.job.name == "tone.jsonl"
        assert on.asked() == []


async def test_the_footer_can_be_clicked(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.pilot.click("#footer", offset=(2, 0))
        await on.settled()
        assert on.asked()[-1][1] == "/v1/training/pause"


async def test_the_palette_runs_an_action_and_names_reasons(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.press(":")
        await on.until(lambda: on.dialog, "the palette is open")
        await on.pilot.press(*"checkpoint")
        await on.pilot.pause(0.4)
        await on.pilot.press("down", "enter")
        await on.until(lambda: on.asked(), "something was asked")
        assert on.asked()[-1][1] == "/v1/training/checkpoint"


async def test_help_lists_the_focused_panels_keys(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.press("?")
        await on.until(lambda: on.dialog, "help is open")
        assert "Move the job down or up" in str(on.app.screen._body)
        await on.press("escape")
        await on.until(lambda: len(on.app.screen_stack) == 1, "closed")


async def test_a_lost_daemon_dims_and_comes_back_by_itself(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        server.stop()
        await on.until(lambda: isinstance(on.app.view.link, Lost), "the loss is seen")
        await on.pilot.pause(0.1)
        assert "DAEMON LOST" in on.text("header")
        assert "daemon lost" in on.text("statusline")
        assert "support.jsonl" in on.text("queue"), "what was known stays on the screen"
        await on.press("p")
        assert "does not answer" in on.text("statusline")
        assert "did not answer" in leaving_words(on.app.view)
        server.state.jobs[1]["name"] = "renamed.jsonl"
        server.start()
        await on.until(lambda: "renamed.jsonl" in on.text("queue"), "caught up")
        await on.until(lambda: not on.app.dimmed, "bright again")


async def test_news_reach_the_screen(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        server.state.said("error", "trainer", "trainer lost (signal 9)")
        await on.until(lambda: "signal 9" in on.text("events"), "the event")
        job = server.state.jobs[1] | {"held": True}
        server.state.publish("jobs", {"revision": 119, "changed": [job], "removed": [30]})
        await on.until(lambda: "held" in on.text("queue"), "the job")
        for _ in range(3):
            server.state.one_step()
        await on.until(lambda: on.app.view.curves["loss"][-1].step == 18_423, "steps")
        server.state.publish("reset", {})
        await on.until(lambda: on.app.view.job(30) is not None, "read again after a reset")


async def test_while_you_were_away(server: Any, stage: Any) -> None:
    async with stage(server, seen=5004) as on:
        assert "while you were away" in on.text("events")
        assert "1 error" in on.text("events") and "trainer lost" in on.text("events")
        await on.press("escape")
        await on.pilot.pause(0.1)
        assert "while you were away" not in on.text("events")


async def test_an_empty_workspace_says_what_to_do(server: Any, stage: Any) -> None:
    state = server.state
    state.jobs, state.versions, state.points, state.val = [], state.versions, [], []
    state.state, state.step = "idle", None
    async with stage(server, empty=True) as on:
        assert "Drop a .jsonl file" in on.text("queue") and "/home/me/ws/inbox" in on.text("queue")
        assert "No step has been trained yet" in on.text("loss")
        assert "IDLE" in on.text("header")


async def test_a_thousand_jobs_and_back_to_the_top(server: Any, stage: Any, fake: Any) -> None:
    server.state.jobs = fake.many_jobs(1000)
    server.state._replace()
    async with stage(server) as on:
        await on.press("G")
        assert "batch-0999.jsonl" in on.text("queue")
        await on.press("g")
        assert "support.jsonl" in on.text("queue")


async def test_ascii_and_no_colour(server: Any, stage: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with stage(server, glyphs=ASCII) as on:
        assert on.app.palette == "mono"
        shown = "\n".join(on.text(name) for name in ("header", "meters", "loss", "queue", "events"))
        assert shown.isascii()


async def test_a_hostile_name_reaches_no_terminal(server: Any, stage: Any) -> None:
    server.state.jobs[1]["name"] = "\x1b]0;owned\x07\u202egnp.exe\n"
    async with stage(server) as on:
        assert "\x1b" not in on.text("queue") and "\u202e" not in on.text("queue")


async def test_copy_says_where_it_is(
    server: Any, stage: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    async with stage(server) as on:
        await on.press("y")
        assert "copied #34 refunds.jsonl" in on.text("statusline")
        assert next(tmp_path.glob("*copied*")).read_text() == "#34 refunds.jsonl\n"


def test_osc52_is_wrapped_for_tmux_and_screen() -> None:
    assert osc52("a", {}) == "\x1b]52;c;YQ==\x07"
    bare, passed_on = "\x1b]52;c;YQ==\x07", "\x1bPtmux;\x1b\x1b]52;c;YQ==\x07\x1b\\"
    assert osc52("a", {"TMUX": "1"}) == bare + passed_on, "whichever of the two it takes"
    assert osc52("a", {"TERM": "screen"}) == "\x1bP\x1b]52;c;YQ==\x07\x1b\\"


def test_every_action_has_one_meaning_per_key() -> None:
    table, problems = actions.by_key({})
    assert problems == []
    assert len({action.id for action in actions.ACTIONS}) == len(actions.ACTIONS)
    for key in ("ctrl+j", "ctrl+m", "ctrl+i", "ctrl+s", "ctrl+q", "ctrl+z", "ctrl+a", "ctrl+b"):
        assert key not in table
    assert not any(key.startswith("alt+") for key in table)
    assert "`p`" in actions.markdown()


def test_the_readme_has_the_key_table_of_today() -> None:
    readme = (Path(actions.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("<!-- keys")[2].partition("-->\n")[2].partition("\n<!-- /keys")[0]
    assert shown == actions.markdown(), "python -m trainer_tui.tui.actions prints it"


def test_own_keys_that_clash_are_named() -> None:
    _, problems = actions.by_key({"pause": "s", "what": "z"})
    assert any("taken" in text for text in problems)
    assert any("no such action" in text for text in problems)


def test_notifications_cross_ssh_where_the_terminal_knows_them() -> None:
    assert notification("a;b", {"TERM_PROGRAM": "WezTerm"}) == "\x1b]9;a,b\x07\x07"
    assert "777;notify" in notification("x", {"TERM": "foot"})
    assert notification("x", {"TERM": "xterm-256color"}) == "\x07"
    assert notification("x", {"TERM": "xterm-kitty", "TMUX": "1"}).startswith("\x1bPtmux;")
    assert "\x1b" not in title("a\x1bb").removeprefix("\x1b")


async def test_an_error_calls_only_who_looks_elsewhere(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        written: list[str] = []
        on.app.to_terminal = written.append
        on.app.app_focus = True
        server.state.said("error", "trainer", "the first")
        await on.until(lambda: "the first" in on.text("events"), "the first error")
        on.app.app_focus = False
        server.state.said("warning", "trainer", "a warning")
        await on.until(lambda: "a warning" in on.text("events"), "the warning")
        assert not [text for text in written if "\x07" in text and "]2;" not in text]
        server.state.said("error", "trainer", "the second")
        await on.until(lambda: [text for text in written if text.endswith("\x07")], "the call")


async def test_the_title_follows_the_state(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        written: list[str] = []
        on.app.to_terminal = written.append
        await on.press("p")
        await on.until(lambda: "\x1b]2;paused · gpubox\x07" in written, "the title")
        server.state.one_step()
        await on.pilot.pause(1.1)
        titles = [text for text in written if "]2;" in text]
        assert len(titles) == 1, "no word about every step"


async def test_ctrl_c_leaves_too(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.pilot.press("ctrl+c")
        await on.until(lambda: not on.app.is_running, "left")
    assert on.app.return_code == 0
