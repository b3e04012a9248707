"""The palette: every action of the table, and the reason when one cannot be done now."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from trainer_tui.tui.actions import ACTIONS, KEY_WORDS, Action

if TYPE_CHECKING:
    from trainer_tui.tui.control import TrainerApp


LISTED = [action for action in ACTIONS if not action.id.startswith("panel_")]


class Commands(Provider):
    @property
    def _app(self) -> TrainerApp:
        return cast("TrainerApp", self.app)

    def _words(self, action: Action) -> tuple[str, str]:
        """(what it does, its keys or why not)."""
        reason = action.why_not(self._app.situation())
        keys = " ".join(KEY_WORDS.get(key, key) for key in action.keys)
        below = f"not now: {reason}" if reason else f"key: {keys}" if keys else "no key"
        return action.help, below

    async def discover(self) -> Hits:
        for action in LISTED:
            words, below = self._words(action)
            yield DiscoveryHit(words, partial(self._run, action), help=below)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for action in LISTED:
            words, below = self._words(action)
            score = max(matcher.match(words), matcher.match(action.label))
            if score > 0:
                shown = matcher.highlight(words)
                yield Hit(score, shown, partial(self._run, action), text=words, help=below)

    def _run(self, action: Action) -> None:
        self._app.act(action, anywhere=True)
