"""Made-up chats that a model of a million parameters can learn in minutes: demo and tests.

Syllogisms and small sums, single and multi-turn, some with a system prompt; and held-out prompts
whose facts never stand in any file, each with the one right answer. Equal seeds, equal files.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

from trainer_tui.safety import durable

_KINDS = ("cat", "dog", "bird", "fish", "frog", "horse", "snake", "mouse", "bee", "owl")
_GROUPS = ("animal", "swimmer", "runner", "flyer", "singer", "hunter", "friend", "guard")
_NAMES = ("Tom", "Ann", "Bob", "Eve", "Max", "Mia", "Leo", "Zoe", "Sam", "Ida")
_SYSTEMS = ("Answer briefly.", "You are a careful teacher.", "Reply with one sentence.")


@dataclass(frozen=True, slots=True)
class ToyFile:
    """`priority` is the one that the demo gives it."""

    name: str
    priority: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class ToySet:
    files: tuple[ToyFile, ...]
    held_out: tuple[Question, ...]

    def texts(self) -> list[str]:
        """Every content, for training a tokenizer."""
        return [
            message["content"]
            for file in self.files
            for line in file.lines
            for message in json.loads(line)["messages"]
        ]


def syllogisms() -> list[Question]:
    """All of them: every name, kind and group."""
    return [
        Question(
            f"{name} is a {kind}. Every {kind} is a {group}. What is {name}?",
            f"{name} is a {group}.",
        )
        for name in _NAMES
        for kind in _KINDS
        for group in _GROUPS
    ]


def sums() -> list[Question]:
    """All sums of two numbers below 13."""
    return [
        Question(f"What is {a} + {b}?", f"{a} + {b} = {a + b}.")
        for a in range(13)
        for b in range(13)
    ]


def generate(seed: int = 7, rows_per_file: int = 320, held_out: int = 40) -> ToySet:
    """Five files in all three priorities and questions that none of them contains.

    The held-out questions are taken out before the files are drawn from what remains.
    """
    rng = random.Random(seed)
    logic, numbers = syllogisms(), sums()
    rng.shuffle(logic)
    rng.shuffle(numbers)
    half = held_out // 2
    asked = logic[: held_out - half] + numbers[:half]
    logic, numbers = logic[held_out - half :], numbers[half:]
    recipes = (
        ("first lessons.jsonl", "high", (logic, numbers), 1),
        ("syllogisms.jsonl", "normal", (logic, logic, logic, numbers), 1),
        ("arithmetic.jsonl", "normal", (numbers, numbers, logic), 1),
        ("conversations.jsonl", "normal", (logic, numbers), 3),
        ("revision.jsonl", "low", (logic, numbers), 2),
    )
    files = tuple(
        ToyFile(
            name, priority, tuple(_row(rng, pools, turns) for _ in range(rows_per_file // turns))
        )
        for name, priority, pools, turns in recipes
    )
    return ToySet(files, tuple(asked))


def _row(rng: random.Random, pools: tuple[list[Question], ...], turns: int) -> str:
    messages = []
    if rng.random() < 0.2:
        messages.append({"role": "system", "content": rng.choice(_SYSTEMS)})
    for _ in range(turns):
        question = rng.choice(rng.choice(pools))
        messages.append({"role": "user", "content": question.prompt})
        messages.append({"role": "assistant", "content": question.answer})
    return json.dumps({"messages": messages})


def write(folder: Path, toys: ToySet) -> list[Path]:
    """Write the files and `held_out.json`; existing ones are replaced."""
    durable.make_directory(folder)
    written = []
    for file in toys.files:
        path = folder / file.name
        durable.replace(path, ("\n".join(file.lines) + "\n").encode(), 0o644)
        written.append(path)
    asked = [{"prompt": q.prompt, "answer": q.answer} for q in toys.held_out]
    durable.replace(folder / "held_out.json", json.dumps(asked, indent=1).encode(), 0o644)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description="write made-up chats to learn from")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rows", type=int, default=320, help="rows of a single-turn file")
    arguments = parser.parse_args()
    toys = generate(arguments.seed, arguments.rows)
    for file, path in zip(toys.files, write(arguments.folder, toys), strict=True):
        print(f"{file.priority}\t{path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
