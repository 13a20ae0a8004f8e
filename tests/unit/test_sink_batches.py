"""Batches: where they end, that intents hold, and which offsets are acked."""

from __future__ import annotations

from tests.unit.test_sink_records import Fake
from tidemill.agents.runtime.chunk import Chunk
from tidemill.agents.runtime.tracker import OffsetTracker
from tidemill.agents.sink.batches import (
    Batch,
    BatchLimits,
    BurstDetector,
    Insert,
    InsertIntent,
    PartitionInbox,
    are_due,
)
from tidemill.agents.sink.notes import begun_of, mark_of, note_of, place_note

LIMITS = BatchLimits(rows_max=10, seconds_max=1.0, bytes_max=10_000)


class Partition:
    """Chunks of one partition over the runtime's own tracker."""

    def __init__(self, number: int = 2) -> None:
        self.number = number
        self.tracker = OffsetTracker()
        self.inbox = PartitionInbox("events", number)

    def add(
        self, *offsets: int, now: float = 0.0, size: int = 10, age_seconds: float = 0.0
    ) -> None:
        self.inbox.add(self.chunk(*offsets, size=size), now, age_seconds)

    def chunk(self, *offsets: int, size: int = 10, timestamp: int = 77) -> Chunk:
        records = [Fake(offset, b"x" * size, timestamp=timestamp) for offset in offsets]
        run = self.tracker.deliver(records, len(records) * (64 + size))
        return Chunk("events", self.number, records, run, lambda: None)

    def is_due(self, now: float, *, is_burst: bool = False) -> bool:
        return are_due([self.inbox], LIMITS, now, is_burst=is_burst)

    def cut(self) -> Batch:
        return self.inbox.cut(LIMITS.rows_max, LIMITS.bytes_max)


def test_a_batch_is_due_by_rows_bytes_or_age() -> None:
    assert not are_due([], LIMITS, 100.0, is_burst=False)
    part = Partition()
    part.add(*range(5), now=5.0)
    assert not part.is_due(5.9)
    assert part.is_due(6.0)
    part.add(*range(5, 10), now=5.5)
    assert part.is_due(5.5)
    large = Partition()
    large.add(0, size=10_000)
    assert large.is_due(0.0)


def test_during_a_burst_only_age_counts() -> None:
    part = Partition()
    part.add(*range(50), now=5.0, age_seconds=0.5)
    assert part.is_due(5.0)
    assert not part.is_due(9.4, is_burst=True)
    assert part.is_due(9.5, is_burst=True)


def test_what_was_written_long_ago_waits_for_no_burst() -> None:
    part = Partition()
    part.add(0, now=5.0, age_seconds=60.0)
    assert part.is_due(5.0, is_burst=True)
    ahead = Partition()  # by a clock that is ahead of ours
    ahead.add(0, now=5.0, age_seconds=-60.0)
    assert ahead.is_due(10.0, is_burst=True)


def test_a_burst_is_many_new_rows_within_a_second() -> None:
    flow = BurstDetector(rows=100)
    flow.note(99, 0.0, 1.0)
    assert not flow.is_burst(1.0)
    flow.note(1, 0.9, 1.5)
    assert flow.is_burst(1.9)
    assert not flow.is_burst(2.1)
    flow.note(1_000, 1.1, 2.1)  # read late: it makes no burst
    flow.note(1_000, -1.1, 2.1)  # by a clock behind the writer's: who knows
    assert not flow.is_burst(2.1)


def test_a_burst_that_is_held_lasts_until_a_batch_is_cut() -> None:
    flow = BurstDetector(rows=100)
    flow.note(100, 0.0, 1.0)
    flow.hold()
    assert flow.is_burst(60.0)
    flow.let_go()
    assert not flow.is_burst(60.0)


def test_whole_chunks_go_in_while_they_fit() -> None:
    part = Partition()
    part.add(0, 1, 2, 3)
    part.add(5, 6, 9)
    part.add(*range(10, 15))
    batch = part.cut()
    assert [record.offset for record in batch.records] == [0, 1, 2, 3, 5, 6, 9]
    assert part.inbox.rows == 5
    assert batch.token == "events:2:0-9@77"


