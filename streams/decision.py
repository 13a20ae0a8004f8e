"""What a decision is: the events that a command causes, or why it causes none.

Owns the two answers of `lifecycle.decide`. Refuses to know how they are reached.
"""

from __future__ import annotations

from schemas.event_writer import Event
from schemas.words import EventKind, Reason
from streams.job import Job


class Accepted:
    """The events that the command causes, in order, and the job after them."""

    __slots__ = ("events", "job")

    def __init__(self, events: list[Event], job: Job) -> None:
        self.events = events
        self.job = job


class Rejected:
    """The command changes nothing. `audit` is how it is recorded, None when it is not."""

    __slots__ = ("audit", "reason")

    def __init__(self, reason: Reason, audit: EventKind | None) -> None:
        self.reason = reason
        self.audit = audit


Decision = Accepted | Rejected
