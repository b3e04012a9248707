"""How far a behaviour profile has come, measured on validation rows without generating text.

Teacher-forced: the probabilities that the model gives at positions of real rows. Every figure is a
mean over the positions it is about; a figure without a position is left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from trainer_tui.engine.attention import hidden_states
from trainer_tui.engine.batch import MicroBatch, collate
from trainer_tui.engine.head_loss import head_of
from trainer_tui.engine.profiles import Profile
from trainer_tui.engine.step import TokenMask

CHUNK_ROWS = 2048


@torch.no_grad()
def measure(
    model: nn.Module, profile: Profile, documents: list[TokenMask], device: torch.device
) -> dict[str, float]:
    """`p_forbidden` over all targets; `p_end_after_stop` and `p_further_emoji` after a stop.

    The model must be in evaluation mode; one micro-batch, so give it no more than fits.
    """
    documents = [document for document in documents if document[1][1:].any()]
    if not documents or not (profile.shapes_loss or profile.forbidden_ids):
        return {}
    batch = collate(documents, device)
    after_stop = _after_stop(profile, documents, device)
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}

    def add(name: str, values: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros((), device=device)) + values.sum()
        counts[name] = counts.get(name, torch.zeros((), device=device)) + values.numel()

    for rows, probabilities in _probabilities(model, batch):
        if profile.forbidden_ids:
            ids = torch.tensor(profile.forbidden_ids, device=device)
            add("p_forbidden", probabilities[:, ids].sum(-1))
        if profile.emojis:
            here = probabilities[after_stop[rows]]
            starts = torch.tensor(profile.emoji_starts, device=device)
            add("p_end_after_stop", here[:, profile.stop_id])
            add("p_further_emoji", here[:, starts].sum(-1))
    # The host waits for the device here: once an evaluation.
    return {name: float(sums[name] / counts[name]) for name in sums if float(counts[name])}


def _probabilities(model: nn.Module, batch: MicroBatch) -> Iterator[tuple[slice, Tensor]]:
    weight, head = head_of(model)
    states = hidden_states(model, batch, batch.predict_from)
    for start in range(0, len(states), CHUNK_ROWS):
        rows = slice(start, min(start + CHUNK_ROWS, len(states)))
        logits = (states[rows] @ weight.t().to(states.dtype)).float() * head.scale
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        yield rows, logits.softmax(-1)


def _after_stop(profile: Profile, documents: list[TokenMask], device: torch.device) -> Tensor:
    """bool [supervised]: the target stands right after a complete stop sequence."""
    found = []
    for ids, mask in documents:
        targets = np.flatnonzero(mask)
        found.append(profile.after_stop(ids)[targets[targets > 0]])
    return torch.from_numpy(np.concatenate(found)).to(device)
