"""The pipe: neither end can block the other's owner, and nothing that matters is dropped."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable

import msgspec
import pytest

from trainer_tui.safety import messages
from trainer_tui.safety.messages import MAX_FRAME_BYTES
from trainer_tui.safety.pipe import OUTGOING_FRAMES, PipeEnd


class Ear:
    """Collects frames; `wait` until a condition holds or time is up."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.closed = threading.Event()
        self._changed = threading.Condition()

    def on_frame(self, frame: bytes) -> None:
        with self._changed:
            self.frames.append(frame)
            self._changed.notify_all()

    def on_close(self) -> None:
        self.closed.set()

    def wait(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)


@pytest.fixture
def ends():
    left, right = multiprocessing.Pipe()
    ear = Ear()
    end = PipeEnd(left, ear.on_frame, ear.on_close, "test")
    end.start()
    yield end, right, ear
    end.close()
    right.close()


def test_frames_arrive_whole_and_in_order_both_ways(ends):
    end, other, ear = ends
    frames = [os.urandom(size) for size in (1, 100, 70_000, 1_000_000)]
    sender = threading.Thread(target=lambda: [other.send_bytes(frame) for frame in frames])
    sender.start()
    assert ear.wait(lambda: len(ear.frames) == 4)
    sender.join()
    assert ear.frames == frames
    for frame in frames:
        assert end.send(frame)
        assert other.recv_bytes() == frame


def test_a_reader_who_does_not_read_never_blocks_the_sender(ends):
    end, other, _ = ends
    begun = time.monotonic()
    sent = [end.send(b"x" * 10_000, droppable=True) for _ in range(OUTGOING_FRAMES * 3)]
    assert time.monotonic() - begun < 5
    assert end.dropped > 0 and sent.count(False) == end.dropped
    assert end.send(b"this one matters"), "what is not droppable is never dropped"
    assert not end.flush(0.05)
    frames = []
    while True:
        frames.append(other.recv_bytes())
        if frames[-1] == b"this one matters":
            break
    assert len(frames) == sent.count(True) + 1
    assert end.flush(10)


def test_half_a_frame_blocks_nobody_but_the_reader_thread(ends):
    end, other, ear = ends
    os.write(other.fileno(), b"\x00\x00\x10\x00abc")  # promises 4096 bytes, gives 3
    assert end.send(b"still able to send")
    assert other.recv_bytes() == b"still able to send"
    assert ear.frames == [] and not ear.closed.is_set()
    other.close()
    assert ear.closed.wait(10)


def test_a_frame_above_the_limit_ends_the_conversation_not_the_memory(ends):
    _, other, ear = ends
    os.write(other.fileno(), (MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    assert ear.closed.wait(10) and ear.frames == []


def test_the_death_of_the_other_end_is_told_once_and_sending_says_no(ends):
    end, other, ear = ends
    other.close()
    assert ear.closed.wait(10)
    assert not end.send(b"x")
    assert end.flush(0.1)


def test_a_flush_that_broke_off_does_not_claim_to_be_done(ends):
    end, other, ear = ends
    for _ in range(50):
        end.send(b"x" * 100_000)
    other.close()
    assert ear.closed.wait(10)
    assert not end.flush(1)


def test_messages_of_one_direction_are_not_taken_for_the_other():
    frame = messages.encode(messages.Stop(after_file=True))
    assert messages.decode_for_trainer(frame) == messages.Stop(after_file=True)
    with pytest.raises(msgspec.ValidationError):
        messages.decode_from_trainer(frame)
    for garbage in (b"", b"\xc1", b"\x81\xa4kind\xa4none", os.urandom(64)):
        with pytest.raises(msgspec.MsgspecError):
            messages.decode_from_trainer(garbage)


def test_every_message_survives_the_wire():
    said = messages.Said("warning", "loss", "NaN", {"step": 3, "values": [1.5, None]})
    assert messages.decode_from_trainer(messages.encode(said)) == said
    step = messages.StepDone(
        7, 1, 0, 3, 9, float("nan"), 1e-4, 0.5, 10, 5, 1.0, 0.5, 0.1, extra={"p50": 1.0}
    )
    back = messages.decode_from_trainer(messages.encode(step))
    assert back.loss != back.loss and back.extra == step.extra
