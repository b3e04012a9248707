"""The random state that dropout draws from, as text for `trainer_state.json`.

Limits: torch's generators only; nothing else in the engine draws random numbers.
"""

from __future__ import annotations

import base64

import torch

from trainer_tui.safety.errors import Corrupt


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)


def capture(device: torch.device) -> dict[str, str]:
    """Generator states by device type, base64. No host sync: CUDA keeps seed and offset here."""
    states = {"cpu": _text(torch.get_rng_state())}
    if device.type == "cuda":
        states["cuda"] = _text(torch.cuda.get_rng_state(device))
    return states


def restore(states: dict[str, str], saved_on: str, device: torch.device) -> list[str]:
    """Continue the generators where they were; returns notes for people.

    Raises:
        Corrupt: the state of a generator that was in use is missing, so a resume would differ.
    """
    wanted = ["cpu"] + (["cuda"] if saved_on == "cuda" else [])
    missing = [name for name in wanted if name not in states]
    if missing:
        raise Corrupt(
            f"the checkpoint has no random state for {missing[0]}, so it cannot be resumed exactly",
            "restore a version instead: trainer-tui versions restore vNNN",
        )
    torch.set_rng_state(_tensor(states["cpu"]))
    if device.type == "cuda" and saved_on == "cuda":
        torch.cuda.set_rng_state(_tensor(states["cuda"]), device)
    if device.type != saved_on:
        return [f"saved on {saved_on}, going on on {device.type}: not bit for bit the same"]
    return []


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
