"""What one forward/backward runs: whole documents laid end to end in one row, never padded.

Invariant: every position belongs to exactly one document, positions restart at 0 in each, and
no supervised position is predicted from another document. Only tokens that the loss counts are
listed, so that the head can be charged for them alone.

Limits: one row per micro-batch (batch size 1 in the model's eyes); token ids fit int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Document = tuple[np.ndarray, np.ndarray]  # token ids, and True where the token is trained


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Packed documents on one device.

    `lengths` repeats `document_starts` on the host: kernels' work lists and FLOP counts are made
    from it without waiting for the device.
    """

    input_ids: Tensor  # int64 [1, tokens]
    position_ids: Tensor  # int64 [1, tokens], 0 at the start of each document
    document_starts: Tensor  # int32 [documents + 1], cumulative lengths (cu_seqlens)
    longest: int  # tokens of the longest document
    predict_from: Tensor  # int64 [supervised], positions whose NEXT token is supervised
    labels: Tensor  # int64 [supervised], that next token
    lengths: tuple[int, ...]  # tokens of each document, in order
    weights: Tensor | None = None  # float32 [supervised], or None for 1 everywhere

    @property
    def tokens(self) -> int:
        return int(self.input_ids.shape[1])

    @property
    def supervised(self) -> int:
        return int(self.labels.shape[0])


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    host = torch.from_numpy(array)
    if device.type != "cuda":
        return host.to(device)
    # Pinned and non_blocking: the copy is queued behind the running step instead of waiting for it.
    return host.pin_memory().to(device, non_blocking=True)


def collate(
    documents: Sequence[Document],
    device: torch.device | str,
    weights: Sequence[np.ndarray] | None = None,
) -> MicroBatch:
    """Join whole documents into one micro-batch.

    Args:
        documents: for each document its token ids [length] and a bool mask [length], True where
            the token is a target. The first token of a document has nothing before it and is
            never a target, whatever its mask says.
        device: where the tensors go.
        weights: per document, float [length], how much each target counts; None means 1.

    Raises:
        ValueError: no documents, an empty one, or a mask or weights of another length.
    """
    if not documents:
        raise ValueError("a micro-batch needs at least one document")
    lengths = tuple(len(ids) for ids, _ in documents)
    if min(lengths) == 0:
        raise ValueError("a document of a micro-batch is empty")
    if any(len(mask) != length for (_, mask), length in zip(documents, lengths, strict=True)):
        raise ValueError("a document's mask has another length than its ids")

    starts = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    ids = np.concatenate([ids for ids, _ in documents]).astype(np.int64, copy=False)
    is_target = np.concatenate([mask for _, mask in documents]).astype(bool, copy=True)
    is_target[starts[:-1]] = False
    targets = np.flatnonzero(is_target)  # int64 [supervised]
    positions = np.arange(len(ids), dtype=np.int64) - np.repeat(starts[:-1], lengths)

    target_weights = None
    if weights is not None:
        flat = np.concatenate([np.asarray(w, dtype=np.float32) for w in weights])
        if len(flat) != len(ids):
            raise ValueError("the weights have another length than the ids")
        target_weights = _to_device(flat[targets], torch.device(device))

    where = torch.device(device)
    return MicroBatch(
        input_ids=_to_device(ids[None], where),
        position_ids=_to_device(positions[None], where),
        document_starts=_to_device(starts, where),
        longest=max(lengths),
        predict_from=_to_device(targets - 1, where),
        labels=_to_device(ids[targets], where),
        lengths=lengths,
        weights=target_weights,
    )
