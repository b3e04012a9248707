"""A checkpoint's images where host memory is short: on disk, nameless, and the same in the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from trainer_tui.engine import staging
from trainer_tui.engine.checkpoint import Committer, Done
from trainer_tui.engine.checkpoint_files import Place
from trainer_tui.engine.images import weights_once
from trainer_tui.engine.optimizer import MasterAdamW
from trainer_tui.engine.progress import Identity, Progress
from trainer_tui.safety import checkpoints, locks


def committed(root: Path) -> tuple[Path, list[str]]:
    """One commit of a small model; where it is, and what files its images were while it lived."""
    (root / "ledger").mkdir(parents=True)
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    optimizer = MasterAdamW(model)
    lock = locks.acquire(root / ".writer")
    assert lock is not None
    committer = Committer(
        Place(root, root / "ledger"),
        lock.fd,
        weights_once(model),
        optimizer,
        {},
        Identity("", "", "", "test"),
    )
    try:
        images = [committer._weights_image.fd, committer._optimizer_image.fd]
        names = [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in images]
        committer.begin(Progress(global_step=1), {}, "test")
        assert isinstance(committer.finish(lambda moved: None), Done)
    finally:
        committer.close()
    return root / "checkpoint-1", names


def test_images_go_to_the_disk_when_memory_is_short_and_the_commit_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, names = committed(tmp_path / "usual")
    assert all("memfd:" in name for name in names)
    monkeypatch.setattr("trainer_tui.engine.checkpoint.fits_in_memory", lambda wanted: False)
    short, names = committed(tmp_path / "short")
    assert all(name.startswith(str(tmp_path / "short")) for name in names), names
    checkpoints.verify(short)
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (short / file).read_bytes() == (usual / file).read_bytes()
    left = {p.name for p in (tmp_path / "short").iterdir()}
    assert left == {p.name for p in (tmp_path / "usual").iterdir()}


def test_what_fits_is_what_the_kernel_says_less_headroom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "meminfo"
    said.write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    monkeypatch.setattr(staging, "MEMINFO", said)
    assert staging.available_bytes() == 8 << 30
    assert staging.fits_in_memory(6 << 30)
    assert not staging.fits_in_memory((6 << 30) + 1)
    said.write_text("MemAvailable: 1024 kB\n")
    assert staging.fits_in_memory(1 << 20)
    assert not staging.fits_in_memory(1 << 30)
    monkeypatch.setattr(staging, "MEMINFO", tmp_path / "gone")
    assert staging.fits_in_memory(1 << 60)
