"""Hanging up is seen at both ends at once, also while both are silent."""

from __future__ import annotations

import multiprocessing
import threading

from trainer_tui.safety.pipe import PipeEnd


def test_closing_a_silent_pipe_tells_the_other_end_at_once() -> None:
    left, right = multiprocessing.Pipe()
    seen = threading.Event(), threading.Event()
    ends = [
        PipeEnd(connection, lambda frame: None, event.set, f"end{number}")
        for number, (connection, event) in enumerate(zip((left, right), seen, strict=True))
    ]
    for end in ends:
        end.start()
    ends[0].close()
    assert seen[1].wait(5) and seen[0].wait(5)
    ends[1].close()


def test_what_was_sent_before_the_close_still_arrives() -> None:
    left, right = multiprocessing.Pipe()
    frames: list[bytes] = []
    closed = threading.Event()
    ours = PipeEnd(left, lambda frame: None, lambda: None, "ours")
    theirs = PipeEnd(right, frames.append, closed.set, "theirs")
    ours.start()
    for number in range(50):
        ours.send(b"%d" % number)
    assert ours.flush(5)
    ours.close()
    theirs.start()
    assert closed.wait(5)
    assert frames == [b"%d" % number for number in range(50)]
    theirs.close()
