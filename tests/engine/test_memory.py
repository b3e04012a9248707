"""Out of memory by another process's doing is waited for; by our own, steps get smaller."""

from __future__ import annotations

import json
from collections.abc import Callable

from engine_driver import Driver, toy_rows

from trainer_tui.engine.memory import Card, others_are_to_blame
from trainer_tui.safety.messages import FromTrainer, Said, StepDone

GIB = 1 << 30


def test_others_are_blamed_only_for_what_fitted_before_and_would_without_them() -> None:
    crowded, alone = Card(80 * GIB, 1 * GIB, 10 * GIB), Card(80 * GIB, 1 * GIB, 79 * GIB)
    assert others_are_to_blame(crowded, True, 20 * GIB)
    assert not others_are_to_blame(crowded, False, 20 * GIB)  # never seen to fit: it may be ours
    assert not others_are_to_blame(crowded, True, 9 * GIB)  # there is room for that
    assert not others_are_to_blame(alone, True, 79 * GIB)
    assert not others_are_to_blame(None, True, 20 * GIB)


def run(driver: Driver, wait_s: float, let_go: bool) -> list[Said]:
    """Another process takes the card after the third step; gone as soon as the trainer waits."""
    others = driver.workspace.root / "others.txt"
    (driver.workspace.root / "trap.json").write_text(json.dumps({"card": wait_s}))

    def play(message: FromTrainer) -> None:
        if isinstance(message, StepDone) and message.global_step == 3:
            others.touch()
        about = isinstance(message, Said) and message.topic
        if (about == "waiting" and let_go and "holds" in message.text) or about == "memory":
            others.unlink(missing_ok=True)

    driver.on_message = play
    driver.add_job(toy_rows(60, 1))
    driver.run_until_done(entry="trap")
    return [m for m in driver.all_of(Said) if m.topic in ("waiting", "memory")]


def test_memory_that_another_process_holds_is_waited_for_and_the_weights_are_the_same(
    make_driver: Callable[..., Driver],
) -> None:
    calm = make_driver("calm")
    calm.add_job(toy_rows(60, 1))
    calm.run_until_done()
    crowded = make_driver("crowded")
    told = run(crowded, wait_s=60, let_go=True)
    assert [m.topic for m in told] == ["waiting", "waiting"]
    assert "another process holds" in told[0].text and told[0].data["others_bytes"] == 69 * GIB
    assert told[1].text == "there is room again"
    assert crowded.tensor_hash() == calm.tensor_hash()


def test_the_wait_is_bounded_and_then_the_steps_get_smaller(
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver()
    told = run(driver, wait_s=0.3, let_go=False)
    # It may shrink more than once before the test hears of it and lets go.
    assert [m.topic for m in told][:3] == ["waiting", "waiting", "memory"]
    assert {m.topic for m in told[3:]} <= {"memory"}
    assert told[1].text == "there is no room yet" and "micro-batches are now" in told[2].text
    assert driver.ledger_ids() == {1}
