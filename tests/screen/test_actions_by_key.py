"""Every action by its key: the request that the daemon gets, and the reply that is shown."""

from __future__ import annotations

import random
from typing import Any

from textual import events
from textual.keys import _character_to_key

from trainer_tui.tui import actions


async def test_pause_and_resume_are_one_key(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.press("p")
        assert on.asked()[-1] == ("POST", "/v1/training/pause", {"release": False})
        await on.until(lambda: on.app.view.training.state == "paused", "paused is seen")
        assert "paused" in on.text("statusline")
        await on.until(lambda: "Resume" in on.text("footer"), "the footer follows")
        await on.press("p")
        assert on.asked()[-1][1] == "/v1/training/resume"
        await on.until(lambda: on.app.view.training.state == "training", "resumed is seen")


async def test_the_stop_menu(server: Any, stage: Any) -> None:
    answers: list[tuple[str, Any]] = [
        ("escape", None),
        ("enter", None),
        ("s", None),
        ("f", ("POST", "/v1/training/stop", {"now": False})),
        ("k", ("POST", "/v1/training/skip", {"job": 31})),
        ("n", ("POST", "/v1/training/stop", {"now": True})),
    ]
    async with stage(server) as on:
        for answer, request_seen in answers:
            before = len(on.asked())
            await on.press("s")
            await on.until(lambda: on.dialog, "the menu is open")
            await on.press(answer)
            if request_seen is None:
                assert len(on.asked()) == before, answer
                await on.press("escape")
                await on.until(lambda: len(on.app.screen_stack) == 1, "closed")
            else:
                await on.until(lambda n=before: len(on.asked()) > n, "the daemon was asked")
                assert on.asked()[-1] == request_seen


async def test_a_kill_says_what_is_lost_and_wants_the_word(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.press("s")
        await on.until(lambda: on.dialog, "the menu is open")
        await on.pilot.press("x")
        await on.until(lambda: on.app.screen.query("Input"), "asks for the word")
        assert "20 steps since checkpoint-18400 are lost: 16s of training" in str(
            on.app.screen._body
        )
        await on.pilot.press("enter")
        await on.until(lambda: "nothing was killed" in str(on.app.screen._body), "enter alone")
        await on.pilot.press(*"kil", "enter")
        await on.until(lambda: "'kil' is not 'kill'" in str(on.app.screen._body), "nearly")
        await on.pilot.press("escape")
        await on.until(lambda: len(on.app.screen_stack) == 1, "left as it was")
        assert on.asked() == []


async def test_a_job_is_moved(server: Any, stage: Any) -> None:
    """Waiting at first: refunds, tone, greetings, syllogisms. The selection goes along."""
    steps: list[tuple[list[str], list[str]]] = [
        (["J"], ["tone", "refunds", "greetings", "syllogisms"]),
        (["J", "J"], ["tone", "greetings", "syllogisms", "refunds"]),
        (["K"], ["tone", "greetings", "refunds", "syllogisms"]),
        (["shift+up"], ["tone", "refunds", "greetings", "syllogisms"]),
        (["shift+down"], ["tone", "greetings", "refunds", "syllogisms"]),
        (["T"], ["refunds", "tone", "greetings", "syllogisms"]),
        (["j", "B"], ["refunds", "greetings", "syllogisms", "tone"]),
    ]
    async with stage(server) as on:
        for keys, order in steps:
            await on.press(*keys)
            assert [name.split(".")[0].split("-")[0] for name in on.names()] == order, keys
            shown = [job.name for job in on.app.view.waiting]
            assert shown == on.names(), "the screen shows the order that the daemon has"
            assert "u undoes it" in on.text("statusline")


async def test_priority_goes_up_and_down(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.press("j", "+")
        assert on.asked()[-1] == ("PATCH", "/v1/jobs/32", {"priority": "high"})
        await on.press("+")
        assert len(on.asked()) == 1, "higher than high there is nothing"
        await on.press("-")
        assert on.asked()[-1] == ("PATCH", "/v1/jobs/32", {"priority": "normal"})


async def test_remove_retry_hold(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.press("x")
        assert on.asked()[-1][:2] == ("DELETE", "/v1/jobs/34")
        assert "u brings it back" in on.text("statusline")
        assert "refunds" not in on.text("queue")
        await on.press("h")
        assert on.asked()[-1][1] == "/v1/jobs/32/hold"
        await on.press("G", "k", "r")
        await on.until(lambda: on.dialog, "the offer is open")
        await on.press("o")
        await on.until(lambda: on.asked()[-1][1] == "/v1/jobs/30/retry", "retried")
        assert on.asked()[-1][2] == {"accept": True}
        await on.press("G", "r")
        await on.until(lambda: on.asked()[-1][1] == "/v1/jobs/29/again", "a done one again")


async def test_checkpoint_version_undo_redo(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.press("c")
        assert on.asked()[-1][1] == "/v1/training/checkpoint"
        await on.press("C")
        await on.until(lambda: on.dialog, "asks for a description")
        await on.press(*"tone", "enter")
        await on.until(lambda: on.asked()[-1][2] == {"description": "tone"}, "version made")
        await on.press("u")
        assert on.asked()[-1][1] == "/v1/undo"
        await on.press("ctrl+r")
        assert on.asked()[-1][1] == "/v1/redo"


async def test_undoing_what_another_did_asks_first(server: Any, stage: Any) -> None:
    server.state.undo_act = {"by": "the screen of ada", "text": "#34 moved"}
    async with stage(server) as on:
        await on.press("u")
        await on.until(lambda: on.dialog, "asks")
        assert on.asked() == []
        await on.press("y")
        await on.until(lambda: on.asked() and on.asked()[-1][1] == "/v1/undo", "undone")


async def test_a_roll_back_is_not_confirmed_by_any_near_key(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        for key in ("enter", "R", "space", "Y"):
            await on.press("R")
            await on.until(lambda: on.dialog, "asks")
            await on.press(key)
            assert on.asked() == [], key
            await on.press("escape")
            await on.until(lambda: len(on.app.screen_stack) == 1, "closed")


async def test_a_roll_back_says_when_the_files_that_go_with_it_are_not_known(
    server: Any, stage: Any
) -> None:
    server.state.since = {"files_since": [], "files_since_problem": "ledger segment 7 is missing"}
    async with stage(server) as on:
        await on.press("v", "j", "R")
        await on.until(lambda: on.dialog, "asks")
        assert "is not known: ledger segment 7 is missing" in str(on.app.screen._body)
        await on.press("escape")
        await on.until(lambda: len(on.app.screen_stack) == 1, "closed")


async def test_a_roll_back_shows_what_changes_and_y_does_it(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.press("v", "j", "R")
        await on.until(lambda: on.dialog, "asks")
        words = str(on.app.screen._body)
        assert "17 312 to 18 420 are unlearnt" in words
        assert "tone-2.jsonl" in words
        await on.press("y")
        await on.until(lambda: on.asked() == [("POST", "/v1/versions/41/restore", {})], "restored")


async def test_config_change_is_approved_after_it_was_shown(server: Any, stage: Any) -> None:
    server.state.pending = [
        {"key": "max_length", "old": 4096, "new": 8192, "when": "needs_approval"}
    ]
    async with stage(server) as on:
        await on.press("a")
        await on.until(lambda: on.dialog, "asks")
        assert "max_length: 4096 → 8192" in str(on.app.screen._body)
        await on.press("y")
        await on.until(lambda: on.asked() == [("PATCH", "/v1/config", {"approve": True})], "sent")


async def test_a_change_that_waits_for_the_next_start_is_not_said_to_wait_for_a_file(
    server: Any, stage: Any
) -> None:
    server.state.pending = [{"key": "api.listen", "old": "", "new": ":1", "when": "restart"}]
    async with stage(server) as on:
        words = "a config change waits for the daemon's next start"
        await on.until(lambda: words in on.text("statusline"), "says so")


async def test_what_cannot_be_done_says_why(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.press("a")
        assert "no config change waits" in on.text("statusline")
        await on.press("g", "J")
        assert "#31 is being trained" in on.text("statusline")
        await on.press("1", "J")
        assert "press 2 first" in on.text("statusline")
        assert on.asked() == []


async def test_a_refusal_is_shown_with_its_hint(server: Any, stage: Any) -> None:
    problem = {"title": "stale", "detail": "ada moved #34 just now", "hint": "look again"}
    server.state.refuse["/v1/jobs/34"] = (409, problem)
    async with stage(server) as on:
        await on.press("J")
        assert "ada moved #34 just now · look again" in on.text("statusline")


async def test_read_only_changes_nothing(server: Any, stage: Any) -> None:
    async with stage(server, read_only=True) as on:
        for action in actions.ACTIONS:
            if action.changes and action.keys:
                await on.pilot.press(action.keys[0])
        await on.settled()
        assert on.asked() == []
        assert len(on.app.screen_stack) == 1
        assert "read-only" in on.text("statusline")


async def test_pasted_text_never_triggers_keys(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        on.app.post_message(events.Paste("pxsnRyJJJq\nTBc"))
        await on.pilot.pause(0.1)
        assert on.asked() == []
        assert len(on.app.screen_stack) == 1
        assert on.app.is_running


def key_event(key: str) -> events.Key:
    """What the terminal's driver makes of a key; quicker than the pilot's."""
    if len(key) > 1:
        return events.Key(key, None)
    return events.Key(_character_to_key(key), key)


async def test_no_two_keys_lose_a_job_or_a_version(server: Any, stage: Any) -> None:
    """Every pair of keys from a seeded shuffle: whatever happens can be undone or retried."""
    keys = sorted({key for a in actions.ACTIONS for key in a.keys} - {"q", "ctrl+c", "ctrl+p", ":"})
    pairs = [(a, b) for a in keys for b in keys]
    random.Random(5).shuffle(pairs)
    guarded = [("R", key) for key in keys if key != "y"] + [("s", key) for key in keys]
    async with stage(server) as on:
        for first, second in guarded[::8] + pairs[:20]:
            for key in (first, second, "escape"):
                on.app.post_message(key_event(key))
                await on.pilot.pause()
            while len(on.app.screen_stack) > 1:
                await on.pilot.press("escape")
        await on.settled()
        deeds = {(method, path.rstrip("0123456789")) for method, path, _ in on.asked()}
        assert ("DELETE", "/v1/versions/") not in deeds
        assert not any(path.endswith(("/restore", "/rollback")) for _, path, _ in on.asked())
        removed = [path for method, path, _ in on.asked() if method == "DELETE"]
        assert all(path.startswith("/v1/jobs/") for path in removed), "the trash keeps jobs"


async def test_own_keys_from_the_settings(server: Any, stage: Any) -> None:
    server.state.screen = {"keys": {"pause": "P", "nonsense": "z"}}
    async with stage(server) as on:
        await on.until(lambda: "P" in on.app._keys, "the settings have come")
        await on.press("p")
        assert on.asked() == []
        await on.press("P")
        assert on.asked()[-1][1] == "/v1/training/pause"


async def test_keys_in_a_hurry_are_done_in_order(server: Any, stage: Any) -> None:
    async with stage(server) as on:
        await on.pilot.press("J", "J", "J")
        await on.settled()
        assert on.names()[-1] == "refunds.jsonl"
