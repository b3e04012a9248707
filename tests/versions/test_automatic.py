"""Versions that are made by themselves: when one is due, and when it would be of no use."""

from __future__ import annotations

import pytest

from trainer_tui.safety import durable, manifest
from trainer_tui.safety.config import Versioning
from trainer_tui.versions import automatic, keeping, records
from trainer_tui.versions.best import Figure


def due_of(house, folder, policy):
    branches = records.read_branches(house.store.layout)
    return automatic.due(manifest.read(folder), house.store.list(), policy, branches)


def test_automatic_versions_follow_the_policy(house):
    def due(folder, **policy):
        plain = {"after_every_file": False, "every_steps": 0, "on_new_best": False} | policy
        return due_of(house, folder, Versioning(**plain))

    first = house.checkpoint(100, validation=2.0)
    assert due(first) is None
    assert due(first, every_steps=100) and not due(first, every_steps=101)
    assert "2.0000" in due(first, on_new_best=True)
    assert due(first, after_every_file=True) is None
    house.store.create(first, "")
    assert due(first, on_new_best=True, every_steps=1) is None  # never twice of one state
    assert due(house.checkpoint(150, validation=1.999), on_new_best=True) is None
    house.train_file()
    better = house.checkpoint(200, validation=1.9)
    assert due(better, on_new_best=True) and due(better, after_every_file=True)
    assert due(better, every_steps=100)


def test_after_a_restore_steps_are_counted_from_the_version_on(house):
    """The restore calls the same weights by a higher step: nothing was trained."""
    policy = Versioning(every_steps=500)
    house.store.create(house.checkpoint(200, validation=2.0), "")
    house.checkpoint(1000)
    restored = house.store.restore(1)
    assert restored.global_step == 1001
    assert due_of(house, restored.folder, policy) is None
    assert due_of(house, house.checkpoint(1500, lineage=1), policy) is None
    due = due_of(house, house.checkpoint(1501, lineage=1), policy)
    assert due == "every 500 steps: step 1501"
    house.store.create(house.newest().folder, due, automatic=True)
    house.store.restore(2)
    back = house.store.restore_emergency(2)  # of 1501, once more restored
    assert due_of(house, back.folder, policy) is None
    assert due_of(house, house.checkpoint(back.global_step + 499, lineage=3), policy) is None
    assert due_of(house, house.checkpoint(back.global_step + 500, lineage=3), policy)


def test_steps_since_the_base_model_are_counted_along_the_line_when_no_version_is_on_it(house):
    house.checkpoint(300)
    house.store.create(house.checkpoint(400), "")
    house.store.restore(1)
    back = house.store.restore_emergency(1)  # 400 steps were trained, and it is called 402
    durable.remove_tree(house.store.get(1).folder)
    assert due_of(house, back.folder, Versioning(every_steps=400))
    assert due_of(house, back.folder, Versioning(every_steps=401)) is None


def test_a_new_best_is_better_on_the_same_set(house):
    def due(step, loss, at, set_id):
        folder = house.checkpoint(step, validation=loss, measured=(at, set_id))
        text = due_of(house, folder, Versioning())
        if text:
            house.store.create(folder, text, automatic=True)
        return text

    assert due(10, 9.0, 0, "small") is None  # of the untrained
    assert due(50, 2.0, 49, "small") is None  # of a state that was not committed
    assert due(100, 2.0, 100, "small").startswith("best so far: 2.0000")
    assert due(200, 2.1, 200, "small") is None
    assert due(300, 3.0, 300, "large").startswith("best so far on a new validation set: 3.0000")
    assert due(400, 2.99, 400, "large") is None, "half a percent is the least"
    assert due(500, 2.5, 500, "large").startswith("best so far: 2.5000")
    assert due(600, 1.5, 600, "small"), "the small set again: better than its 2.0"
    assert house.store.as_dict()["best"] == 4
    changes = [house.store.show(n)["change_since_parent"] for n in (1, 2, 3, 4)]
    assert changes == [None, None, pytest.approx(-0.5), None], "of one set only"
    found = house.store.diff(1, 2).validation["fixed"]
    assert (found.first, found.second, found.by) == (2.0, 3.0, None)
    assert house.store.diff(2, 3).validation["fixed"].by == pytest.approx(-0.5)
    assert keeping.best_known(house.workspace) == Figure(1.5, "small", 600)
