"""From file to file the trainer stays warm: no pause, no recompilation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from engine_driver import Driver, toy_rows

from trainer_tui.safety.messages import FromTrainer, StepDone

FILES = 4


def test_the_next_files_first_step_comes_within_a_second_of_the_last_files_last(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(
        min_save_interval_s=300.0, validation={"rows": 40, "holdout_rows": 8, "time_share": 0.05}
    )
    for seed in range(FILES):
        driver.add_job(toy_rows(100, seed))
    came: list[tuple[int, float]] = []

    def note(message: FromTrainer) -> None:
        if isinstance(message, StepDone):
            came.append((message.job_id, time.monotonic()))

    driver.on_message = note
    driver.run_until_done()
    times = {job: [at for seen, at in came if seen == job] for job in range(1, FILES + 1)}
    gaps = [times[job + 1][0] - times[job][-1] for job in range(1, FILES)]
    # Opening, tokenising, planning, measuring and the step itself. The median: other processes
    # of a busy machine may hold up one of them.
    assert sorted(gaps)[len(gaps) // 2] < 1.0, gaps


def test_a_cpu_compiles_nothing_so_a_file_change_cannot_either(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    for seed, rows in enumerate((40, 9, 25)):
        driver.add_job(toy_rows(rows, seed))
    (driver.workspace.root / "trap.json").write_text(json.dumps({"trace": True}))
    driver.run_until_done(entry="trap")
    lines = (driver.workspace.root / "trace.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert {step["job"] for step in steps} == {1, 2, 3}
    assert {step["graphs"] for step in steps} == {0}
