"""What is said of attempts that go on: that they began, and how far they are.

Owns these two words. Refuses to know when they are due and what ends an attempt.
"""

from __future__ import annotations

from collections.abc import Callable

from tidemill.agents import clocks
from tidemill.agents.worker import outcomes
from tidemill.agents.worker.attempts import Attempt, Permit, Settled
from tidemill.agents.worker.outcomes import Outcome
from tidemill.agents.worker.writer import OutcomeWriter


class Teller:
    """Says it through the writer of outcomes."""

    def __init__(self, writer: OutcomeWriter) -> None:
        self._writer = writer

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

    def _say(self, attempt: Attempt, word: Outcome, waits: Settled | None) -> None:
        """`waits` learns when the word is durable."""
        outcome = outcomes.encode(attempt.job, word, attempt.started_ms, 0)
        self._writer.add(attempt.pack.ledger_partition, outcome, waits)
