"""Notes beside committed offsets: what the next owner may take for new."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import IllegalGenerationError
from faust.types import TP

from tidemill.agents.runtime.handover import LET_GO, UNKNOWN_OFFSET, Handover, Handovers
from tidemill.agents.runtime.tracker import OffsetTracker

HERE = TP("jobs.ready.default", 1)


class Coordinator:
    """A group that keeps offsets with notes."""

    def __init__(self, offset: int, note: str) -> None:
        self.kept = SimpleNamespace(offset=offset, metadata=note)
        self.generation = 4
        self._commit_lock = asyncio.Lock()
        self.refuses = False

    async def fetch_committed_offsets(self, wanted: Any) -> dict[TP, Any]:
        return {HERE: self.kept}

    async def ensure_coordinator_known(self) -> None:
        pass

    async def _do_commit_offsets(self, _: Any, offsets: Any) -> None:
        if self.refuses:
            raise IllegalGenerationError("another generation")
        ((_, found),) = offsets.items()
        self.kept = SimpleNamespace(offset=found.offset, metadata=found.metadata)


async def handed_over(
    coordinator: Coordinator, *, start: int = 0, end: int = 9
) -> tuple[int, Handover]:
    """Where a worker goes on and what it knows, once it has taken the partition."""
    kafka = SimpleNamespace(_coordinator=coordinator)
    found = Handovers("w-2")
    places = await found.find(kafka, [HERE], starts={HERE: start}, ends={HERE: end})
    await found.take(kafka, 4)
    return places.get(HERE, start), found.of(*HERE)


async def test_what_was_let_go_in_order_is_new_and_gets_our_name_before_it_is_read() -> None:
    coordinator = Coordinator(7, LET_GO)
    assert await handed_over(coordinator) == (7, Handover())
    assert coordinator.kept.metadata == "held:w-2"
    # Whoever comes after us, without a word of ours, doubts all of it and knows whose it was.
    assert await handed_over(coordinator) == (7, Handover(9, "w-2"))


@pytest.mark.parametrize(
    ("offset", "note", "former"),
    [
        (7, "held:w-1", "w-1"), (7, "", None), (UNKNOWN_OFFSET, "", None), (7, "let", None),
        (20, LET_GO, None),  # of a log that was made again
    ],
)
async def test_anything_else_is_doubted_up_to_the_end_that_it_had(
    offset: int, note: str, former: str | None
) -> None:
    coordinator = Coordinator(offset, note)
    _, found = await handed_over(coordinator)
    assert found == Handover(9, former)
    assert coordinator.kept.metadata == note


async def test_a_partition_that_nobody_has_read_gets_our_name_too() -> None:
    coordinator = Coordinator(UNKNOWN_OFFSET, "")
    assert await handed_over(coordinator, end=0) == (0, Handover())
    assert await handed_over(coordinator, end=3) == (0, Handover(3, "w-2"))


async def test_without_our_name_there_nothing_is_taken_for_new() -> None:
    coordinator = Coordinator(7, LET_GO)
    coordinator.refuses = True
    assert await handed_over(coordinator) == (7, Handover(9))


@dataclass(frozen=True)
class Record:
    """A record at an offset."""

    offset: int


@pytest.mark.parametrize(
    ("acked", "has_gap"),
    [((), False), ((1,), False), ((1, 2), False), ((2,), True), ((1, 2, 4), False),
     ((1, 2, 6), True), ((1, 2, 4, 6, 7), False), ((4,), True)],
)
def test_a_gap_is_an_ack_behind_something_that_is_not_acked(
    acked: tuple[int, ...], has_gap: bool
) -> None:
    tracker = OffsetTracker()
    runs = [
        tracker.deliver([Record(1), Record(2)]), tracker.deliver([Record(4)]),
        tracker.deliver([Record(6), Record(7)]),
    ]
    for offset in acked:
        run = next(r for r in runs if r.records[0].offset <= offset <= r.records[-1].offset)
        run.ack_offset(offset)
    tracker.committable()
    assert tracker.has_gap is has_gap
