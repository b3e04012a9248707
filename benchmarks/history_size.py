"""How large `state/history.db` gets: steps with seven figures each, pruned as the daemon does.

Run: python -m benchmarks.history_size [STEPS] [OFTEN]   (thousands of steps; pruned every so many)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from trainer_tui.daemon.curves import Point
from trainer_tui.daemon.history import History

SERIES = (
    "loss", "learning_rate", "grad_norm", "tokens_per_s", "supervised_tokens_per_s", "step_s",
    "memory",
)  # fmt: skip
BATCH = 1000


def main(thousands: int, often: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder) / "history.db", print)
        history.start()
        print("steps       bytes    bytes a step")
        before = 0
        for number in range(thousands):
            for step in range(number * BATCH, (number + 1) * BATCH):
                at_s, value = 1.8e9 + step, 0.1234567 + step
                history.add_points([Point(name, step, at_s, value) for name in SERIES])
            history.last_event_id().result()
            if (number + 1) % often == 0:
                history.prune()
                history.last_event_id().result()
                size = sum(file.stat().st_size for file in Path(folder).iterdir())
                a_step = (size - before) / (often * BATCH)
                print(f"{(number + 1) * BATCH:>9} {size:>11} {a_step:>11.1f}", flush=True)
                before = size
        history.close()
        assert history.dropped == 0


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [2000, 100][len(given) :]))
