"""A behaviour profile for generation elsewhere: `LogitsProcessor`, `generation_config` entries.

This machine does not generate; whoever serves the checkpoints may want the guarantee besides the
habit that training gave.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from trainer_tui.engine.profiles import MOST, Profile


class BehaviourProcessor(LogitsProcessor):  # type: ignore[misc]
    """Forbids think tags and ends the turn after a stop sequence; every row of a batch for itself.

    Args:
        profile: as trained.
        longest: after this many equal emojis in a row only the end of the turn is allowed; after
            `shortest` no further emoji is.
    """

    def __init__(self, profile: Profile, shortest: int = MOST, longest: int = MOST) -> None:
        self._profile = profile
        self._shortest = shortest
        self._longest = longest

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids [batch, tokens], scores [batch, vocabulary] -> scores [batch, vocabulary]."""
        profile = self._profile
        scores = scores.clone()
        if profile.think == "forbid" and profile.forbidden_ids:
            scores[:, list(profile.forbidden_ids)] = -torch.inf
        for row, ids in enumerate(input_ids.tolist()):
            for tag in profile.tags if profile.think == "forbid" else ():
                if len(tag) > 1 and tuple(ids[-(len(tag) - 1) :]) == tag[:-1]:
                    scores[row, tag[-1]] = -torch.inf
            count = max((_run_length(ids, emoji) for emoji in profile.emojis), default=0)
            if count >= self._longest:
                end = scores[row, profile.stop_id].clone()
                scores[row] = -torch.inf
                scores[row, profile.stop_id] = end
            elif count >= self._shortest:
                scores[row, list(profile.emoji_starts)] = -torch.inf
        return scores


def _run_length(ids: list[int], emoji: tuple[int, ...]) -> int:
    """How often the emoji stands at the end of the tokens, without a gap."""
    count, end = 0, len(ids)
    while end >= len(emoji) and tuple(ids[end - len(emoji) : end]) == emoji:
        count, end = count + 1, end - len(emoji)
    return count


def generation_entries(profile: Profile) -> dict[str, Any]:
    """What of it `generation_config.json` can say by itself; {} for nothing."""
    if profile.think == "forbid" and profile.forbidden_ids:
        return {"suppress_tokens": list(profile.forbidden_ids)}
    return {}
