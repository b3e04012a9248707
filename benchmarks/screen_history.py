"""The screen on a history of 1,000,000 steps: how long until the curve stands, and until a zoom
stands, against a real daemon process.

`python -m benchmarks.screen_history [--steps N] [--size WxH]`

Attach: from asking for the series until the chart is painted. Zoom: from the key's effect until
the points of the new window are painted. The app runs without a terminal; both processes share
this machine. Beside the time stands the processor time of both: what it takes when nobody else
works.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from trainer_tui.daemon.curves import Point
from trainer_tui.daemon.history import History
from trainer_tui.safety.workspace import Workspace
from trainer_tui.tui.app import TrainerApp
from trainer_tui.tui.client import Client
from trainer_tui.tui.remote import Remote

CHUNK = 4_000
EVERY = ("loss", "learning_rate", "grad_norm", "tokens_per_s")
ZOOMS = 12
ATTACHES = 5


def fill(file: Path, steps: int) -> None:
    """Points as a daemon writes them: four series a step, validation every 50."""
    dice = random.Random(5)
    history = History(file, print)
    history.start()
    batch: list[Point] = []
    for step in range(1, steps + 1):
        at_s = 1.7e9 + step
        loss = 1.3 + 1.7 * math.exp(-step / 40_000) + dice.gauss(0, 0.05)
        values = (loss, 2e-4, abs(dice.gauss(0.8, 0.2)), 41_000 + dice.gauss(0, 500))
        batch += [Point(n, step, at_s, v) for n, v in zip(EVERY, values, strict=True)]
        if step % 50 == 0:
            batch.append(Point("val_loss", step, at_s, loss + 0.09))
        if len(batch) >= CHUNK:
            history.add_points(batch)
            history.last_event_id().result()
            batch = []
    history.add_points(batch)
    history.last_event_id().result()
    history.close(60)


async def until(true: object, pause_s: float = 0.001) -> None:
    end_s = time.monotonic() + 30
    while not true():  # type: ignore[operator]
        if time.monotonic() > end_s:
            raise TimeoutError("the screen did not get there")
        await asyncio.sleep(pause_s)


Took = tuple[float, float]  # milliseconds: by the clock, of the processor


async def measure(
    socket: Path, size: tuple[int, int], daemon: psutil.Process
) -> tuple[list[Took], list[Took]]:
    """Of each attach, of each zoom."""
    app = TrainerApp(Remote(socket))
    attaches: list[Took] = []
    zooms: list[Took] = []

    def now() -> Took:
        used = daemon.cpu_times()
        return 1000 * time.perf_counter(), 1000 * (time.process_time() + used.user + used.system)

    def since(before: Took) -> Took:
        after = now()
        return after[0] - before[0], after[1] - before[1]

    def drawn() -> bool:
        panel = app.loss
        return panel._drawn is not None and panel._drawn[0] == app.view.curves

    async with app.run_test(size=size) as pilot:
        await until(lambda: "loss" in app.view.curves and drawn())
        await pilot.pause(0.5)
        for _ in range(ATTACHES):
            before, at = app.view.curves, now()
            await app.feed.read_metrics()
            await until(lambda old=before: app.view.curves is not old and drawn())
            attaches.append(since(at))
        for index in range(ZOOMS):
            before, at = app.view.curves, now()
            app.loss.zoom(0.25 if index % 4 < 2 else 4.0)
            await until(lambda old=before: app.view.curves is not old and drawn())
            zooms.append(since(at))
            await pilot.pause(0.1)
    return attaches, zooms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--size", default="120x40")
    given = parser.parse_args()
    columns, rows = (int(part) for part in given.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        space = Workspace(Path(folder))
        space.config_file.write_text("[disk]\nmin_free_gb = 0\nmin_free_share = 0.0\n")
        space.prepare()
        at_s = time.monotonic()
        fill(space.history_file, given.steps)
        megabytes = space.history_file.stat().st_size / 1e6
        print(f"{given.steps:,} steps in {time.monotonic() - at_s:.0f} s, {megabytes:.0f} MB")
        command = [sys.executable, "-m", "trainer_tui.daemon", "--workspace", folder]
        daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end_s = time.monotonic() + 30
            while not Client(space.socket).alive() and time.monotonic() < end_s:
                time.sleep(0.05)
            attaches, zooms = asyncio.run(
                measure(space.socket, (columns, rows), psutil.Process(daemon.pid))
            )
        finally:
            daemon.terminate()
            daemon.wait()
    for name, found, bound in (("attach", attaches, 300), ("zoom", zooms, 50)):
        clock, cpu = ([took[part] for took in found] for part in (0, 1))
        by_clock = f"median {statistics.median(clock):6.1f} ms   worst {max(clock):6.1f} ms"
        used = f"processor {statistics.median(cpu):5.1f}, worst {max(cpu):5.1f} ms"
        print(f"{name:<8} {by_clock}   {used}   bound {bound} ms")


if __name__ == "__main__":
    main()
