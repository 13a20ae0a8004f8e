"""A terminal that takes nothing holds up nobody; one that goes away stops the stack in order."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from tests.waiting import wait_until
from tidemill.agents.dev import DevStack
from tidemill.cli import terminal as terminal_
from tidemill.cli.terminal import Terminal

SECONDS = 30.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """The read end of what stands for stderr, and that."""
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w", encoding="ascii", errors="backslashreplace")
    yield reading, stream
    stream.close()


def everything(reading: int) -> bytes:
    return b"".join(iter(lambda: os.read(reading, 65_536), b""))


def test_lines_come_in_their_order_and_in_the_encoding_of_the_terminal(
    pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", pipe[1])
    shown = Terminal()
    for number in range(50):
        shown.write(f"{number} \u00fc")
    shown.close()
    pipe[1].close()
    assert everything(pipe[0]).decode().split("\n") == [f"{n} \\xfc" for n in range(50)] + [""]
    os.close(pipe[0])


def test_a_pipe_that_nobody_reads_holds_up_nobody(
    pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal_, "LINES_WAITING_MAX", 100)
    monkeypatch.setattr(terminal_, "CLOSE_SECONDS", 0.05)
    reading, stream = pipe
    monkeypatch.setattr(sys, "stderr", stream)
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4_096)
    shown = Terminal()
    for _ in range(1_000):
        shown.write("x" * 200)
    shown.close()  # nor does the end wait
    found = bytearray()

    def has_told() -> bool:
        found.extend(os.read(reading, 65_536))
        return b"lines found no place here" in found

    wait_until(has_told, SECONDS, lambda: found[-300:].decode())
    lines = found.decode().split("\n")
    told = next(line for line in lines if "found no place" in line)
    kept = sum(line == "x" * 200 for line in lines)
    assert kept + int(told.split()[0].lstrip("(")) == 1_000
    os.close(reading)


def test_a_reader_that_has_gone_and_a_closed_stderr_change_nothing(
    pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.close(pipe[0])
    monkeypatch.setattr(sys, "stderr", pipe[1])
    shown = Terminal()
    shown.write("nobody reads it")
    monkeypatch.setattr(sys, "stderr", None)
    shown.write("nor this")
    shown.close()
    assert not shown._thread.is_alive()


@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_closed_terminal_stops_in_order_and_nohup_is_heard(*, is_ignored: bool) -> None:
    stack: Any = DevStack.__new__(DevStack)
    stack._signals, told = 0, list[str]()
    stack._say = told.append
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    try:
        with stack._signals_counted():
            if not is_ignored:
                signal.raise_signal(signal.SIGHUP)
            assert (signal.getsignal(signal.SIGHUP) is signal.SIG_IGN) is is_ignored
    finally:
        signal.signal(signal.SIGHUP, before)
    assert told == ([] if is_ignored else ["SIGHUP: stopping"])
