"""What goes and what stays; nothing protected ever goes."""

from __future__ import annotations

import itertools
import shutil
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from trainer_tui.safety import checkpoints, hashing, manifest
from trainer_tui.safety.checkpoints import CheckpointName
from trainer_tui.safety.config import Config, Retention
from trainer_tui.safety.disk import exclusive_bytes
from trainer_tui.safety.errors import Refused
from trainer_tui.versions import best, check, keeping, retention, spare
from trainer_tui.versions.backup import Backup
from trainer_tui.versions.best import Figure
from trainer_tui.versions.layout import OPTIMIZER_PART, Layout
from trainer_tui.versions.records import Version, VersionRecord
from trainer_tui.versions.retention import Checkpoint


def a_checkpoint(step, *, generation=0, state="ok", validation=None, pinned=False, of_set="one"):
    name = CheckpointName(step, generation)
    figure = None if validation is None else Figure(validation, of_set, step)
    return Checkpoint(Path(str(name)), name, state, figure, pinned, False)


def a_version(number, *, day="2026-11-24", validation=None, state="ok", of_set="one", **marks):
    record = VersionRecord(
        number=number,
        name=f"v{number}",
        description="",
        automatic=False,
        created_at=f"{day}T00:00:00.000Z",
        parent="",
        checkpoint="",
        lineage=0,
        global_step=number * 100,
        tokens=0,
        supervised_tokens=0,
        files=[],
        files_more=False,
        config_hash="",
        template_hash="",
        tokenizer_hash="",
        base_model="",
        validation={} if validation is None else {"fixed": validation},
        hashes=[],
        ledger=None,
        manifest_sha256="",
    )
    plain = {"pinned": False, "weights_only": True, "live": True, "current": False} | marks
    figure = None if validation is None else Figure(validation, of_set, number * 100)
    place = Path(f"v{number}")
    return Version(number, f"v{number}", place, state, "", record, 0, figure=figure, **plain)


def going(checkpoints=(), versions=(), policy=None, action="trash"):
    decided = retention.what_goes(checkpoints, versions, policy or Retention())
    return sorted(str(d.path) for d in decided if d.action == action)


def test_the_newest_the_best_and_the_pinned_checkpoints_stay():
    points = [a_checkpoint(step, validation=step / 100) for step in range(100, 900, 100)]
    points[1] = replace(points[1], pinned=True)
    policy = Retention(checkpoints=3)
    assert going(points, policy=policy) == [f"checkpoint-{step}" for step in (300, 400, 500)]


def test_damaged_checkpoints_are_never_counted_as_kept():
    points = [a_checkpoint(step) for step in range(100, 600, 100)]
    points += [a_checkpoint(step, state="corrupt") for step in (600, 700, 800)]
    assert going(points, policy=Retention(checkpoints=5)) == []
    assert going(points, policy=Retention(checkpoints=4)) == ["checkpoint-100"]


def test_damaged_checkpoints_go_once_enough_newer_ones_verify():
    points = [a_checkpoint(100, state="corrupt"), a_checkpoint(250, state="corrupt")]
    points += [a_checkpoint(200), a_checkpoint(300)]
    assert going(points, policy=Retention(checkpoints=2)) == ["checkpoint-100"]


def test_what_cannot_be_read_now_is_neither_kept_nor_let_go():
    """It may be sound: a folder of another user, a disk that comes back."""
    points = [a_checkpoint(100, state="unreadable"), *map(a_checkpoint, (200, 300, 400))]
    versions = [a_version(1, state="unreadable"), *map(a_version, (2, 3, 4))]
    policy = Retention(checkpoints=1, versions=2, best_versions=0, daily_days=0)
    assert going(points, policy=policy) == ["checkpoint-200", "checkpoint-300"]
    assert going(versions=versions, policy=policy) == ["v2"]
    decided = retention.for_space(points, versions)
    gone = {str(decision.path) for decision in decided.go if decision.action == "trash"}
    assert gone == {"checkpoint-200", "v2"}


def test_a_thinner_commit_stands_in_for_its_first():
    points = [a_checkpoint(100), a_checkpoint(100, generation=1), a_checkpoint(200)]
    assert going(points) == ["checkpoint-100"]


