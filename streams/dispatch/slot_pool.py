"""Slots of one kind in one queue: who waits for them, who holds them, and how many may.

Owns the names of such pools. Refuses to know whose turn it is (`ready_queue`) and how many slots
may be in use (`in_flight_limit`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tidemill.streams.dispatch.in_flight_limit import InFlightLimit
from tidemill.streams.dispatch.ready_queue import ReadyQueue
from tidemill.streams.job import JobKey


class SlotPoolName(NamedTuple):
    """Slots that jobs wait for. Handlers of each kind have slots of their own: a queue has a pool
    for each kind, so that slow processes do not keep quick coroutines waiting. What only some of
    its workers run has other slots than the rest, so it has a pool of its own too; and so has a
    type that none of them runs, which keeps nobody else waiting."""

    queue: str
    runs_as: str  # async, thread, process
    group: str = ""  # a name of the types that the same workers run; "" of what all of them run


Groups = Mapping[str, str]
"""What living workers of one queue have told: each of their types, and the `SlotPoolName.group`
that it is in. A type that is not in it is run by none of them, and is a group of its own name."""


class SlotPool:
    """Who waits for those slots, who holds them, and how many may."""

    __slots__ = ("in_flight", "limit", "waiting")

    def __init__(self) -> None:
        self.waiting = ReadyQueue()
        self.in_flight: dict[JobKey, None] = {}
        self.limit = InFlightLimit()
