"""How fast rows become tokens, next to the tokenizer alone on the same text.

`python -m benchmarks.data_speed [--rows N] [--model FOLDER]`. Prints rows and tokens a second for:
reading (schema only), rendering and finding the answers, the whole of `encode_file`, and the bare
`encode_batch` of the tokenizers library on texts that were rendered beforehand; and the peak
memory of a report over a file of that size, measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trainer_tui.data import toy_chats, toy_tokenizer
from trainer_tui.data.encode import encode_file
from trainer_tui.data.options import TokenOptions
from trainer_tui.data.packing import PlanOptions, fill, plan_epoch
from trainer_tui.data.row_reader import read_rows
from trainer_tui.data.rows import Conversation
from trainer_tui.data.template import ChatTemplate
from trainer_tui.data.token_cache import open_tokens
from trainer_tui.safety import hashing
from trainer_tui.safety.config import Intake

WORDS = ("the", "owl", "runs", "seven", "times", "around", "a", "blue", "house", "today", "why")


def write_rows(path: Path, rows: int, words_a_turn: int, seed: int = 1) -> None:
    """Chats of two turns with random words, so that no cache of words makes it look quick."""
    rng = random.Random(seed)
    with path.open("w") as stream:
        for _ in range(rows):
            texts = [
                " ".join(f"{rng.choice(WORDS)}{rng.randrange(1000)}" for _ in range(words_a_turn))
                for _ in range(2)
            ]
            messages = [
                {"role": "user", "content": texts[0]},
                {"role": "assistant", "content": texts[1]},
            ]
            stream.write(json.dumps({"messages": messages}) + "\n")


def timed(label: str, rows: int, tokens: int | None, act) -> float:
    start = time.perf_counter()
    act()
    took = time.perf_counter() - start
    rate = "" if tokens is None else f"{tokens / took:>14,.0f} tokens/s"
    print(f"{label:44} {took:8.2f} s {rows / took:>12,.0f} rows/s{rate}")
    return took


def peak_memory(path: Path, workspace: Path) -> int:
    """Bytes, of `trainer_tui.queue.report` on the file."""
    code = (
        "import pathlib, sys; from trainer_tui.queue.report_command import main; "
        f"main([{str(path)!r}, '--workspace', {str(workspace)!r}]); "
        "status = pathlib.Path('/proc/self/status').read_text(); "
        "print(status.partition('VmHWM:')[2].split()[0], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return int(done.stderr.split()[-1]) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=40, help="words in a turn")
    parser.add_argument("--model", type=Path, help="a model folder; a toy tokenizer without it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        measure(Path(made), asked.rows, asked.words, asked.model)
    return 0


def measure(folder: Path, count: int, words: int, model: Path | None) -> None:
    path = folder / "rows.jsonl"
    write_rows(path, count, words)
    if model is None:
        model = folder / "model"
        toy_tokenizer.build(model, toy_chats.generate().texts())
    template, options = ChatTemplate.load(model), TokenOptions()
    rows = [row for row in read_rows(path) if isinstance(row, Conversation)]
    texts = [template.tokenizer.render(row.as_dicts()) for row in rows]
    tokens = sum(template.tokenizer.count_batch(texts))
    print(f"{count:,} rows, {path.stat().st_size / 1e6:.0f} MB, {tokens:,} tokens, ", end="")
    print(f"{os.cpu_count()} cores")
    timed("read and check (one core)", count, None, lambda: list(read_rows(path)))
    timed("render, find the answers (one core)", count, tokens, lambda: find_all(template, rows))
    bare = timed("tokenizers alone", count, tokens, lambda: template.tokenizer.count_batch(texts))
    with_offsets = timed(
        "tokenizers with offsets", count, tokens, lambda: template.tokenizer.encode_batch(texts)
    )
    whole = timed(
        "encode_file, all of it",
        count,
        tokens,
        lambda: sum(1 for _ in encode_file(path, template, options, Intake())),
    )
    print(f"ratio to tokenizers alone {whole / bare:.2f}, with offsets {whole / with_offsets:.2f}")
    sha256, cache = hashing.hash_file(path), folder / "cache"

    def opened():
        return open_tokens(path, sha256, template, options, cache, Intake())

    timed("build the token cache", count, tokens, opened)
    timed("open the token cache", count, None, opened)
    found = opened()
    plan = plan_epoch(found.lengths, range(found.documents), sha256, 0, PlanOptions())
    print(f"packs filled {fill(plan, found.lengths, 8192):.4f}, {len(plan)} steps")
    (folder / "config.toml").write_text(f"base_model = {json.dumps(str(model))}\n")
    print(f"peak memory of a report {peak_memory(path, folder) / 1e6:.0f} MB")


def find_all(template: ChatTemplate, rows: list[Conversation]) -> None:
    for row in rows:
        template._spans.find(row, TokenOptions())


if __name__ == "__main__":
    raise SystemExit(main())
