"""The share of a card's peak that a rate of arithmetic is, by the engine's own table."""

from __future__ import annotations

from trainer_tui.engine.model_math import PEAK_BF16_FLOPS


def peak_share(flops_per_s: float, device: str) -> float | None:
    """0..1, or None when the card's peak is not in the table."""
    peak = next((peak for part, peak in PEAK_BF16_FLOPS if part in device), None)
    return None if peak is None else flops_per_s / peak
