"""Versions on a model of real size: how long each act takes, and what 20 versions cost on disk.

    python -m benchmarks.versions_bench [--megabytes 320] [--folder DIR] [--write]

Everything runs on the filesystem of `--folder`; plain hashing and plain copies of the same files
are measured in the same run, for comparison. `--write` keeps the table in results/versions.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from trainer_tui.safety import checkpoints, durable, manifest
from trainer_tui.safety.checkpoints import HASHING_THREADS
from trainer_tui.safety.config import Config
from trainer_tui.safety.manifest import Manifest
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions import keeping
from trainer_tui.versions.backup import Backup
from trainer_tui.versions.store import VersionStore

MB = 1_000_000
SHARDS = 4
VERSIONS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=320, help="size of the weights")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--write", action="store_true")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=wanted.folder, prefix="versions-bench-") as place:
        table = measure(Path(place), wanted.megabytes)
    print(table)
    if wanted.write:
        target = Path(__file__).parent / "results" / "versions.md"
        target.write_text(table)


def measure(place: Path, megabytes: int) -> str:
    """Build, measure, and return the table as Markdown."""
    workspace = Workspace(place / "workspace")
    workspace.root.mkdir()
    workspace.config_file.write_text("")
    workspace.prepare()
    store = VersionStore(workspace)
    checkpoint = write_checkpoint(workspace, 100, megabytes)
    sealed = manifest.read(checkpoint)
    weights = sum(entry.bytes for entry in sealed.files if entry.role == "weights")
    whole = sum(entry.bytes for entry in sealed.files)
    rows: list[tuple[str, str, str]] = []

    create_s, fsync_s = timed_creates(store, checkpoint)
    rows.append(
        ("create a version", f"{create_s * 1e3:.1f} ms", f"{fsync_s * 1e3:.1f} ms of it in fsync")
    )
    new = new_bytes(store.get(1).folder)
    rows.append(("new bytes of a version", f"{new / 1e3:.1f} kB", f"shares {weights / MB:.0f} MB"))
    copy_s = seconds(lambda: shutil.copytree(checkpoint, place / "copy"))
    rows.append(("plain copy of the checkpoint", f"{copy_s:.2f} s", f"{whole / MB:.0f} MB"))

    plain_s = best_of(3, lambda: hash_plainly(checkpoint))
    rows.append(
        ("plain sha256, one file after the other", rate(whole, plain_s), f"{plain_s:.2f} s")
    )
    verify_s = best_of(3, lambda: store.verify(1))
    note = f"{verify_s:.2f} s, {HASHING_THREADS} threads, tensors opened"
    rows.append(("verify a version", rate(store.get(1).bytes, verify_s), note))

    write_checkpoint(workspace, 200, megabytes)
    restore_s = seconds(lambda: VersionStore(workspace).restore(1))  # has no proof at hand
    rows.append(("restore (proves the version first)", f"{restore_s:.2f} s", "with optimizer"))
    store.verify(1)
    again_s = seconds(lambda: store.restore(1))
    rows.append(("restore right after a verify", f"{again_s * 1e3:.0f} ms", "nothing read again"))
    write_checkpoint(workspace, 300, megabytes, lineage=current_lineage(store))
    rollback_s = seconds(VersionStore(workspace).rollback)
    rows.append(("rollback over 100 steps", f"{rollback_s:.2f} s", "proves the version first"))
    listing_s = best_of(3, store.list)
    rows.append((f"list {len(store.list())} versions", f"{listing_s * 1e3:.1f} ms", ""))

    backup = Backup(workspace, second_disk(place))
    backup_s = seconds(backup.run)
    note = f"{backup_s:.2f} s for {len(store.list())} real copies, fsynced and read back"
    copied = sum(version.bytes for version in store.list())
    rows.append(("backup to a second location", rate(copied, backup_s), note))
    shutil.rmtree(place / "second")
    shutil.rmtree(place / "copy")
    rows += twenty_versions(place, store, megabytes)
    return as_table(rows, megabytes)


def timed_creates(store: VersionStore, checkpoint: Path) -> tuple[float, float]:
    """Median seconds of a create, and the part of it spent in fsync."""
    totals, waits = [], []
    for _ in range(3):
        waited = 0.0
        real = os.fsync

        def timed(fd: int, real: Callable[[int], None] = real) -> None:
            nonlocal waited
            begun = time.perf_counter()
            real(fd)
            waited += time.perf_counter() - begun

        os.fsync = timed  # type: ignore[assignment]
        try:
            totals.append(seconds(lambda: store.create(checkpoint, "benchmark")))
        finally:
            os.fsync = real
        waits.append(waited)
    return statistics.median(totals), statistics.median(waits)


def twenty_versions(place: Path, store: VersionStore, megabytes: int) -> list[tuple[str, str, str]]:
    """Bytes on disk of 20 versions made while training and retention go on, against copies.

    Each version is of another checkpoint, so nothing but weights that differ is counted.
    """
    alike = twenty_of_one(place, megabytes)
    workspace = Workspace(place / "twenty")
    workspace.root.mkdir()
    workspace.config_file.write_text("")
    workspace.prepare()
    twenty = VersionStore(workspace)
    plain = 0
    for step in range(1, VERSIONS + 1):
        folder = write_checkpoint(workspace, step, megabytes, durably=False)
        plain += bytes_on_disk([folder])
        twenty.create(folder, "")
        keeping.apply(workspace, Config())
    used = bytes_on_disk([workspace.models])
    kept = bytes_on_disk([workspace.current_model])
    versions_alone = used - kept
    one = plain / VERSIONS
    shutil.rmtree(workspace.root)
    return [
        alike,
        (
            f"{VERSIONS} versions of {VERSIONS} checkpoints, all different",
            f"{used / MB:.0f} MB",
            f"with the 5 checkpoints that stay; {versions_alone / MB:.0f} MB more than those alone",
        ),
        (
            f"{VERSIONS} plain copies of them and the 5 checkpoints",
            f"{(plain + 5 * one) / MB:.0f} MB",
            "",
        ),
    ]


def twenty_of_one(place: Path, megabytes: int) -> tuple[str, str, str]:
    """What 20 versions of one and the same checkpoint add to it."""
    workspace = Workspace(place / "alike")
    workspace.root.mkdir()
    workspace.config_file.write_text("")
    workspace.prepare()
    folder = write_checkpoint(workspace, 1, megabytes, durably=False)
    before = bytes_on_disk([workspace.models])
    for _ in range(VERSIONS):
        VersionStore(workspace).create(folder, "")
    added = bytes_on_disk([workspace.models]) - before
    shutil.rmtree(workspace.root)
    note = f"20 plain copies of it: {VERSIONS * before / MB:.0f} MB"
    return f"{VERSIONS} versions of one checkpoint add", f"{added / MB:.1f} MB", note


def bytes_on_disk(folders: list[Path]) -> int:
    """Blocks in use, each inode once."""
    seen: dict[tuple[int, int], int] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            found = path.lstat()
            seen[(found.st_dev, found.st_ino)] = found.st_blocks * 512
    return sum(seen.values())


def new_bytes(folder: Path) -> int:
    found = [path.lstat() for path in folder.rglob("*") if path.is_file()]
    return sum(entry.st_size for entry in found if entry.st_nlink == 1)


def write_checkpoint(
    workspace: Workspace, step: int, megabytes: int, lineage: int = 0, durably: bool = True
) -> Path:
    """Weights in bf16-sized random bytes over four shards, and an optimizer three times as large
    over as many files, as a full fine-tuning run with fp32 masters leaves behind."""
    final = workspace.current_model / f"checkpoint-{step}"
    staging = durable.staging_name(final)
    staging.mkdir()
    random = np.random.default_rng(step)
    entries = []
    for kind, factor, role in (("model", 1, "weights"), ("optimizer", 3, "optimizer")):
        for shard in range(SHARDS):
            name = f"{kind}-{shard}.safetensors"
            count = megabytes * MB * factor // SHARDS // 2
            tensor = random.integers(0, 1 << 16, count, np.uint16)
            save_file({"tensor": tensor}, staging / name)
            entries.append(checkpoints.entry_for(staging, name, role))  # type: ignore[arg-type]
            if durably:
                with (staging / name).open("rb") as stream:
                    os.fsync(stream.fileno())
    sealed = Manifest(
        created_at=datetime.now(UTC).isoformat(),
        global_step=step,
        lineage=lineage,
        parent="",
        reason="benchmark",
        tokens=0,
        supervised_tokens=0,
        cursors=[],
        lr_factor=1.0,
        schedule_origin=0,
        warmup_origin=0,
        config_hash="",
        template_hash="",
        tokenizer_hash="",
        base_model="",
        weights_only=False,
        ledger=None,
        files=entries,
    )
    checkpoints.commit(staging, final, manifest.seal(sealed))
    return final


def hash_plainly(folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            hashlib.file_digest(stream, "sha256")


def current_lineage(store: VersionStore) -> int:
    here = store.position()
    assert here is not None
    return here.lineage


def second_disk(place: Path) -> Path:
    target = place / "second"
    target.mkdir()
    return target


def seconds(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def best_of(times: int, act: Callable[[], object]) -> float:
    return min(seconds(act) for _ in range(times))


def rate(size: int, took_s: float) -> str:
    return f"{size / took_s / 1e9:.2f} GB/s"


def as_table(rows: list[tuple[str, str, str]], megabytes: int) -> str:
    lines = [
        "# Versions: what they cost",
        "",
        f"`python -m benchmarks.versions_bench --megabytes {megabytes} --write`, "
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {_filesystem()}, "
        f"Python {platform.python_version()}. Weights {megabytes} MB, optimizer three times that. "
        f"Load average meanwhile {os.getloadavg()[1]:.1f}: other work slows all alike.",
        "",
        "| what | measured | remark |",
        "|---|---|---|",
    ]
    lines += [f"| {what} | {value} | {remark} |" for what, value, remark in rows]
    return "\n".join(lines) + "\n"


def _filesystem() -> str:
    with contextlib.suppress(OSError):
        here = Path(tempfile.gettempdir()).stat().st_dev
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, point, kind, *_ = line.split()
            if Path(point).stat().st_dev == here:
                return kind
    return "unknown filesystem"


if __name__ == "__main__":
    main()
