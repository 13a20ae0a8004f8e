"""The process beside a worker: in whose name it speaks, when it is silent, and when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from tests.waiting import wait_until
from tidemill.agents.worker import stand_in as stand_in_module
from tidemill.agents.worker.pulse import STILL_SECONDS, Pulse, open_memory
from tidemill.agents.worker.stand_in import StandIn
from tidemill.agents.worker.watch import Watch
from tidemill.schemas.marks import mark_of
from tidemill.schemas.wire import Heartbeat, KindSlots, QueueSlots

ROOT: Final = Path(__file__).resolve().parents[2]
WORDS: Final[dict[str, Any]] = {
    "kafka": "127.0.0.1:9", "topic": "t", "worker_id": "w", "types": ["hold"],
    "stall_seconds": 600.0, "log_format": "console", "log_level": "info",
}
BEAT: Final = Heartbeat(
    schema_version=1, worker_id="w", incarnation=7, at=1,
    queues={"q": QueueSlots(kinds={"thread": KindSlots(slots=4, free=3)}, partitions=(0,))},
    types=("hold",), running=1,
)
SECONDS: Final = 20.0
PARENT: Final = """
import os, sys
from tidemill.agents.worker.pulse import Pulse, open_memory
from tidemill.agents.worker.watch import Watch
watch = Watch({words!r}, Pulse(open_memory()))
watch.start()
print(watch.pid, flush=True)
sys.stdin.read()
"""


def is_there(pid: int) -> bool:
    return stand_in_module.state_of(pid) not in ("", "Z")


@pytest.fixture
def watch() -> Iterator[Watch]:
    made = Watch(WORDS, Pulse(open_memory()))
    made.start()
    yield made
    made.close()


def test_one_that_was_killed_is_started_again_and_ends_with_its_worker(watch: Watch) -> None:
    watch.tell(b"{}")
    first = watch.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)

    def has_another() -> bool:
        watch.tell(b"{}")
        return watch.pid not in (first, None)

    wait_until(has_another, SECONDS, "no other stand-in")
    second = watch.pid
    assert second is not None
    watch.close()
    assert not is_there(second)
    watch.tell(b"{}")  # nobody hears it, and nothing comes of that


def test_one_that_is_stopped_holds_nobody_up(watch: Watch) -> None:
    assert watch.pid is not None
    os.kill(watch.pid, signal.SIGSTOP)
    for _ in range(2_000):
        watch.tell(b"x" * 1_000)
    os.kill(watch.pid, signal.SIGCONT)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_a_worker_that_is_killed(how: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(words=WORDS)], cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_there(child)
        parent.send_signal(how)
    wait_until(lambda: not is_there(child), SECONDS, "the stand-in outlives its worker")


class Sent:
    """Where beats go."""

    def __init__(self) -> None:
        self.beats: list[Heartbeat] = []

    def send(self, key: bytes, value: bytes) -> None:
        assert key == b"w"
        self.beats.append(Heartbeat.model_validate_json(value))


class Standing:
    """A stand-in of this process's parent, whose pulse stands still or not."""

    def __init__(self, parent: int | None = None, **words: Any) -> None:
        self.pulse = Pulse()
        self.pulse.begin(mark_of("j", 1), 0, 1_000)
        self.it = StandIn(WORDS | words, self.pulse, os.getppid() if parent is None else parent)
        self.sent = Sent()
        self.it._sink = self.sent
        self.it._beat = BEAT.model_dump_json(exclude_none=True).encode()

    def look(self, quiet: float, still: float) -> None:
        self.it._quiet = quiet
        now = self.pulse.turned_at + still
        if self.it._is_still(now):
            self.it._stand_in(now)


def test_it_says_that_the_worker_is_stalled_what_began_there_and_that_nothing_is_free() -> None:
    standing = Standing()
    standing.look(STILL_SECONDS + 1, STILL_SECONDS + 1)
    (beat,) = standing.sent.beats
    assert beat.is_stalled
    assert beat.begun == (mark_of("j", 1),)
    assert beat.queues["q"].kinds["thread"] == KindSlots(slots=4, free=0)
    assert (beat.incarnation, beat.types, beat.running) == (7, ("hold",), 1)
    standing.look(STILL_SECONDS + 2, STILL_SECONDS + 2)
    assert len(standing.sent.beats) == 1  # one in two seconds
    standing.look(STILL_SECONDS + 4, STILL_SECONDS + 4)
    assert len(standing.sent.beats) == 2


@pytest.mark.parametrize(
    ("quiet", "still"),
    [(0.0, 100.0), (STILL_SECONDS - 1, 100.0), (100.0, 0.0), (100.0, STILL_SECONDS - 1)],
)
def test_it_is_silent_while_the_worker_speaks_or_its_loop_turns(quiet: float, still: float) -> None:
    standing = Standing()
    standing.look(quiet, still)
    assert standing.sent.beats == []


@pytest.mark.parametrize("state", ["T", "t", "Z", "X"])
def test_a_stopped_worker_has_no_voice(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    monkeypatch.setattr(stand_in_module, "state_of", lambda pid: state)
    standing = Standing()
    standing.look(100.0, 100.0)
    assert standing.sent.beats == []


def test_a_dead_worker_has_no_voice() -> None:
    standing = Standing(parent=2**22 + 5)
    standing.look(100.0, 100.0)
    assert standing.sent.beats == []


def test_half_a_line_says_nothing() -> None:
    standing = Standing()
    standing.it._beat = orjson.dumps({"at": 1})[:-2] + b"}"
    standing.look(100.0, 100.0)
    assert standing.sent.beats == []


def test_past_its_limit_the_worker_is_ended_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    monkeypatch.setattr(stand_in_module, "DUMP_SECONDS", 0.0)
    standing = Standing(stall_seconds=20.0)
    standing.look(25.0, 25.0)  # the longest time-out is 1 s, and 30 s are granted above it
    assert killed == []
    with pytest.raises(SystemExit):
        standing.look(32.0, 32.0)
    assert killed == [(os.getppid(), signal.SIGABRT), (os.getppid(), signal.SIGKILL)]
    assert "TIDEMILL_STALL_SECONDS" in caplog.text
    assert "hold" in caplog.text
