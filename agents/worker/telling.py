"""What is said of attempts that go on: that they began, how far they are, and what handlers keep.

Owns these words. Refuses to know when they are due and what ends an attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

from tidemill.agents import clocks
from tidemill.agents.worker import outcomes
from tidemill.agents.worker.attempts import Attempt, Permit, Settled
from tidemill.agents.worker.outcomes import Outcome
from tidemill.agents.worker.writer import OutcomeWriter


class _Kept:
    """A word of a handler that waits to be durable."""

    def __init__(self, done: Future[None]) -> None:
        self._done = done

    def settle(self) -> None:
        if not self._done.done():  # else its handler was cancelled
            self._done.set_result(None)


class Teller:
    """Says it through the writer of outcomes."""

    def __init__(self, writer: OutcomeWriter, loop: asyncio.AbstractEventLoop) -> None:
        self._writer = writer
        self._loop = loop

    def start(self, attempt: Attempt) -> None:
        """It runs for long enough to be told of, unless that was done."""
        if attempt.has_told_start or attempt.is_ended:
            return
        attempt.has_told_start = True
        self._say(attempt, {"kind": "started"}, attempt.pack)

    def start_first(self, attempt: Attempt, go: Callable[[], None]) -> None:
        """It begins once the word is durable: `go` is called then."""
        attempt.has_told_start = True
        attempt.started_ms = clocks.wall_ms()
        self._say(attempt, {"kind": "started"}, Permit(attempt.pack, go))

    def progress(self, attempt: Attempt, now: float) -> None:
        """The latest that its handler has said, unless it says the same again."""
        told, attempt.progress = attempt.progress, None
        if told == attempt.progress_told:
            return
        self.start(attempt)
        attempt.progress_told = told
        attempt.progressed_at = now
        self._say(attempt, {"kind": "progressed", "progress": told}, None)

    def keep(self, attempt: Attempt, word: Outcome) -> Future[None]:
        """Tell what a handler says, such as the result of a step; done once it is durable. In the
        order of the calls, from any thread."""
        done: Future[None] = Future()
        self._loop.call_soon_threadsafe(self._tell_kept, attempt, word, done)
        return done

    def _tell_kept(self, attempt: Attempt, word: Outcome, done: Future[None]) -> None:
        if done.cancelled():
            return
        if attempt.is_ended:
            done.set_exception(RuntimeError(f"{word['name']!r}: its attempt is over"))
            return
        self.start(attempt)
        self._say(attempt, word, _Kept(done))

    def _say(self, attempt: Attempt, word: Outcome, waits: Settled | None) -> None:
        """`waits` learns when the word is durable."""
        outcome = outcomes.encode(attempt.job, word, attempt.started_ms, 0)
        self._writer.add(attempt.pack.ledger_partition, outcome, waits)
