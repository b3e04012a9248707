"""A workspace with real checkpoints: small safetensors files, sealed manifests, a real ledger."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from trainer_tui.safety import checkpoints, durable, manifest
from trainer_tui.safety.manifest import Cursor, FileEntry, LedgerEntry, LedgerHead, Manifest
from trainer_tui.safety.workspace import Workspace
from trainer_tui.versions.store import VersionStore


@dataclass
class Killed(BaseException):
    """Stands for the death of the process: nothing after it reaches the disk."""

    at: str


class KillBefore:
    """Observer that dies before durable operation number `index`, and before all later ones."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.seen: list[str] = []

    def __call__(self, operation: str, path: Path) -> None:
        self.seen.append(f"{operation} {path.name}")
        if len(self.seen) > self.index:
            raise Killed(self.seen[-1])


@dataclass
class House:
    """Builds checkpoints as the engine commits them."""

    workspace: Workspace
    store: VersionStore
    head: LedgerHead | None = None
    jobs: int = 0
    made: dict[int, dict[str, str]] = field(default_factory=dict)

    def train_file(self, name: str = "", before: float = 2.0, after: float = 1.9) -> LedgerEntry:
        self.jobs += 1
        entry = LedgerEntry(
            job_id=self.jobs,
            name=name or f"file{self.jobs}.jsonl",
            file_sha256=f"{self.jobs:064x}",
            rows=10,
            tokens=1000,
            supervised_tokens=600,
            steps=5,
            epochs=1,
            global_step=0,
            completed_at="2026-11-24T12:00:00.000Z",
            seconds=120.0,
            val_before=before,
            val_after=after,
        )
        self.head = manifest.write_segment(self.workspace.ledger, self.head, [entry])
        return entry

    def checkpoint(
        self,
        step: int,
        *,
        lineage: int = 0,
        validation: float | None = None,
        weights_only: bool = False,
        at: str = "2026-11-24T12:00:00.000Z",
        elements: int = 256,
        config_hash: str = "c" * 64,
        measured: tuple[int, str] | None = None,
    ) -> Path:
        final = self.workspace.current_model / f"checkpoint-{step}"
        staging = durable.staging_name(final)
        staging.mkdir()
        save_file(
            {"layer.weight": np.full((elements,), step, np.float32)}, staging / "model.safetensors"
        )
        (staging / "config.json").write_text('{"model_type": "qwen3"}')
        (staging / "rng.json").write_text(f'{{"seed": {step}}}')
        files = [
            checkpoints.entry_for(staging, "model.safetensors", "weights"),
            checkpoints.entry_for(staging, "config.json", "model"),
            checkpoints.entry_for(staging, "rng.json", "state"),
        ]
        if not weights_only:
            moments = {"layer.weight.exp_avg": np.full((2 * elements,), -step, np.float32)}
            save_file(moments, staging / "optimizer.safetensors")
            files.append(checkpoints.entry_for(staging, "optimizer.safetensors", "optimizer"))
        for entry in files:
            (staging / entry.name).chmod(0o400)
        sealed = self._manifest(step, lineage, validation, weights_only, at, files, config_hash)
        sealed.extra["measured"] = list(measured) if measured else None
        checkpoints.commit(staging, final, manifest.seal(sealed))
        return final

    def _manifest(
        self,
        step: int,
        lineage: int,
        validation: float | None,
        weights_only: bool,
        at: str,
        files: list[FileEntry],
        config_hash: str,
    ) -> Manifest:
        return Manifest(
            created_at=at,
            global_step=step,
            lineage=lineage,
            parent="",
            reason="save_steps",
            tokens=step * 100,
            supervised_tokens=step * 60,
            cursors=[Cursor(99, "f" * 64, "plan", 0, step % 7, 7)],
            lr_factor=0.5,
            schedule_origin=0,
            warmup_origin=0,
            config_hash=config_hash,
            template_hash="t",
            tokenizer_hash="k",
            base_model="models/base",
            weights_only=weights_only,
            ledger=self.head,
            files=files,
            validation={} if validation is None else {"fixed": validation},
            extra={
                "cool_down": [step - 10, 50],
                "config": {"learning_rate": 2e-4, "retention": {"versions": 20}},
            },
        )

    def three_versions(self) -> None:
        for step in (100, 200, 300):
            self.train_file()
            self.store.create(self.checkpoint(step), str(step))

    def newest(self) -> checkpoints.Newest:
        """What the trainer would resume from; raises when nothing verifies."""
        found = checkpoints.newest_verified(self.workspace.current_model)
        assert found is not None
        return found

    def content(self, folder: Path) -> dict[str, bytes]:
        return {
            path.name: path.read_bytes()
            for path in folder.iterdir()
            if path.is_file() and path.name != manifest.MANIFEST_NAME
        }

    def left_overs(self) -> list[str]:
        """Staging names anywhere in the workspace."""
        return [
            str(path)
            for path in self.workspace.root.rglob("*")
            if path.name.startswith((".staging-", ".thinning-"))
        ]


def flip_a_bit(path: Path, offset: int = -4) -> None:
    """Damage one byte without changing size or modification time, as a bad disk does."""
    import os

    before = path.stat()
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    with path.open("r+b") as stream:
        stream.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.chmod(0o400)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where houses are built; a module that makes hundreds of them builds in memory instead."""
    return tmp_path


@pytest.fixture
def build(place: Path) -> Callable[..., House]:
    """Makes a fresh house."""
    count = 0

    def make(now: Callable[[], str] | None = None, root: Path | None = None) -> House:
        nonlocal count
        count += 1
        workspace = Workspace(root or place / f"house{count}")
        workspace.root.mkdir(parents=True, exist_ok=True)
        workspace.config_file.write_text("")
        workspace.prepare()
        return House(workspace, VersionStore(workspace, *([now] if now else [])))

    return make


@pytest.fixture
def house(build: Callable[..., House]) -> House:
    return build()


@pytest.fixture
def disk2(tmp_path: Path) -> Path:
    place = tmp_path / "disk2"
    place.mkdir()
    return place


@pytest.fixture
def killed() -> type[Killed]:
    return Killed


@pytest.fixture
def kill_before() -> type[KillBefore]:
    return KillBefore


@pytest.fixture
def flip() -> Callable[..., None]:
    return flip_a_bit


@pytest.fixture
def on_two_filesystems(build, tmp_path):
    """A house whose models lie on another filesystem than the rest of it."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second filesystem; /dev/shm is none here")
    with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
        (tmp_path / "ws").mkdir()
        (tmp_path / "ws" / "models").symlink_to(elsewhere)
        yield build(root=tmp_path / "ws")
