"""An imitation of what the ledger writes to `jobs.events`: for the sink's benchmark and its tests.

Owns seeded lives of jobs (quick ones, late starters, retries, failures, skips) as `Event`s, written
with the ledger's own writer. Refuses to know who reads them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final

from tidemill.schemas.event_writer import Event, EventWriter
from tidemill.schemas.instants import InstantCache
from tidemill.schemas.words import EventKind, State

BEGIN_MS: Final = 1_764_000_000_000  # 2025-11-24T16:00:00Z; an hour's whole minute
JOBS_PER_MS: Final = 20  # that begin in the same millisecond, as in a drain
GROUP_JOBS: Final = 200  # jobs whose outcomes come back together
OUTCOMES_PER_RECORD: Final = 50
TYPES: Final = (("bench.noop", "default"), ("email.send", "mail"), ("report.render", "reports"))


class Life:
    """One job's events, in order."""

    def __init__(self, user_id: str, job_id: str, number: int, partition: int) -> None:
        self._type, self._queue = TYPES[number % len(TYPES)]
        self._user_id, self._job_id = user_id, job_id
        self._begun = BEGIN_MS + number // JOBS_PER_MS
        self._number, self._partition = number, partition
        self._sequence = self._attempt = 0
        self._state: State | None = None

    def tell(self, kind: EventKind, state: State, after_ms: int, **facts: Any) -> Event:
        """The next event, `after_ms` after the request."""
        self._sequence += 1
        self._attempt += kind is EventKind.DISPATCHED
        before, self._state = self._state, state
        return Event(
            kind, self._user_id, self._job_id, self._type, self._queue, "medium", self._begun, 1,
            self._sequence, self._attempt, self._attempt, self._begun + after_ms, before, state,
            **facts,
        )

    def request(self) -> Iterator[Event]:
        """Accepted and dispatched; every 50th is skipped by a limit instead."""
        cause = ("jobs.requested", self._partition, self._number)
        data = {
            "payload": {"n": self._number, "text": "hello there, how are you today?"},
            "max_attempts": 3, "timeout_ms": 30_000, "source": "benchmark",
        }
        yield self.tell(EventKind.REQUESTED, State.PENDING, 0, cause=cause, data=data)
        if self._number % 50 == 7:
            yield self.tell(
                EventKind.SKIPPED, State.SKIPPED, 0, cause=cause, reason="rate_limited"
            )
        else:
            yield self.tell(EventKind.DISPATCHED, State.DISPATCHED, 3)

    def outcome(self) -> Iterator[Event]:
        """Succeeded; every 40th only after a retry, every 60th never."""
        if self._number % 50 == 7:
            return
        cause = ("jobs.outcomes", self._partition, self._number // OUTCOMES_PER_RECORD)
        facts: dict[str, Any] = {
            "worker": ("dev-worker-0", 1), "cause": cause, "wait_ms": 12, "run_ms": 2,
        }
        error = {"code": "SMTP_421", "message": "421 4.7.0 try again later", "retryable": True}
        if self._number % 60 == 3:
            yield self.tell(
                EventKind.ATTEMPT_FAILED, State.RUNNING, 20, error=error, **facts
            )
            yield self.tell(
                EventKind.FAILED, State.FAILED, 20, error=error, reason="not_retryable", **facts
            )
            return
        if self._number % 40 == 9:
            yield self.tell(EventKind.ATTEMPT_FAILED, State.RUNNING, 20, error=error, **facts)
            yield self.tell(
                EventKind.RETRY_SCHEDULED, State.RETRYING, 20, error=error,
                due_at=self._begun + 2_020, cause=cause,
            )
            yield self.tell(EventKind.DISPATCHED, State.DISPATCHED, 2_020)
        data = {"result": {"ok": True, "n": self._number}}
        yield self.tell(EventKind.ATTEMPT_SUCCEEDED, State.RUNNING, 2_040, **facts)
        yield self.tell(EventKind.SUCCEEDED, State.SUCCEEDED, 2_040, data=data, **facts)


def make_events(
    jobs: int, *, users: int = 500, partitions: int = 4, seed: int = 1
) -> Iterator[tuple[int, Event, bytes]]:
    """(partition, event, the record's value) of `jobs` lives, in the order of the log."""
    rng = random.Random(seed)
    writer = EventWriter(InstantCache())
    waiting: list[tuple[int, Life]] = []
    for number in range(jobs):
        user = rng.randrange(users)
        partition, job_id = user % partitions, f"job-{rng.getrandbits(64):016x}"
        life = Life(f"user-{user:04d}", job_id, number, partition)
        waiting.append((partition, life))
        for event in life.request():
            yield partition, event, writer.write(event)
        if len(waiting) == GROUP_JOBS or number == jobs - 1:
            for home, begun in waiting:
                for event in begun.outcome():
                    yield home, event, writer.write(event)
            waiting.clear()
