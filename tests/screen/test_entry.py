"""A line that is asked for: keys in their order, and what typing does to what stands there."""

from __future__ import annotations

import pytest
from textual import events
from textual.app import App

from trainer_tui.tui.dialogs.ask import Prompt


@pytest.mark.parametrize("keys", ["ctrl+u", "home,ctrl+k", "ctrl+w,ctrl+w,ctrl+w,ctrl+w,ctrl+w"])
async def test_keys_that_come_in_one_packet_are_taken_in_their_order(keys):
    """A slow link delivers ctrl+u, a path and enter at once; the path must not be what is cut."""
    answers: list[str | None] = []

    class Host(App[None]):
        def on_mount(self) -> None:
            self.push_screen(
                Prompt("a", "b", "models/base of old", "no such folder"), answers.append
            )

    app = Host()
    async with app.run_test() as pilot:
        await pilot.pause()
        for key in [*keys.split(","), *"/srv/new", "enter"]:
            name = {"/": "slash"}.get(key, key)
            app.post_message(events.Key(name, key if len(key) == 1 else None))
        for _ in range(200):
            if answers:
                break
            await pilot.pause(0.05)
    assert answers == ["/srv/new"]


async def test_typing_replaces_what_is_proposed_and_corrects_what_was_refused():
    class Host(App[None]):
        pass

    for problem, expected in (("", "x"), ("no such folder", "models/basex")):
        app, answers = Host(), []
        async with app.run_test() as pilot:
            app.push_screen(Prompt("a", "b", "models/base", problem), answers.append)
            await pilot.pause()
            await pilot.press("x", "enter")
            await pilot.pause()
        assert answers == [expected]