def test_a_nan_is_no_figure(house):
    sealed = manifest.read(house.checkpoint(100, validation=2.0))
    assert best.figure_of(sealed) == Figure(2.0, "", 100)
    broken = msgspec.structs.replace(sealed, validation={"fixed": float("nan")})
    assert best.figure_of(broken) is None


def test_the_best_is_the_best_of_one_set():
    """A larger set came into use at step 300: its figures are higher, and no worse for that."""
    points = [a_checkpoint(100, validation=1.0, of_set="small")]
    points += [a_checkpoint(200, validation=0.9, of_set="small")]
    points += [a_checkpoint(s, validation=2.0 + s / 1e4, of_set="large") for s in (300, 400, 500)]
    points.append(a_checkpoint(600))
    policy = Retention(checkpoints=2)
    assert going(points, policy=policy) == [f"checkpoint-{s}" for s in (100, 200, 400)]
    # Gone back to a state of the small set: the best of the set before stays as well.
    points.append(a_checkpoint(601, validation=1.0, of_set="small"))
    assert going(points, policy=policy) == ["checkpoint-100", "checkpoint-400", "checkpoint-500"]


def test_of_equal_figures_the_state_that_was_measured_counts():
    measured = Figure(1.5, "one", 200)
    points = [replace(a_checkpoint(s), figure=measured) for s in (100 * n for n in range(2, 7))]
    assert going(points, policy=Retention(checkpoints=1)) == [
        f"checkpoint-{s}" for s in (300, 400, 500)
    ]


def test_best_versions_are_of_the_set_in_use():
    versions = [a_version(n, validation=0.1 * n, of_set="small") for n in (1, 2, 3)]
    versions += [a_version(n, validation=5 - 0.1 * n, of_set="large") for n in (4, 5, 6, 7, 8)]
    versions[3] = a_version(4, validation=1.0, of_set="large")
    assert [v.number for v in retention.best_versions(versions, 2)] == [4, 8]
    policy = Retention(versions=2, best_versions=1, daily_days=0)
    assert going(versions=versions, policy=policy) == ["v1", "v2", "v3", "v5", "v6"]


def test_versions_stay_by_number_quality_day_pin_and_being_current():
    versions = [
        a_version(1, day="2026-11-01"),
        a_version(2, day="2026-11-01"),
        a_version(3, day="2026-11-02", validation=0.5),
        a_version(4, day="2026-11-02"),
        a_version(5, day="2026-11-03", pinned=True),
        a_version(6, day="2026-11-03", current=True),
        a_version(7, day="2026-11-03"),
        a_version(8, day="2026-11-03"),
        a_version(9, day="2026-11-04", validation=0.9),
    ]
    policy = Retention(versions=2, best_versions=1, daily_days=3)
    # kept: 9 and 8 newest, 3 best, 9 8 4 last of the three last days, 5 pinned, 6 current
    assert going(versions=versions, policy=policy) == ["v1", "v2", "v7"]


def test_the_two_newest_versions_stay_whatever_the_policy():
    policy = Retention(versions=1, best_versions=0, daily_days=0)
    versions = [a_version(number) for number in (1, 2, 3)]
    assert going(versions=versions, policy=policy) == ["v1"]
    versions[2] = a_version(3, state="corrupt")
    assert going(versions=versions, policy=policy) == []


def test_only_the_newest_versions_keep_their_optimizer():
    versions = [a_version(number, weights_only=False) for number in range(1, 6)]
    versions[0] = a_version(1, weights_only=False, pinned=True)
    policy = Retention(versions_with_optimizer=2)
    assert going(versions=versions, policy=policy, action="thin") == ["v2", "v3"]


def small_policy(**more):
    return Config(
        retention=Retention(**{"checkpoints": 2, "versions": 2, "best_versions": 0} | more)
    )


def names(house):
    return sorted(path.name for path in checkpoints.list_folders(house.workspace.current_model))


def test_a_preview_says_what_would_go_and_why_the_rest_stays(house):
    for step in (100, 200, 300):
        house.checkpoint(step)
    shown = keeping.preview(house.workspace, small_policy()).as_dict()
    assert [(entry["name"], entry["action"]) for entry in shown["go"]] == [
        ("checkpoint-100", "trash")
    ]
    assert {entry["name"] for entry in shown["keep"]} == {"checkpoint-200", "checkpoint-300"}
    assert all(entry["why"] for entry in shown["go"] + shown["keep"])
    assert len(names(house)) == 3