def test_a_chunk_that_is_too_long_is_divided() -> None:
    part = Partition()
    part.add(*range(25))
    spans = []
    for _ in range(3):
        batch = part.cut()
        spans.append((batch.first, batch.last))
        batch.ack()
    assert spans == [(0, 9), (10, 19), (20, 24)]
    assert not part.inbox
    assert (part.inbox.rows, part.inbox.size_bytes) == (0, 0)
    assert part.tracker.committable() == 25


def test_a_record_larger_than_a_batch_makes_one_alone() -> None:
    part = Partition()
    part.add(0, 1, size=50_000)
    assert len(part.cut().records) == 1
    assert len(part.cut().records) == 1
    assert part.inbox.size_bytes == 0


def test_intents_hold_whatever_the_chunks_and_limits_are() -> None:
    part = Partition()
    part.add(3, 4, 7)
    assert not part.inbox.holds(23)
    part.add(*range(10, 30))
    assert part.inbox.holds(23)
    batch = part.inbox.cut_at(23)
    assert (batch.first, batch.last, len(batch.records)) == (3, 23, 17)
    batch.ack()
    assert part.tracker.committable() == 24
    rest = part.cut()
    assert (rest.first, rest.last) == (24, 29)
    assert part.inbox.size_bytes == 0


def test_acks_of_a_divided_chunk_do_not_reach_past_the_batch() -> None:
    part = Partition()
    part.add(*range(12))
    first = part.cut()
    second = part.cut()
    second.ack()
    assert part.tracker.committable() is None
    first.ack()
    assert part.tracker.committable() == 12


def test_what_was_revoked_is_forgotten() -> None:
    part = Partition()
    part.add(*range(4))
    batch = part.cut()
    part.add(*range(4, 8))
    part.tracker.clear()
    part.inbox.drop_stale()
    assert batch.is_stale
    assert not part.inbox
    assert (part.inbox.rows, part.inbox.size_bytes) == (0, 0)
    part.add(*range(4, 6))
    part.inbox.drop_stale()
    assert part.inbox.rows == 2
    assert part.inbox.first_offset == 4


def test_what_waits_together_is_due_together() -> None:
    parts = [Partition(0), Partition(1)]
    parts[0].add(*range(5), now=5.0)
    parts[1].add(*range(4), now=5.5)
    inboxes = [part.inbox for part in parts]
    assert not are_due(inboxes, LIMITS, 5.9, is_burst=False)
    assert are_due(inboxes, LIMITS, 6.0, is_burst=False)
    parts[1].add(4, now=5.5)
    assert are_due(inboxes, LIMITS, 5.5, is_burst=False)
    assert not are_due(inboxes, LIMITS, 5.5, is_burst=True)


def test_the_token_of_an_insert_tells_its_batches() -> None:
    def batches(*lasts: int) -> list[Batch]:
        parts = [Partition(number) for number in range(len(lasts))]
        for part, last in zip(parts, lasts, strict=True):
            part.add(*range(last + 1))
        return [part.cut() for part in parts]

    alone = Insert.of(batches(4))
    assert (alone.token, alone.partitions) == ("events:0:0-4@77", (0,))
    tokens = {Insert.of(batches(*lasts)).token for lasts in ((4,), (4, 4), (4, 5), (4, 4, 4))}
    assert len(tokens) == 4
    assert Insert.of(batches(4, 5)).token == Insert.of(batches(4, 5)).token
    assert Insert.of(batches(4, 5)).partitions == (0, 1)


def test_notes_are_read_as_they_were_written() -> None:
    for begun in (
        InsertIntent(0, "events:2:0-0@77", (2,)),
        InsertIntent(2**63, "events:2:0-9@77+0a", tuple(range(64))),
    ):
        note = note_of(begun, "0a1f")
        assert begun_of(note) == begun
        assert mark_of(note) == mark_of(place_note("0a1f")) == "0a1f"
        assert begun_of(place_note("0a1f")) is None
        assert len(note) < 1_000
        older = f"tidemill-sink/2 {note.partition('store=0a1f ')[2]}"
        assert (begun_of(older), mark_of(older)) == (begun, None)
    for foreign in (
        None, "", "last=3", "tidemill-sink/1 last=3", "tidemill-sink/2 last=-1 of=0 insert=x",
        "tidemill-sink/2 last=1 of= insert=x", "tidemill-sink/2 last=1 of=0 insert=",
    ):
        assert begun_of(foreign) is None
