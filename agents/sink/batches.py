"""Which records of one partition make the next batch, and which batches one insert.

Owns the chunks that wait, and the rules by which a batch is cut. Refuses to know Kafka, ClickHouse
and the clock: `now` is an argument.

A batch is a run of records with none left out between its first and its last. Where it ends is free
the first time; a batch that was begun before, by whoever, ends where its intents say. An insert is
one batch, or batches of several partitions that go in together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from tidemill.agents.runtime.batches import RECORD_OVERHEAD_BYTES, size_of
from tidemill.agents.runtime.chunk import Chunk, Record

# Bytes of the values of one insert: some 30,000 events of the usual size.
BATCH_BYTES_MAX: Final = 16 * 1024 * 1024
# Partitions of one insert: their numbers stand in each one's note, whose length Kafka bounds.
INSERT_PARTITIONS_MAX: Final = 64
# Rows a second that are as good as new when they arrive: from so many on it is a burst.
BURST_ROWS: Final = 40_000
# A row that arrives within so many seconds of its writing is as good as new. What is read again, or
# late, is no burst.
FRESH_SECONDS: Final = 1.0
# How old the oldest row of a partition may become while a burst lasts.
BURST_SECONDS_MAX: Final = 5.0


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """When an insert is made: at whichever comes first. During a burst only its age counts."""

    rows_max: int
    seconds_max: float
    bytes_max: int = BATCH_BYTES_MAX
    burst_seconds_max: float = BURST_SECONDS_MAX


class BurstDetector:
    """How many new rows arrive: whether there is a burst, which the sink lets pass first.

    Nothing is learnt of a burst whose rows are left where they are (`hold`): it then lasts until a
    batch is due by its age (`let_go`). What comes behind that is no longer new.
    """

    def __init__(self, rows: int = BURST_ROWS) -> None:
        self._rows = rows
        self._arrived: deque[tuple[float, int]] = deque()
        self._total = 0
        self._is_held = False

    def hold(self) -> None:
        """No more rows are taken while the burst lasts."""
        self._is_held = True

    def let_go(self) -> None:
        """A batch was cut."""
        self._is_held = False

    def note(self, rows: int, age_seconds: float, now: float) -> None:
        """`rows` have arrived, so long after they were written."""
        # By a clock behind the writer's all would be new; what is not, must not wait.
        if -FRESH_SECONDS < age_seconds < FRESH_SECONDS:
            self._arrived.append((now, rows))
            self._total += rows

    def is_burst(self, now: float) -> bool:
        """Whether the last second brought that many."""
        while self._arrived and self._arrived[0][0] < now - 1.0:
            self._total -= self._arrived.popleft()[1]
        return self._is_held or self._total >= self._rows


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records of one partition, and the chunks that hold them."""

    topic: str
    partition: int
    records: Sequence[Record]
    chunks: Sequence[Chunk]

    @property
    def first(self) -> int:
        """Offset of its first record."""
        return self.records[0].offset

    @property
    def last(self) -> int:
        """Offset of its last record."""
        return self.records[-1].offset

    @property
    def token(self) -> str:
        """The same for the same records, however often they are inserted.

        The first record's timestamp tells a topic that was made again from the one before it.
        """
        first = self.records[0]
        return f"{self.topic}:{self.partition}:{first.offset}-{self.last}@{first.timestamp}"

    @property
    def is_stale(self) -> bool:
        """True once its partition was revoked: it comes again."""
        return any(chunk.is_stale for chunk in self.chunks)

    def ack(self) -> None:
        """Let its offsets be committed."""
        for chunk in self.chunks:
            if self.first <= chunk.first_offset and chunk.last_offset <= self.last:
                chunk.ack()
                continue
            for record in chunk.records:
                if self.first <= record.offset <= self.last:
                    chunk.ack_offset(record.offset)


@dataclass(frozen=True, slots=True)
class InsertIntent:
    """The intents of a batch: what is written down of it before its insert."""

    last: int
    #: Of the insert that it is part of.
    token: str
    #: All partitions of that insert.
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Insert:
    """Batches of different partitions that go in together, once for their token."""

    batches: Sequence[Batch]
    token: str
    partitions: tuple[int, ...]

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Insert:
        """A new one; it is not empty."""
        token = batches[0].token
        if len(batches) > 1:
            tokens = "|".join(batch.token for batch in batches)
            token += f"+{blake2b(tokens.encode(), digest_size=8).hexdigest()}"
        return cls(batches, token, tuple(batch.partition for batch in batches))

    @property
    def is_stale(self) -> bool:
        """True once all of its partitions were revoked: they come again.

        A rebalance takes all at once. A single one may lose its place in the log; then the rows of
        the others must go in, for they do not come again.
        """
        return all(batch.is_stale for batch in self.batches)

    def begun(self, batch: Batch) -> InsertIntent:
        """The intents of one of its batches."""
        return InsertIntent(batch.last, self.token, self.partitions)


