"""From counts to a verdict: ok, warn or block, each reason with the command that clears it.

Pure: nothing is read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from trainer_tui.queue.job import RETRY_COMMAND
from trainer_tui.queue.tally import Tally
from trainer_tui.safety import config

Severity = Literal["block", "warn", "note"]


class Reason(msgspec.Struct, frozen=True):
    """`code` is stable, for programs; `hint` is a command or an advice; may be empty."""

    severity: Severity
    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the verdict follows from besides the counts of the tally."""

    duplicates: int
    conflicts: int
    trained_before: int
    tokenised: bool
    max_length: int
    long_rows: str


ACCEPT = f"{RETRY_COMMAND} --accept"


def judge(tally: Tally, facts: Facts, intake: config.Intake) -> list[Reason]:
    """Every reason, blocks first. An empty list, or notes alone, is "ok"."""
    found = [*_blocks(tally, facts, intake), *_warnings(tally, facts), *_notes(tally)]
    order = {"block": 0, "warn": 1, "note": 2}
    return sorted(found, key=lambda reason: order[reason.severity])


def verdict_of(reasons: list[Reason]) -> Literal["ok", "warn", "block"]:
    severities = {reason.severity for reason in reasons}
    if "block" in severities:
        return "block"
    return "warn" if "warn" in severities else "ok"


def _blocks(tally: Tally, facts: Facts, intake: config.Intake) -> list[Reason]:
    found = []
    valid = tally.rows - tally.invalid
    kept = tally.kept if facts.tokenised else valid
    if kept < 1:
        what = "the file is empty" if not tally.rows else "no row of the file can be trained"
        found.append(Reason("block", "no_usable_row", what, _first_reject(tally)))
    if _too_many(tally.invalid, tally.rows, intake.block_invalid_share) and valid:
        share = tally.invalid / tally.rows
        message = (
            f"{tally.invalid} of {tally.rows} rows ({share:.1%}) are invalid, "
            f"more than {intake.block_invalid_share:.1%}"
        )
        found.append(Reason("block", "invalid_rows", message, f"correct them, or: {ACCEPT}"))
    if facts.tokenised and valid:
        found += _length_blocks(tally, facts, intake, valid)
    if tally.secrets:
        first = tally.secrets[0]
        message = (
            f"{_rows(len(tally.secrets), 'holds', 'hold')} secrets, first in line "
            f"{first.line}: {first.kind}"
        )
        found.append(Reason("block", "secrets", message, f"remove them, or: {ACCEPT}"))
    return found


def _length_blocks(tally: Tally, facts: Facts, intake: config.Intake, valid: int) -> list[Reason]:
    found = []
    share = tally.over_length / valid
    if _too_many(tally.over_length, valid, intake.block_over_length_share):
        message = (
            f"{tally.over_length} of {valid} rows ({share:.1%}) are longer than max_length "
            f"{facts.max_length}, more than {intake.block_over_length_share:.1%}"
        )
        hint = f"{_longer(tally)}, then {RETRY_COMMAND}; or: {ACCEPT}"
        found.append(Reason("block", "over_length", message, hint))
    lost = tally.whole_supervised - tally.supervised
    if lost > intake.block_lost_tokens_share * max(tally.whole_supervised, 1):
        message = (
            f"{lost} of {tally.whole_supervised} supervised tokens "
            f"({lost / tally.whole_supervised:.1%}) would be lost to max_length, "
            f"more than {intake.block_lost_tokens_share:.1%}"
        )
        other = "split_turns" if facts.long_rows != "split_turns" else "truncate"
        hint = (
            f"{_longer(tally)} or trainer-tui config set intake.long_rows {other}, "
            f"then {RETRY_COMMAND}; or: {ACCEPT}"
        )
        found.append(Reason("block", "lost_tokens", message, hint))
    if tally.unsupervised:
        message = f"{_rows(tally.unsupervised)} would train no token at all"
        found.append(Reason("block", "unsupervised", message, f"look at them, or: {ACCEPT}"))
    return found


def _rows(count: int, one: str = "", many: str = "") -> str:
    """`1 row repeats`, `3 rows repeat`."""
    return f"1 row {one}".rstrip() if count == 1 else f"{count} rows {many}".rstrip()


def _too_many(count: int, of: int, share: float) -> bool:
    """One bad row is never too many: it must not take a small file's good ones with it."""
    return count > max(1, share * of)


def _longer(tally: Tally) -> str:
    return f"trainer-tui config set max_length {-(-tally.longest // 64) * 64}"


def _first_reject(tally: Tally) -> str:
    if not tally.rejects:
        return "put one row on each line"
    first = tally.rejects[0]
    hint = f" ({first.hint})" if first.hint else ""
    return f"line {first.line}: {first.reason}{hint}"


def _warnings(tally: Tally, facts: Facts) -> list[Reason]:
    found = []
    if 0 < tally.invalid < tally.rows:
        found.append(
            Reason(
                "warn", "rejects", f"{_rows(tally.invalid, 'is', 'are')} invalid, out of training"
            )
        )
    if tally.over_length:
        what = {"drop": "out of training", "truncate": "cut", "split_turns": "split"}
        message = f"{_rows(tally.over_length, 'is', 'are')} too long: {what[facts.long_rows]}"
        found.append(Reason("warn", "long_rows", message))
    if facts.duplicates:
        message = f"{_rows(facts.duplicates, 'repeats', 'repeat')} others of the file"
        found.append(Reason("warn", "duplicates", message))
    if facts.trained_before:
        message = f"{_rows(facts.trained_before, 'was', 'were')} trained before in other files"
        found.append(Reason("warn", "trained_before", message))
    if tally.in_validation:
        message = f"{_rows(tally.in_validation)} of the validation set, out of training"
        found.append(Reason("warn", "in_validation", message))
    if facts.conflicts:
        message = f"{facts.conflicts} prompts have more than one answer"
        found.append(Reason("warn", "conflicts", message))
    if tally.control_rows:
        message = (
            f"{_rows(tally.control_rows, 'holds', 'hold')} the template's control tokens as text"
        )
        found.append(Reason("warn", "control_tokens", message, "they act as real ones"))
    if tally.double_bos_rows:
        message = f"{_rows(tally.double_bos_rows, 'begins', 'begin')} with two start tokens"
        found.append(Reason("warn", "double_bos", message, "remove the one in the rows' text"))
    if not facts.tokenised:
        message = "tokens were not counted: there is no usable model folder"
        found.append(Reason("warn", "not_tokenised", message, "set base_model in config.toml"))
    return found


def _notes(tally: Tally) -> list[Reason]:
    found = []
    if tally.injected_rows:
        message = f"the template adds a think block to {_rows(tally.injected_rows)}; not trained"
        found.append(Reason("note", "injected", message))
    if tally.per_turn_rows:
        message = (
            f"{_rows(tally.per_turn_rows, 'becomes', 'become')} one example for each answer: "
            "the template rewrites earlier turns"
        )
        found.append(Reason("note", "per_turn", message))
    return found
