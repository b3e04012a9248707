"""Memory ran out: is it our step that is too large, or does another process hold the card?

Invariant: a step that fitted before and would fit without the others is waited for, boundedly, and
with a word to people; everything else shrinks. Waiting changes no random number and no weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer_tui.safety import clock

WAIT_LIMIT_S = 600.0
LOOK_EVERY_S = 2.0
MARGIN_BYTES = 256 << 20  # the context's own needs, and what moves while one looks


@dataclass(frozen=True, slots=True)
class Card:
    """Bytes of the card: all of it, free, and reserved by this process."""

    total_bytes: int
    free_bytes: int
    ours_bytes: int

    @property
    def others_bytes(self) -> int:
        return max(0, self.total_bytes - self.free_bytes - self.ours_bytes)

    @property
    def figures(self) -> dict[str, int]:
        """For an incident."""
        return {
            "total_bytes": self.total_bytes,
            "free_bytes": self.free_bytes,
            "ours_bytes": self.ours_bytes,
            "others_bytes": self.others_bytes,
        }

    def has_room_for(self, needed_bytes: int) -> bool:
        """Whether this process could hold so much, what it holds now included."""
        return self.free_bytes + self.ours_bytes >= needed_bytes + MARGIN_BYTES


def look(device: torch.device) -> Card | None:
    """The card as it is now; None without one."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return Card(total, free, int(torch.cuda.memory_reserved(device)))


def needed_bytes(device: torch.device) -> int:
    """The most that this process has held since `forget_peak`; 0 without a card."""
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else 0


def forget_peak(device: torch.device) -> None:
    """Steps are of another size from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def others_are_to_blame(card: Card | None, fitted: bool, needed: int) -> bool:
    """`fitted`: a step of this size was done before; it took `needed` bytes then."""
    return card is not None and fitted and needed > 0 and not card.has_room_for(needed)


def wait_for_room(
    device: torch.device, needed: int, sleep: Callable[[float], bool], limit_s: float
) -> bool:
    """Wait until others let go; False when they do not in time, or `sleep` says to leave."""
    deadline_s = clock.monotonic_s() + limit_s
    while clock.monotonic_s() < deadline_s:
        card = look(device)
        if card is None or card.has_room_for(needed):
            return True
        if sleep(LOOK_EVERY_S):
            return False
    return False