def test_apply_removes_old_checkpoints_and_tells_what_it_did(house):
    for step in (100, 200, 300, 400):
        house.checkpoint(step)
    done = keeping.apply(house.workspace, small_policy())
    assert [entry.path.name for entry in done] == ["checkpoint-100", "checkpoint-200"]
    assert all(entry.freed_bytes > 0 and "newer" in entry.why for entry in done)
    assert names(house) == ["checkpoint-300", "checkpoint-400"]
    assert list((house.workspace.trash / "versions").iterdir()) == []
    assert keeping.apply(house.workspace, small_policy()) == []


def test_checkpoints_that_the_trainer_marked_bad_go_in_their_time(house):
    for step, mark in ((100, ".bad"), (200, ".bad2")):
        folder = house.checkpoint(step)
        folder.rename(folder.with_name(folder.name + mark))
    for step in (300, 400):
        house.checkpoint(step)
    done = keeping.apply(house.workspace, small_policy())
    assert [entry.path.name for entry in done] == ["checkpoint-100.bad", "checkpoint-200.bad2"]
    assert names(house) == ["checkpoint-300", "checkpoint-400"]


def test_nothing_goes_while_what_would_be_kept_does_not_verify(house, flip):
    for step in (100, 200, 300, 400):
        house.checkpoint(step)
    for step in (300, 400):
        flip(house.workspace.current_model / f"checkpoint-{step}" / "model.safetensors")
    assert keeping.apply(house.workspace, small_policy()) == []
    assert len(names(house)) == 4
    house.checkpoint(500)
    done = keeping.apply(house.workspace, small_policy())
    assert [entry.path.name for entry in done] == ["checkpoint-100"]
    assert house.newest().folder.name == "checkpoint-500"


def test_retention_that_is_told_to_stop_lets_nothing_go(house):
    for step in (100, 200, 300, 400):
        house.checkpoint(step)
    asked = []

    def stop_after_one() -> bool:
        asked.append(True)
        return len(asked) > 2

    assert keeping.apply(house.workspace, small_policy(), should_stop=stop_after_one) == []
    assert len(names(house)) == 4
    assert house.store.layout.verified_cache.exists()  # what was hashed is not hashed again
    assert len(keeping.apply(house.workspace, small_policy())) == 2


def test_a_pinned_version_that_is_damaged_does_not_stop_retention(house, flip):
    for step in (100, 200, 300, 400):
        house.store.create(house.checkpoint(step), "", keep_optimizer=False)
    house.store.pin(1)
    flip(house.store.get(1).folder / "model.safetensors")
    done = keeping.apply(house.workspace, small_policy(daily_days=0))
    assert "v002" in [entry.path.name.split("_")[0] for entry in done]
    states = {version.number: version.state for version in house.store.list()}
    assert states == {1: "corrupt", 3: "ok", 4: "ok"}


def test_a_corrupt_version_does_not_push_out_a_sound_one(house, flip):
    for step in (100, 200, 300, 400):
        house.store.create(house.checkpoint(step), "", keep_optimizer=False)
    flip(house.store.get(4).folder / "model.safetensors")  # and so checkpoint-400, the same file
    policy = small_policy(daily_days=0)
    keeping.apply(house.workspace, policy)
    states = {version.number: version.state for version in house.store.list()}
    assert states == {2: "ok", 3: "ok", 4: "corrupt"}
    assert house.newest().folder.name == "checkpoint-300"


def test_a_second_folder_of_one_number_takes_nobodys_place():
    loss = {5: 1.0, 4: 1.4, 3: 1.3, 2: 1.2, 1: 1.1}
    found = [a_version(n, validation=loss[n], weights_only=False) for n in loss]
    versions = [replace(found[0], folder=Path("copy of v5")), *found]
    policy = Retention(versions=2, best_versions=2, daily_days=0, versions_with_optimizer=2)
    decided = retention.plan([], versions, policy)
    assert {path.name for path in decided.keep} == {"copy of v5", "v5", "v4", "v1"}
    thinned = [decision.path.name for decision in decided.go if decision.action == "thin"]
    assert thinned == ["v1"], "the two newest numbers keep their optimizer, in every folder"