@dataclass(slots=True)
class _Waiting:
    """A chunk, and from where on its records are in no batch yet."""

    chunk: Chunk
    start: int
    size_bytes: int
    arrived_at: float
    written_at: float

    @property
    def records(self) -> Sequence[Record]:
        return self.chunk.records[self.start :] if self.start else self.chunk.records


class PartitionInbox:
    """The chunks of one partition that are in no batch yet, in order."""

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self._waiting: deque[_Waiting] = deque()
        self.rows = 0
        self.size_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def first_offset(self) -> int:
        """Of what waits; there must be something."""
        waiting = self._waiting[0]
        return waiting.chunk.records[waiting.start].offset

    @property
    def waits_since(self) -> float:
        """When the oldest chunk arrived; there must be one."""
        return self._waiting[0].arrived_at

    def add(self, chunk: Chunk, now: float, age_seconds: float = 0.0) -> None:
        """Put `chunk` behind the others; it was written `age_seconds` before `now`."""
        written_at = now - max(0.0, age_seconds)
        self._waiting.append(_Waiting(chunk, 0, chunk.size_bytes, now, written_at))
        self.rows += len(chunk)
        self.size_bytes += chunk.size_bytes

    def drop_stale(self) -> None:
        """Forget what waits when it was revoked."""
        if self._waiting and self._waiting[0].chunk.is_stale:
            kept = [waiting for waiting in self._waiting if not waiting.chunk.is_stale]
            self._waiting = deque(kept)
            self.rows = sum(len(waiting.records) for waiting in kept)
            self.size_bytes = sum(waiting.size_bytes for waiting in kept)

    def due_at(self, limits: BatchLimits, *, is_burst: bool) -> float:
        """When what waits is old enough for a batch; there must be something."""
        if is_burst:
            longest = max(limits.seconds_max, limits.burst_seconds_max)
            return self._waiting[0].written_at + longest
        return self.waits_since + limits.seconds_max

    def holds(self, last: int) -> bool:
        """Whether the record at offset `last` has arrived, or one behind it."""
        return bool(self._waiting) and self._waiting[-1].chunk.last_offset >= last

    def cut(self, rows_max: int, bytes_max: int) -> Batch:
        """A new batch: whole chunks as far as there is room, at least one record."""
        room, bytes_left = rows_max, bytes_max
        records: list[Record] = []
        chunks: list[Chunk] = []
        while self._waiting and room > 0 and bytes_left > 0:
            waiting = self._waiting[0]
            found = waiting.records
            if len(found) > room or waiting.size_bytes > bytes_left:
                if not records:
                    self._take(waiting, _within(found, room, bytes_left), records, chunks)
                break
            self._take(waiting, found, records, chunks)
            room -= len(found)
            bytes_left -= waiting.size_bytes
        return Batch(self.topic, self.partition, records, chunks)

    def cut_at(self, last: int) -> Batch:
        """The batch that ends with the record at `last`, as it was cut before."""
        records: list[Record] = []
        chunks: list[Chunk] = []
        while self._waiting:
            waiting = self._waiting[0]
            found = waiting.records
            if found[0].offset > last:
                break
            if found[-1].offset > last:
                found = [record for record in found if record.offset <= last]
            self._take(waiting, found, records, chunks)
        return Batch(self.topic, self.partition, records, chunks)

    def _take(
        self,
        waiting: _Waiting,
        found: Sequence[Record],
        records: list[Record],
        chunks: list[Chunk],
    ) -> None:
        records.extend(found)
        chunks.append(waiting.chunk)
        self.rows -= len(found)
        waiting.start += len(found)
        if waiting.start == len(waiting.chunk.records):
            self.size_bytes -= waiting.size_bytes
            self._waiting.popleft()
            return
        taken = size_of(found)
        waiting.size_bytes -= taken
        self.size_bytes -= taken


def are_due(
    inboxes: Sequence[PartitionInbox], limits: BatchLimits, now: float, *, is_burst: bool
) -> bool:
    """Whether what waits in all of them should make an insert now; none may be empty."""
    if not inboxes:
        return False
    if now >= min(inbox.due_at(limits, is_burst=is_burst) for inbox in inboxes):
        return True
    return not is_burst and (
        sum(inbox.rows for inbox in inboxes) >= limits.rows_max
        or sum(inbox.size_bytes for inbox in inboxes) >= limits.bytes_max
    )


def _within(records: Sequence[Record], rows_max: int, bytes_max: int) -> Sequence[Record]:
    """The first records that fit, at least one."""
    size = 0
    for index, record in enumerate(records[:rows_max]):
        size += RECORD_OVERHEAD_BYTES + len(record.value or b"")
        if size > bytes_max:
            return records[: max(index, 1)]
    return records[:rows_max]
