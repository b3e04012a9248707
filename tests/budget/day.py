"""What a day of training leaves in the memory of the screen.

`python tests/budget/day.py [--hours 24] [--size 120x40]`: a fake daemon in a process of its own
sends a step a second, a status every 10 s, an event every 20 s, validations and changes of the
queue, as fast as the screen takes them; the screen is a process on a pseudo-terminal. USS is the
memory that is its alone, RSS includes what it shares.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import psutil
from measure import Terminal, attached

SAMPLES = 24


@dataclass(frozen=True, slots=True)
class Sample:
    second: int
    rss_mb: float
    uss_mb: float


def sample(terminal: Terminal, second: int) -> Sample:
    found = psutil.Process(terminal.process.pid).memory_full_info()
    return Sample(second, found.rss / 2**20, found.uss / 2**20)


def watch(columns: int, rows: int, seconds: int, limit_s: float = 1800.0) -> list[Sample]:
    """Samples over `seconds` of compressed training. Raises TimeoutError."""
    samples: list[Sample] = []
    with attached(columns, rows, hurry=seconds) as terminal:
        terminal.read(30, until=b"support.jsonl")
        progress = terminal.cwd / "state" / "progress"
        end_s, at = time.monotonic() + limit_s, 0
        while at < seconds:
            if time.monotonic() > end_s or terminal.process.poll() is not None:
                raise TimeoutError(f"{at} of {seconds} s, screen: {terminal.process.poll()}")
            terminal.read(0.1)
            terminal.output = terminal.output[-100_000:]
            text = progress.read_text() if progress.exists() else ""
            at = int(text or at)
            if at >= (len(samples) + 1) * seconds // SAMPLES:
                samples.append(sample(terminal, at))
        terminal.read(2.5)
        samples.append(sample(terminal, seconds))
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--size", default="120x40")
    given = parser.parse_args()
    columns, rows = (int(part) for part in given.size.split("x"))
    began_s = time.monotonic()
    samples = watch(columns, rows, int(3600 * given.hours))
    took_s = time.monotonic() - began_s
    print(f"{given.size}: {given.hours:g} h of training in {took_s:.0f} s")
    print(f"{'hour':>6}{'RSS MB':>9}{'USS MB':>9}")
    for found in samples:
        print(f"{found.second / 3600:>6.1f}{found.rss_mb:>9.1f}{found.uss_mb:>9.1f}")


if __name__ == "__main__":
    main()
