"""A small process beside a worker: it beats in the worker's name while that cannot run any Python.

Owns the decision that the worker is busy and not dead, the beats that say so, and the end of a
worker that stands still for too long. Refuses to know jobs: it repeats the worker's last beat.

Code of a handler may hold the interpreter: a large regular expression, an extension that does not
let go. No thread of the worker's runs then, and to everybody else it looks dead. This process has
an interpreter of its own. It hears each beat of the worker over a pipe. When none comes and the
loop's pulse stands still, but the process is there and is not stopped (SIGSTOP, a debugger), the
last beat goes out again as a stalled one. A dead worker has no stand-in: its pipe is closed, and
it is nobody's parent any more. Only time in which this process itself ran counts.

While nothing stands still, little is imported here: some 12 MB of memory, half of it shared.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import time
from typing import Any, Final, NoReturn

from tidemill.agents.worker.pulse import STILL_SECONDS, Pulse

POLL_SECONDS: Final = 0.5  # how soon a worker that has gone or stands still is noticed
BEAT_SECONDS: Final = 2.0  # as the worker's own (`schemas/wire.py`, which would cost 20 MB here)
READ_BYTES: Final = 65_536  # at once from the pipe
FIRST_WORD_SECONDS: Final = 10.0  # the log tells of a stall from here on: as long as a silence
NEXT_WORD_FACTOR: Final = 2  # and again after twice as long each time
GRACE_SECONDS: Final = 30.0  # above the longest time-out of an attempt, before the worker is ended
DUMP_SECONDS: Final = 2.0  # from SIGABRT, which writes where it stands, to SIGKILL
STATE_SECONDS: Final = 5.0  # one question to `ps`, where there is no /proc
STOPPED: Final = frozenset("TtZX")  # states of a process that does nothing: stopped, traced, dead

logger = logging.getLogger("tidemill.worker")


def state_of(pid: int) -> str:
    """One letter for what a process does now, as `ps` has it; "" when nobody can say."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name before it may hold anything, spaces and parentheses too.
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        pass
    import subprocess  # where there is no /proc; it costs a megabyte

    try:
        asked = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], stdin=subprocess.DEVNULL, capture_output=True,
            timeout=STATE_SECONDS, check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.decode(errors="replace").strip()[:1]


def limit_of(stall_seconds: float, longest_seconds: float) -> float:
    """How long a worker may stand still: never shorter than a job of its own may take."""
    return max(stall_seconds, longest_seconds + GRACE_SECONDS)


class StandIn:
    """The process. `words` is what the worker gave it."""

    def __init__(self, words: dict[str, Any], pulse: Pulse, parent: int) -> None:
        self._words = words
        self._pulse = pulse
        self._parent = parent
        self._sink: Any = None
        self._read = b""
        self._beat = b""  # the worker's last one
        self._quiet = 0.0  # seconds since then, of ours
        self._sent_at = float("-inf")
        self._next_word = FIRST_WORD_SECONDS

    def run(self) -> None:
        """Until the worker has gone."""
        poll = select.poll()
        poll.register(0, select.POLLIN)
        looked_at = time.monotonic()
        while True:
            has_words = bool(poll.poll(POLL_SECONDS * 1000))
            if os.getppid() != self._parent or (has_words and not self._hear()):
                return
            now = time.monotonic()
            # Stopped or starved, this process knows nothing of the time between.
            self._quiet += min(now - looked_at, 2 * POLL_SECONDS)
            looked_at = now
            if self._beat and self._is_still(now):
                self._stand_in(now)

    def _hear(self) -> bool:
        """Take what the worker has written; False when it has closed the pipe."""
        got = os.read(0, READ_BYTES)
        *lines, self._read = (self._read + got).split(b"\n")
        whole = [line for line in lines if line.endswith(b"}")]
        if whole:
            self._beat = whole[-1]
            self._quiet = 0.0
            self._next_word = FIRST_WORD_SECONDS
        return bool(got)

    def _is_still(self, now: float) -> bool:
        return self._quiet > STILL_SECONDS and now - self._pulse.turned_at > STILL_SECONDS

    def _stand_in(self, now: float) -> None:
        if now - self._sent_at < BEAT_SECONDS:
            return
        turned_at, marks = self._pulse.turned_at, self._pulse.marks()
        if state_of(self._parent) in STOPPED:
            return
        if self._sink is None:
            self._open()
        try:
            value = self._stalled(marks)
        except ValueError:
            return  # half a line: the pipe had no more room
        # What follows is said in the worker's name, so it must be there and stand still up to here.
        if os.getppid() != self._parent or self._pulse.turned_at != turned_at:
            return
        self._sent_at = now
        self._sink.send(self._words["worker_id"].encode(), value)
        self._tell()

    def _stalled(self, marks: list[int]) -> bytes:
        beat = json.loads(self._beat)
        for room in beat["queues"].values():
            for kind in room["kinds"].values():
                kind["free"] = 0
        more = {"at": int(time.time() * 1000), "is_stalled": True, "begun": marks}
        return json.dumps(beat | more).encode()

    def _open(self) -> None:
        from tidemill.agents.logging import configure_logging
        from tidemill.agents.worker.beats import KafkaBeats

        words = self._words
        configure_logging("worker", words["log_format"], words["log_level"])
        client_id = f"{words['worker_id']}-stand-in"
        self._sink = KafkaBeats(words["kafka"], words["topic"], client_id)

    def _tell(self) -> None:
        limit = limit_of(self._words["stall_seconds"], self._pulse.longest_seconds)
        names = self._pulse.latest(self._words["types"])
        if self._quiet > limit:
            logger.critical(
                "worker %s (process %d) has stood still for %.0f s, longer than "
                "TIDEMILL_STALL_SECONDS and the time-outs of its jobs allow (%.0f s): it is "
                "ended, and its attempts are rescued. Handlers that began last: %s",
                self._words["worker_id"], self._parent, self._quiet, limit, names,
            )
            self._end_worker()
        if self._quiet < self._next_word:
            return
        self._next_word = NEXT_WORD_FACTOR * self._quiet
        logger.warning(
            "worker %s (process %d) has stood still for %.0f s: code of a handler holds the "
            "interpreter. It counts as alive and takes nothing; it is ended after %.0f s. "
            "Handlers that began last: %s. A handler with process=True would hold up nobody",
            self._words["worker_id"], self._parent, self._quiet, limit, names,
        )

    def _end_worker(self) -> NoReturn:
        for number in (signal.SIGABRT, signal.SIGKILL):
            if os.getppid() == self._parent:
                os.kill(self._parent, number)
            time.sleep(DUMP_SECONDS)
        sys.exit(0)


def main() -> None:
    """`argv[1]` are the words, `argv[2]` is the worker's process id."""
    words = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    StandIn(words, Pulse(words["pulse"]), int(sys.argv[2])).run()
