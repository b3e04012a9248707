"""What shapes a row's tokens besides tokenizer and template; equal options give equal tokens."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from trainer_tui.safety.config import Config

FORMAT = 1  # part of every key: raise it when the same options would give other tokens


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """`max_length` in tokens. `long_rows`: what becomes of longer ones. `injected_tokens`: whether
    tokens that the template adds to an answer (an empty think block) count in the loss.
    `rewritten_turns`: what to do with a row whose earlier turns the template rewrites."""

    max_length: int = 4096
    long_rows: Literal["drop", "truncate", "split_turns"] = "drop"
    injected_tokens: Literal["mask", "train"] = "mask"
    rewritten_turns: Literal["per_turn", "refuse"] = "per_turn"

    @classmethod
    def from_config(cls, config: Config) -> TokenOptions:
        return cls(
            max_length=config.max_length,
            long_rows=config.intake.long_rows,
            injected_tokens=config.intake.injected_tokens,
            rewritten_turns=config.intake.rewritten_turns,
        )

    def key(self) -> str:
        """16 hex digits; changes whenever the tokens of some row could."""
        text = json.dumps([FORMAT, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
