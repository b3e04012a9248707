"""A manifest is what was sealed or it is refused; the ledger is a chain that can be checked."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import msgspec
import pytest

from trainer_tui.safety import checkpoints, durable, hashing, manifest
from trainer_tui.safety.errors import Corrupt
from trainer_tui.safety.manifest import FileEntry, LedgerEntry, LedgerHead, Manifest


def a_manifest(**changes) -> Manifest:
    plain = {
        "created_at": "2026-11-24T12:00:00.000Z",
        "global_step": 7,
        "lineage": 0,
        "parent": "",
        "reason": "test",
        "tokens": 0,
        "supervised_tokens": 0,
        "cursors": [],
        "lr_factor": 1.0,
        "schedule_origin": 0,
        "warmup_origin": 0,
        "config_hash": "",
        "template_hash": "",
        "tokenizer_hash": "",
        "base_model": "",
        "weights_only": False,
        "ledger": None,
        "files": [],
    }
    return Manifest(**(plain | changes))


def put(folder: Path, data: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / manifest.MANIFEST_NAME).write_bytes(data)
    return folder


def commit(current: Path, step: int, text: str = "weights") -> Path:
    final = current / f"checkpoint-{step}"
    staging = durable.staging_name(final)
    staging.mkdir(parents=True)
    durable.write_new(staging / "model.bin", text.encode())
    entry = checkpoints.entry_for(staging, "model.bin", "weights")
    sealed = manifest.seal(a_manifest(global_step=step, files=[entry]))
    checkpoints.commit(staging, final, sealed)
    return final


def an_entry(job_id: int) -> LedgerEntry:
    return LedgerEntry(job_id, f"{job_id}.jsonl", "f" * 64, 1, 2, 1, 1, 1, job_id, "now")


def test_what_is_sealed_is_read_back_the_same(tmp_path):
    wanted = a_manifest(validation={"fixed": 1.25}, extra={"a": [1, {"b": None}], "c": 2.0})
    found = manifest.read(put(tmp_path / "c", manifest.seal(wanted)))
    assert msgspec.structs.replace(found, sha256="") == wanted and len(found.sha256) == 64
    assert manifest.read(put(tmp_path / "d", manifest.seal(found))) == found


def test_one_changed_character_is_noticed(tmp_path):
    data = manifest.seal(a_manifest())
    folder = put(tmp_path / "c", data.replace(b'"global_step": 7', b'"global_step": 8'))
    with pytest.raises(Corrupt, match="changed after it was sealed"):
        manifest.read(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"format": 1}'])
def test_damage_is_a_sentence(tmp_path, data):
    with pytest.raises(Corrupt, match=r"MANIFEST\.json is damaged"):
        manifest.read(put(tmp_path / "c", data))


def test_a_missing_manifest_means_never_committed(tmp_path):
    with pytest.raises(Corrupt, match="has no MANIFEST"):
        manifest.read(tmp_path)


def test_another_format_is_said_to_be_another_format(tmp_path):
    with pytest.raises(Corrupt, match="format 2"):
        manifest.read(put(tmp_path / "c", manifest.seal(a_manifest(format=2))))


def test_whole_numbers_where_floats_belong_do_not_make_a_checkpoint_unreadable(tmp_path):
    sealed = manifest.seal(a_manifest(lr_factor=1, validation={"fixed": 2}))
    assert manifest.read(put(tmp_path / "c", sealed)).validation == {"fixed": 2.0}


def test_a_loss_that_is_not_finite_does_not_make_a_checkpoint_unreadable(tmp_path):
    losses = {"fixed": math.nan, "holdout": math.inf, "probe": 1.5}
    sealed = manifest.seal(a_manifest(validation=losses))
    assert manifest.read(put(tmp_path / "c", sealed)).validation == {"probe": 1.5}


def test_what_could_not_be_read_again_is_not_sealed(tmp_path):
    with pytest.raises(msgspec.ValidationError):
        manifest.seal(a_manifest(global_step="seven"))
    with pytest.raises(msgspec.ValidationError):
        broken = msgspec.structs.replace(an_entry(1), seconds=math.nan)
        manifest.write_segment(tmp_path, None, [broken])
    assert list(tmp_path.iterdir()) == []


def test_the_ledger_is_read_newest_first_over_its_segments(tmp_path):
    head = None
    for start in (1, 3, 5):
        head = manifest.write_segment(tmp_path, head, [an_entry(start), an_entry(start + 1)])
    ids = [entry.job_id for entry in manifest.ledger_entries(tmp_path, head)]
    assert ids == [6, 5, 4, 3, 2, 1]
    assert manifest.completed_jobs(tmp_path, head, {2, 5, 99}) == {2, 5}
    assert list(manifest.ledger_entries(tmp_path, None)) == []


def test_a_segment_nobody_names_is_harmless_and_branches_share_their_past(tmp_path):
    first = manifest.write_segment(tmp_path, None, [an_entry(1)])
    left = manifest.write_segment(tmp_path, first, [an_entry(2)])
    right = manifest.write_segment(tmp_path, first, [an_entry(3)])
    assert left.sequence == right.sequence == 2
    assert [e.job_id for e in manifest.ledger_entries(tmp_path, left)] == [2, 1]
    assert [e.job_id for e in manifest.ledger_entries(tmp_path, right)] == [3, 1]
    assert manifest.write_segment(tmp_path, first, [an_entry(2)]) == left  # again: the same


def test_a_missing_or_changed_segment_is_refused(tmp_path):
    first = manifest.write_segment(tmp_path, None, [an_entry(1)])
    head = manifest.write_segment(tmp_path, first, [an_entry(2)])
    path = manifest.segment_path(tmp_path, first)
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(Corrupt, match="missing"):
        list(manifest.ledger_entries(tmp_path, head))
    path.write_bytes(data.replace(b"1.jsonl", b"9.jsonl"))
    with pytest.raises(Corrupt, match="damaged"):
        list(manifest.ledger_entries(tmp_path, head))
    with pytest.raises(Corrupt, match="missing"):
        manifest.read_segment(tmp_path, LedgerHead(9, "0" * 64))


# --- checkpoints --------------------------------------------------------------------------------


def test_checkpoint_names_sort_by_step_then_generation():
    names = ["checkpoint-9", "checkpoint-10", "checkpoint-9.2", "checkpoint-9.10"]
    ordered = sorted(checkpoints.parse_name(name) for name in names)
    assert [str(name) for name in ordered] == [
        "checkpoint-9",
        "checkpoint-9.2",
        "checkpoint-9.10",
        "checkpoint-10",
    ]
    for other in ("checkpoint-", "checkpoint--1", "checkpoint-5.bad", "checkpoint-1 ", "model"):
        assert checkpoints.parse_name(other) is None


def test_the_newest_is_the_highest_step_that_verifies(tmp_path):
    for step in (9, 10, 100):
        commit(tmp_path, step)
    (tmp_path / "checkpoint-100" / "model.bin").chmod(0o600)
    (tmp_path / "checkpoint-100" / "model.bin").write_bytes(b"weighty")
    newest = checkpoints.newest_verified(tmp_path)
    assert newest.folder.name == "checkpoint-10"
    assert "checkpoint-100" in newest.passed_over[0]


@pytest.mark.parametrize("damage", ["shorter", "missing", "flipped", "folder", "no manifest"])
def test_every_kind_of_damage_is_passed_over(tmp_path, damage):
    commit(tmp_path, 1)
    path = commit(tmp_path, 2) / "model.bin"
    path.chmod(0o600)
    match damage:
        case "shorter":
            path.write_bytes(b"weight")
        case "missing":
            path.unlink()
        case "flipped":
            path.write_bytes(b"weightt")
        case "folder":
            path.unlink()
            path.mkdir()
        case "no manifest":
            (path.parent / manifest.MANIFEST_NAME).unlink()
    assert checkpoints.newest_verified(tmp_path).folder.name == "checkpoint-1"


def test_checkpoints_that_all_fail_never_mean_a_fresh_start(tmp_path):
    (commit(tmp_path, 1) / "model.bin").unlink()
    with pytest.raises(Corrupt, match="no checkpoint verifies"):
        checkpoints.newest_verified(tmp_path)
    assert checkpoints.newest_verified(tmp_path / "never") is None


def test_a_bad_sector_is_damage_but_a_lack_of_descriptors_is_not(tmp_path, monkeypatch):
    folder = commit(tmp_path, 1)
    entry = manifest.read(folder).files[0]
    for number, expected in ((errno.EIO, Corrupt), (errno.EMFILE, OSError)):

        def fail(path: Path, should_stop: object, number: int = number) -> str:
            raise OSError(number, "injected")

        monkeypatch.setattr(hashing, "hash_file", fail)
        with pytest.raises(expected):
            checkpoints.verify_file(folder, entry)


def test_a_commit_never_replaces_a_checkpoint(tmp_path):
    commit(tmp_path, 1, "first")
    with pytest.raises(FileExistsError):
        commit(tmp_path, 1, "other")
    assert (tmp_path / "checkpoint-1" / "model.bin").read_text() == "first"


def test_links_and_marked_folders_are_no_checkpoints(tmp_path):
    commit(tmp_path, 1)
    (tmp_path / "checkpoint-5").symlink_to(tmp_path / "checkpoint-1")
    commit(tmp_path, 6).rename(tmp_path / "checkpoint-6.bad")
    assert [folder.name for folder in checkpoints.list_folders(tmp_path)] == ["checkpoint-1"]


def test_an_entry_describes_the_file_as_it_is(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    entry = checkpoints.entry_for(tmp_path, "a", "state")
    assert entry == FileEntry("a", 3, hashing.hash_file(tmp_path / "a"), "state")
