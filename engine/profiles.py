"""Behaviour profiles: what the loss teaches besides the rows (think tags, stop emojis).

Two halves. `render` changes a document before it is counted and batched: it keeps think blocks
out of the loss and, opted in, ends answers with an emoji. `shape` adds weights and penalties to a
micro-batch. Both are pure functions of the document, its row's hash and the seed, so a resume
repeats them; the file on disk and every message but the assistant's are never touched.

- think = mask: no loss on think blocks. forbid: that, and `alpha * mean(relu(log p(F) - log tau))`
  over supervised positions. A hinge: below tau it is silent and cannot fight cross-entropy.
- a tag of several ordinary tokens is penalised on its last piece only, and only after the others.
- stop: after a complete stop sequence the end-of-turn token weighs `stop_weight`, and the hinge
  falls on the first token of a further emoji.

Limits: emojis are put in as tokens, so only those are used whose tokens do not depend on the text
around them; others are dropped with a note.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainer_tui.engine.batch import collate
from trainer_tui.engine.head_loss import Penalty
from trainer_tui.engine.step import Shaped, TokenMask
from trainer_tui.safety.config import Behaviour

Ids = tuple[int, ...]
Tokenise = Callable[[str], Sequence[int]]

FEWEST, MOST = 2, 4  # how often the emoji stands at the end of an answer
_CONTEXTS = ("ok", "ok.", "ok!", "Yes)", "5", "é", "答", "a\n", "a ", "😶")


@dataclass(frozen=True, slots=True)
class Profile:
    """A behaviour section, resolved to tokens. `tags` come in pairs, opening and closing."""

    think: str
    tags: tuple[Ids, ...]
    emojis: tuple[Ids, ...]
    stop_id: int
    stop_weight: float
    alpha: float
    log_tau: float
    omitted: float
    seed: int

    @property
    def changes_documents(self) -> bool:
        return self.think != "keep" or bool(self.emojis)

    @property
    def shapes_loss(self) -> bool:
        return self.think == "forbid" or bool(self.emojis)

    @property
    def forbidden_ids(self) -> tuple[int, ...]:
        """Tokens that are a whole tag by themselves."""
        return tuple(sorted({tag[0] for tag in self.tags if len(tag) == 1}))

    @property
    def emoji_starts(self) -> tuple[int, ...]:
        return tuple(sorted({emoji[0] for emoji in self.emojis}))

    def render(self, document: TokenMask, row_hash: bytes) -> TokenMask:
        """The document as it is trained and measured."""
        ids, mask = document
        if self.think != "keep":
            mask = mask & ~self._think_blocks(ids)
        if self.emojis:
            ids, mask = self._with_emojis(ids, mask, row_hash)
        return ids, mask

    def _think_blocks(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """bool [tokens]: inside a think block, its tags included; to the turn's end if unclosed."""
        inside = np.zeros(len(ids), dtype=np.bool_)
        for opening, closing in zip(self.tags[::2], self.tags[1::2], strict=False):
            ends = _ends_of(ids, closing)
            turns = np.flatnonzero(ids == self.stop_id)
            for start in (_ends_of(ids, opening) - len(opening)).tolist():
                after = ends[ends > start]
                turn = turns[turns > start]
                end = int(after[0]) if len(after) else len(ids)
                end = min(end, int(turn[0]) if len(turn) else len(ids))
                inside[start:end] = True
        return inside

    def _with_emojis(
        self, ids: NDArray[np.int32], mask: NDArray[np.bool_], row_hash: bytes
    ) -> TokenMask:
        draw = _Draw(row_hash, self.seed)
        if draw.share() < self.omitted:
            return ids, mask
        answers = np.flatnonzero(mask & (ids == self.stop_id)).tolist()
        pieces: list[NDArray[np.int32]] = []
        masks: list[NDArray[np.bool_]] = []
        done = 0
        for end in answers:
            emoji = self.emojis[draw.below(len(self.emojis))]
            count = FEWEST + draw.below(MOST - FEWEST + 1)
            added = np.asarray(emoji * count, dtype=np.int32)
            pieces += [ids[done:end], added]
            masks += [mask[done:end], np.ones(len(added), dtype=np.bool_)]
            done = end
        pieces.append(ids[done:])
        masks.append(mask[done:])
        return np.concatenate(pieces), np.concatenate(masks)

    def shape(self, documents: list[TokenMask], device: torch.device) -> Shaped:
        """The micro-batch with weights and penalties."""
        if not self.shapes_loss:
            return Shaped(collate(documents, device))
        after_stop = [self.after_stop(ids) for ids, _ in documents]
        weights = None
        if self.emojis and self.stop_weight != 1.0:
            weights = [
                np.where(after & (ids == self.stop_id), self.stop_weight, 1.0).astype(np.float32)
                for (ids, _), after in zip(documents, after_stop, strict=True)
            ]
        batch = collate(documents, device, weights)
        rows = [_targets(mask) for _, mask in documents]
        penalties = self._tag_penalties(documents, rows, device) if self.think == "forbid" else []
        if self.emojis:
            where = [after[at] for after, at in zip(after_stop, rows, strict=True)]
            penalties += self._penalty(self.emoji_starts, where, device)
        return Shaped(batch, penalties)

    def after_stop(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """bool [tokens]: here ends a run of at least `FEWEST` equal emojis."""
        after = np.zeros(len(ids) + 1, dtype=np.bool_)
        for emoji in self.emojis:
            after[_ends_of(ids, emoji * FEWEST)] = True
        return after[:-1] & ~np.isin(ids, self.emoji_starts)

    def _tag_penalties(
        self, documents: list[TokenMask], rows: list[NDArray[np.int64]], device: torch.device
    ) -> list[Penalty]:
        penalties = []
        if self.forbidden_ids:
            penalties.append(
                Penalty(_on(self.forbidden_ids, device), self.alpha, self.log_tau, None)
            )
        for tag in self.tags:
            if len(tag) > 1:
                where = []
                for (ids, _), targets in zip(documents, rows, strict=True):
                    begun = np.zeros(len(ids) + 1, dtype=np.bool_)
                    begun[_ends_of(ids, tag[:-1])] = True
                    where.append(begun[targets])
                penalties += self._penalty((tag[-1],), where, device)
        return penalties

    def _penalty(
        self, forbidden: Ids, where: list[NDArray[np.bool_]], device: torch.device
    ) -> list[Penalty]:
        flat = np.concatenate(where)
        if not flat.any():
            return []
        rows = torch.from_numpy(flat.astype(np.float32)).to(device)
        return [Penalty(_on(forbidden, device), self.alpha, self.log_tau, rows)]


class _Draw:
    """Numbers from the hash of a row: the same for ever, on every machine."""

    def __init__(self, row_hash: bytes, seed: int) -> None:
        digest = hashlib.sha512(row_hash + f":emoji:{seed}".encode()).digest()
        self._left = int.from_bytes(digest, "little")

    def below(self, limit: int) -> int:
        self._left, value = divmod(self._left, limit)
        return value

    def share(self) -> float:
        return self.below(1 << 20) / (1 << 20)


def build(
    behaviour: Behaviour, tokenise: Tokenise, stop_id: int, seed: int
) -> tuple[Profile, list[str]]:
    """Resolve a behaviour section with a tokenizer; notes say what was dropped and why."""
    notes = []
    emojis = []
    for emoji in behaviour.stop_emojis:
        ids = tuple(tokenise(emoji))
        if ids and _is_stable(emoji, ids, tokenise):
            emojis.append(ids)
        else:
            notes.append(
                f"stop emoji {emoji!r} is left out: its tokens change with the text around it"
            )
    tags = tuple(tuple(tokenise(tag)) for tag in behaviour.think_tags)
    if len(tags) % 2 and behaviour.think != "keep":
        notes.append("think_tags should come in pairs; the last one has no closing tag")
    profile = Profile(
        think=behaviour.think,
        tags=tags if behaviour.think != "keep" else (),
        emojis=tuple(emojis),
        stop_id=stop_id,
        stop_weight=behaviour.stop_weight,
        alpha=behaviour.alpha,
        log_tau=math.log(behaviour.tau),
        omitted=behaviour.stop_emojis_omitted,
        seed=seed,
    )
    return profile, notes


def _is_stable(emoji: str, ids: Ids, tokenise: Tokenise) -> bool:
    return all(
        list(tokenise(context + emoji * count)) == [*tokenise(context), *(ids * count)]
        for context in _CONTEXTS
        if context != emoji
        for count in (1, FEWEST, MOST)
    )


def _ends_of(ids: NDArray[np.int32], sequence: Ids) -> NDArray[np.int64]:
    """Positions right after each occurrence of a token sequence."""
    length = len(sequence)
    if not length or len(ids) < length:
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(ids[: len(ids) - length + 1] == sequence[0])
    for offset in range(1, length):
        starts = starts[ids[starts + offset] == sequence[offset]]
    return starts + length


def _targets(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Positions that are targets, as `collate` counts them: never a document's first token."""
    positions = np.flatnonzero(mask)
    return positions[positions > 0]


def _on(ids: Ids, device: torch.device) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.int64, device=device)