def test_versions_let_go_by_retention_can_come_back(house):
    for step in (100, 200, 300, 400):
        house.store.create(house.checkpoint(step), "")
    done = keeping.apply(house.workspace, small_policy(daily_days=0))
    gone = [entry for entry in done if entry.path.parent == house.workspace.versions]
    assert [entry.path.name.split("_")[0] for entry in gone] == ["v001", "v002"]
    assert all(entry.freed_bytes == 0 for entry in gone)
    house.store.undelete(1)
    assert house.store.verify(1).ok


def test_the_trash_is_emptied_after_its_days_only(build):
    stamp = {"now": "2026-11-24T12:00:00.000Z"}
    house = build(lambda: stamp["now"])
    for step in (100, 200, 300):
        house.store.create(house.checkpoint(step), "")
    house.store.delete(1)
    config = small_policy(checkpoints=5)

    def left() -> int:
        keeping.apply(house.workspace, config, lambda: stamp["now"])
        return len(house.store.trashed())

    assert left() == 1
    stamp["now"] = "2026-11-24T11:00:00.000Z"  # an hour back
    assert left() == 1
    stamp["now"] = "2026-12-01T11:59:59.000Z"
    assert left() == 1
    stamp["now"] = "2026-12-01T12:00:01.000Z"
    assert left() == 0


@pytest.mark.parametrize("moved", ["2026-11-24T11:00:00.000Z", "2041-01-01T00:00:00.000Z"])
def test_a_clock_that_jumps_changes_nothing_about_what_is_kept(build, moved):
    stamp = {"now": "2026-11-24T12:00:00.000Z"}
    house = build(lambda: stamp["now"])
    for step in (100, 200, 300):
        house.store.create(house.checkpoint(step, at=stamp["now"]), "")
    stamp["now"] = moved
    for step in (400, 500):
        house.store.create(house.checkpoint(step, at=moved), "")
    policy = small_policy(daily_days=2)
    before = keeping.preview(house.workspace, policy)
    keeping.apply(house.workspace, policy, lambda: stamp["now"])
    assert names(house) == ["checkpoint-400", "checkpoint-500"]
    assert house.newest().folder.name == "checkpoint-500"
    kept = {version.number for version in house.store.list()}
    assert {4, 5} <= kept and all(path.exists() for path in before.keep)


def test_a_clock_that_goes_back_an_hour_at_every_look_during_retention_loses_nothing(build):
    """Over midnight, too: the days of versions are counted, never compared with now."""
    hours = iter(range(1000))

    def now() -> str:
        return (
            datetime(2026, 11, 25, 0, 30, tzinfo=UTC) - timedelta(hours=next(hours))
        ).isoformat()

    house = build(now)
    for step in (100, 200, 300, 400, 500):
        house.store.create(house.checkpoint(step, validation=step / 100, measured=(step, "s")), "")
    house.store.pin(2)
    house.store.delete(3)
    policy = small_policy(daily_days=1, best_versions=1)
    for _ in range(5):
        keeping.apply(house.workspace, policy, now)
    assert names(house) == ["checkpoint-100", "checkpoint-400", "checkpoint-500"]  # 100: the best
    assert {version.number for version in house.store.list()} == {1, 2, 4, 5}
    assert [entry.note.name[:4] for entry in house.store.trashed()] == ["v003"]
    assert house.store.undelete(3).state == "ok"
    assert all(house.store.verify(version.number).ok for version in house.store.list())
    assert house.newest().folder.name == "checkpoint-500"


def test_emergency_backups_have_their_own_limit(house):
    house.store.create(house.checkpoint(100), "")
    house.checkpoint(200)
    for _ in range(4):
        house.store.restore(1)
    keeping.apply(house.workspace, small_policy(emergency_backups=2))
    assert [entry.number for entry in house.store.emergencies()] == [4, 3]


def test_thinning_commits_a_thinner_one_and_drops_the_first(house):
    old = house.checkpoint(100)
    house.checkpoint(200)
    weights = (old / "model.safetensors").read_bytes()
    thinner = keeping.thin(house.workspace, old)
    sealed = checkpoints.verify(thinner)
    assert thinner.name == "checkpoint-100.1" and not old.exists()
    assert sealed.weights_only and sealed.warmup_origin == 100
    assert (thinner / "model.safetensors").read_bytes() == weights
    assert not (thinner / "optimizer.safetensors").exists()
    with pytest.raises(Refused, match="no optimizer"):
        keeping.thin(house.workspace, thinner)
    with pytest.raises(Refused, match="training goes on from"):
        keeping.thin(house.workspace, house.workspace.current_model / "checkpoint-200")


