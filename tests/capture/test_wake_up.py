"""The collector wakes the loader by a named pipe beside the spool."""

import threading
from pathlib import Path

from accounting.capture.wake_up import WakeUpReceiver, WakeUpSender, pipe_path

LONG_SECONDS = 60.0


def test_a_wake_up_ends_a_wait_and_many_are_one(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    sender = WakeUpSender(spool)
    sender.send()  # to nobody
    receiver = WakeUpReceiver(spool, threading.Event())
    assert receiver.is_working
    for _ in range(100_000):  # more than a pipe takes
        sender.send()
    receiver.wait(LONG_SECONDS)
    sender.close()


def test_the_stop_event_ends_a_wait(tmp_path: Path) -> None:
    stop = threading.Event()
    receiver = WakeUpReceiver(tmp_path / "spool", stop)
    stop.set()
    receiver.wait(LONG_SECONDS)


def test_a_sender_finds_the_next_receiver(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    first = WakeUpReceiver(spool, threading.Event())
    sender = WakeUpSender(spool)
    sender.send()
    first.wait(LONG_SECONDS)
    second = WakeUpReceiver(spool, threading.Event())
    sender.send()
    second.wait(LONG_SECONDS)
    sender.close()


def test_another_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    pipe_path(spool).write_text("kept")
    receiver = WakeUpReceiver(spool, threading.Event())
    WakeUpSender(spool).send()
    assert not receiver.is_working
    assert pipe_path(spool).read_text() == "kept"