def test_retention_thins_versions_and_restore_says_so(house):
    for step in (100, 200, 300):
        house.store.create(house.checkpoint(step), "")
    keeping.apply(house.workspace, small_policy(versions=20, versions_with_optimizer=1))
    flags = {version.number: version.weights_only for version in house.store.list()}
    assert flags == {1: True, 2: True, 3: False}
    assert all(house.store.verify(number).ok for number in flags)
    assert house.store.restore(2).weights_only


def test_a_hard_link_frees_nothing_and_is_not_counted(house):
    folder = house.checkpoint(100, elements=1 << 16)
    alone = exclusive_bytes(folder)
    house.store.create(folder, "")
    house.checkpoint(200)
    (decision,) = retention.what_goes(
        keeping.survey(Layout(house.workspace)).checkpoints, [], Retention(checkpoints=1)
    )
    assert decision.path == folder
    assert alone > 700_000 and exclusive_bytes(folder) < 10_000


def test_room_is_made_in_order_and_only_as_much_as_is_wanted(house):
    for step in (100, 200, 300, 400):
        house.store.create(house.checkpoint(step, elements=1 << 16), "")
    house.store.pin(1)
    measured = iter([0, 0, 10])  # short until two things went
    freed = spare.make_room(house.workspace, Config(), 10, lambda: next(measured))
    what = [entry.what.split("_")[0] for entry in freed]
    # checkpoint-100's is held by v001
    assert what == ["the optimizer of v002", "the optimizer of checkpoint-200"]
    free = itertools.count()
    spare.make_room(house.workspace, Config(), 1 << 60, lambda: next(free))
    assert set(names(house)) == {"checkpoint-300", "checkpoint-400"}
    assert {version.number for version in house.store.list()} == {1, 3, 4}
    assert not house.store.get(1).weights_only  # pinned: whole
    assert house.newest().folder.name == "checkpoint-400"
    assert all(house.store.verify(number).ok for number in (1, 3, 4))


def test_a_preview_names_what_would_really_go_and_what_that_really_frees(build):
    """The same disk twice: one is asked, the other is made to free all that it can."""
    asked, emptied = build(), build()
    for house in (asked, emptied):
        for step in range(100, 1000, 100):
            folder = house.checkpoint(step, elements=1 << 16, validation=1.0 if step == 300 else 2)
            house.store.create(folder, "", keep_optimizer=step != 500)
        house.store.pin(1)
        house.store.delete(2)
        house.store.restore(4)
        house.store.restore(9)
        house.checkpoint(1000, lineage=2, elements=1 << 16)
    before = exclusive_bytes(asked.workspace.root)
    expected = spare.VersionsOwner(asked.workspace, Config()).preview()
    assert exclusive_bytes(asked.workspace.root) == before and len(asked.store.trashed()) == 1
    assert all(entry.why for entry in expected)

    free = itertools.count()
    freed = spare.make_room(emptied.workspace, Config(), 1 << 60, lambda: next(free))
    gone = [entry.what.replace("the trash (", "").replace(")", "") for entry in freed]
    words = [entry.what.replace(" in the trash", "") for entry in expected if entry.bytes]
    assert [word.removesuffix(".1") for word in gone] == words  # a thinner commit goes in its stead
    left = exclusive_bytes(emptied.workspace.root)
    # A thinner checkpoint has a manifest of its own, and a mark of what was hashed stays.
    assert sum(entry.bytes for entry in expected) == pytest.approx(before - left, abs=100_000)
    assert {v.number for v in emptied.store.list()} >= {9, 8, 3, 1}


def test_room_is_first_made_from_the_trash_then_from_old_optimizers(house):
    for step in (100, 200, 300, 400):
        house.store.create(house.checkpoint(step), "", keep_optimizer=False)
    house.store.delete(1)
    measured = iter([0, 1, 2, 3, 10])
    freed = spare.make_room(house.workspace, Config(), 10, lambda: next(measured))
    assert [entry.what.split("_")[0] for entry in freed] == [
        "the trash (v001",
        "the optimizer of checkpoint-100",
        "the optimizer of checkpoint-200",
        "checkpoint-100.1",
    ]
    assert house.store.trashed() == ()


def test_what_is_being_restored_is_kept_however_short_the_disk_is(house):
    """The offer was made before somebody asked for that version: it does not stand any more."""
    for step in (100, 200, 300, 400):
        house.store.create(house.checkpoint(step, elements=1 << 16), "")
    name = house.store.get(2).name
    owner = spare.VersionsOwner(house.workspace, Config(), in_use=house.store.in_use)
    offer = next(o for o in owner.offers() if o.what == f"the optimizer of {name}")
    house.store.hold(name)
    offer.free()
    assert not house.store.get(2).weights_only
    for other in owner.offers():
        other.free()
    assert not house.store.get(2).weights_only and house.store.verify(2).ok
    assert not any(name in entry.what for entry in owner.preview())
    house.store.in_use.discard(name)
    for other in owner.offers():
        other.free()
    assert {version.number for version in house.store.list()} == {3, 4}


def test_a_version_whose_optimizer_goes_while_it_is_proven_is_sound(house, monkeypatch):
    house.store.create(house.checkpoint(100), "")
    folder = house.store.get(1).folder
    opened = check.open_tensors

    def thinned(path: Path) -> int:
        if path.parent.name == OPTIMIZER_PART:
            shutil.rmtree(path.parent)
        return opened(path)

    monkeypatch.setattr(check, "open_tensors", thinned)
    check.prove_version(folder)
    assert house.store.get(1).state == "ok" and house.store.get(1).weights_only


def test_retention_gives_way_in_the_middle_of_a_large_file(house, monkeypatch):
    """Somebody who wants a restore does not wait for gigabytes to be hashed first."""
    monkeypatch.setattr(hashing, "CHUNK_BYTES", 1 << 10)
    for step in (100, 200, 300):
        house.checkpoint(step, elements=1 << 16)
    asked = itertools.count()
    done = keeping.apply(
        house.workspace, small_policy(checkpoints=1), should_stop=lambda: next(asked) > 20
    )
    assert done == [] and next(asked) < 30, "it was asked within the first file"
    assert names(house) == ["checkpoint-100", "checkpoint-200", "checkpoint-300"]
    keeping.apply(house.workspace, small_policy(checkpoints=1))
    assert names(house) == ["checkpoint-300"]


def test_retention_racing_create_never_breaks_a_version(house):
    """A thread makes versions of whatever is newest while another lets old checkpoints go."""
    house.checkpoint(1)
    stop = threading.Event()
    problems: list[BaseException] = []

    def keep() -> None:
        try:
            while not stop.is_set():
                keeping.apply(house.workspace, small_policy(checkpoints=1, versions=3))
        except BaseException as problem:  # noqa: BLE001 - handed to the test
            problems.append(problem)

    keeper = threading.Thread(target=keep)
    keeper.start()
    made = []
    for step in range(2, 22):
        made.append(house.store.create(house.checkpoint(step), str(step)).number)
    stop.set()
    keeper.join(30)
    assert problems == [] and made == list(range(1, 21))
    standing = house.store.list()
    assert {20, 19} <= {version.number for version in standing}
    assert all(house.store.verify(version.number).ok for version in standing)
    assert house.newest().folder.name == "checkpoint-21"


def test_what_was_measured_stays_measured_when_it_is_restored(house):
    house.store.create(house.checkpoint(100, validation=2.0, measured=(90, "one")), "")
    house.checkpoint(200, validation=3.0, measured=(200, "one"))
    done = house.store.restore(1)
    assert house.newest().manifest.extra["measured"] == [done.global_step - 10, "one"]
    assert house.newest().manifest.validation == {"fixed": 2.0}
    assert keeping.best_known(house.workspace).loss == 2.0


def test_backup_racing_create_never_stumbles_over_the_sweep(house, tmp_path):
    """Whoever takes the lock sweeps staging names, so a backup may not stage outside of it."""
    house.store.create(house.checkpoint(1), "")
    stop = threading.Event()
    problems: list[BaseException] = []
    place = tmp_path / "disk2"
    place.mkdir()

    def back_up() -> None:
        try:
            while not stop.is_set():
                Backup(house.workspace, place).run()
        except BaseException as problem:  # noqa: BLE001 - handed to the test
            problems.append(problem)

    copier = threading.Thread(target=back_up)
    copier.start()
    for _ in range(30):
        house.store.pin(1)
    stop.set()
    copier.join(30)
    assert problems == []
