"""What waits in all partitions of this process, and which of it goes in next.

Owns the inboxes, what was begun in each partition, the burst that is let pass, and the choice of
the next insert. Refuses to know Kafka and ClickHouse: what was begun is told, the clock is an
argument.

Over an engine that only this process has, one insert takes what waits in every partition: an insert
has its price whatever is in it. Over a server an insert is of one partition, since the partitions
of an insert must stay together until it is known to be in, and there other sinks share them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tidemill.agents.runtime.chunk import Chunk
from tidemill.agents.sink.batches import (
    INSERT_PARTITIONS_MAX,
    Batch,
    BatchLimits,
    BurstDetector,
    Insert,
    InsertIntent,
    PartitionInbox,
    are_due,
)

logger = logging.getLogger("tidemill.sink")

# All of what waits in this process; a partition has a bound of its own (`main`).
WAITING_BYTES_MAX: Final = 128 * 1024 * 1024
# Rows that wait here during a burst; reading them costs as well, so the others stay in the log.
HELD_ROWS: Final = 20_000
# The shortest time between two looks at what waits.
LOOK_SECONDS_MIN: Final = 0.01
# Between two looks whether a burst is over.
BURST_LOOK_SECONDS: Final = 0.25
# Between two looks whether the records of a batch that was begun are gone from the log.
BEGUN_LOOK_SECONDS: Final = 1.0
# An insert that was begun lacks something for so long: then, and each time again, it is said.
STUCK_SECONDS: Final = 10.0
# Records that one partition may have now when there is no bound to respect.
CREDIT_RECORDS: Final = 1_000_000


@dataclass(slots=True)
class _Stuck:
    """Since when an insert that was begun has lacked something; says so now and then."""

    since: float | None = None
    said_at: float = 0.0

    def note(self, lacks: str, now: float) -> None:
        """What it lacks now; nothing when it is ""."""
        if not lacks:
            self.since = None
        elif self.since is None:
            self.since = self.said_at = now
        elif now - self.said_at >= STUCK_SECONDS:
            self.said_at = now
            logger.warning("since %.0f s %s", now - self.since, lacks)


class Inboxes:
    """The partitions of one topic; `passed_to` tells how far one was read and acked, or None."""

    def __init__(
        self,
        limits: BatchLimits,
        *,
        is_joint: bool,
        passed_to: Callable[[int], int | None],
    ) -> None:
        self._limits = limits
        self._is_joint = is_joint
        self._passed_to = passed_to
        self._bursts = BurstDetector()
        self._inboxes: dict[int, PartitionInbox] = {}
        # Partition -> the batch that was begun there, for all partitions that this process has.
        self._begun: dict[int, InsertIntent | None] = {}
        self._is_known = False
        # Partitions of the insert that is on its way.
        self._under_way: frozenset[int] = frozenset()
        self._stuck = _Stuck()

    # -- in ------------------------------------------------------------------------------------

    def add(self, chunk: Chunk, now: float, epoch_now: float) -> None:
        """Take a chunk that arrived."""
        inbox = self._inboxes.get(chunk.partition)
        if inbox is None:
            inbox = PartitionInbox(chunk.topic, chunk.partition)
            self._inboxes[chunk.partition] = inbox
        inbox.add(chunk, now, epoch_now - chunk.records[0].timestamp / 1000)
        self._bursts.note(len(chunk), epoch_now - chunk.records[-1].timestamp / 1000, now)

    def credit(self, partition: int, now: float) -> int:
        """How many more records of a partition may come now."""
        begun = self._waiting_again(partition)
        if begun is not None:
            # All of it must come, or it could never be inserted; and nothing behind it before.
            return 0 if self._holds(partition, begun.last) else CREDIT_RECORDS
        return 0 if self._has_enough(now) else CREDIT_RECORDS

    def _holds(self, partition: int, last: int) -> bool:
        """Whether the record at offset `last` of a partition has arrived, or one behind it."""
        inbox = self._inboxes.get(partition)
        return inbox is not None and inbox.holds(last)

    def _waiting_again(self, partition: int) -> InsertIntent | None:
        """The batch that was begun there and waits to be made again."""
        return None if partition in self._under_way else self._begun.get(partition)

    def _has_enough(self, now: float) -> bool:
        """Whether what comes next is better left in the log for now.

        What waits to be made again does not count: it may wait for long, and others go on.
        """
        inboxes = [
            inbox for inbox in self._inboxes.values()
            if self._waiting_again(inbox.partition) is None
        ]
        if sum(inbox.size_bytes for inbox in inboxes) >= WAITING_BYTES_MAX:
            return True
        if sum(inbox.rows for inbox in inboxes) < HELD_ROWS or not self._bursts.is_burst(now):
            return False
        self._bursts.hold()
        return True

    # -- what was begun ------------------------------------------------------------------------

    @property
    def is_known(self) -> bool:
        """Whether it was told, since the last rebalance, what was begun."""
        return self._is_known

    def is_settled(self, partition: int) -> bool:
        """Whether nothing of a partition waits, is on its way or was begun."""
        return (
            self._is_known
            and partition in self._begun
            and self._begun[partition] is None
            and partition not in self._under_way
            and not self._inboxes.get(partition)
        )

    def forget(self) -> None:
        """A rebalance: what is begun must be told again, and what was revoked comes again."""
        self._begun = {}
        self._is_known = False
        self._bursts.let_go()
        for inbox in self._inboxes.values():
            inbox.drop_stale()

    def know(self, begun: Mapping[int, InsertIntent | None]) -> None:
        """What was begun in every partition of this process, by whoever."""
        self._begun = {}
        for partition, found in begun.items():
            # Only an engine of its own takes partitions together. What it began with others is in
            # its folder or nowhere, so over a server each of them is an insert of its own.
            if found is not None and not self._is_joint and found.partitions != (partition,):
                found = replace(found, token=f"{found.token}/{partition}", partitions=(partition,))
            self._begun[partition] = found
        self._is_known = True

    def begin(self, insert: Insert) -> None:
        """The intents of its batches are written down."""
        self._under_way = frozenset(insert.partitions)
        for batch in insert.batches:
            self._begun[batch.partition] = insert.begun(batch)

    def finish(self, insert: Insert) -> None:
        """It is in: its offsets may be committed."""
        self._under_way = frozenset()
        for batch in insert.batches:
            if not batch.is_stale:
                self._begun[batch.partition] = None
                batch.ack()

    # -- out -----------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not any(self._inboxes.values())

    def pause_seconds(self, now: float) -> float | None:
        """Until something may be due; None when only an arrival helps."""
        waiting = [inbox for inbox in self._inboxes.values() if inbox]
        is_burst = self._bursts.is_burst(now)
        due = [
            inbox.due_at(self._limits, is_burst=is_burst)
            for inbox in waiting if self._begun.get(inbox.partition) is None
        ]
        if len(due) < len(waiting):
            due.append(now + BEGUN_LOOK_SECONDS)
        if not due:
            return None
        # A burst may end unseen by any arrival. What is due was not when it was looked at.
        longest = BURST_LOOK_SECONDS if is_burst else self._limits.seconds_max
        return max(LOOK_SECONDS_MIN, min(min(due) - now, longest))

    def next_insert(self, now: float) -> Insert | None:
        """What was begun before, else what is due, that which has waited longest first.

        The insert before it is over, in whatever way.
        """
        self._under_way = frozenset()
        for inbox in self._inboxes.values():
            inbox.drop_stale()
        for partition, begun in self._begun.items():
            if begun is not None and self._is_past(partition, begun):
                self._begun[partition] = None
        waiting = [inbox for inbox in self._inboxes.values() if inbox]
        if any(inbox.partition not in self._begun for inbox in waiting):
            self._is_known = False
            return None
        waiting.sort(key=lambda inbox: inbox.waits_since)
        lacks = ""
        for inbox in waiting:
            begun = self._begun[inbox.partition]
            if begun is None:
                continue
            lacks = self._lacks(begun)
            if not lacks:
                return self._again(begun)
        self._stuck.note(lacks, now)
        return self._new([x for x in waiting if self._begun[x.partition] is None], now)

    def _is_past(self, partition: int, begun: InsertIntent) -> bool:
        """Whether reading is past a batch, which then never comes again: it was inserted whole and
        only the commit behind it was lost, or the log no longer has it."""
        inbox = self._inboxes.get(partition)
        at = inbox.first_offset if inbox else self._passed_to(partition)
        return at is not None and at > begun.last

    def _parts(self, begun: InsertIntent) -> dict[int, int]:
        """Partition -> last offset of its batch, for the parts that must be made again.

        An insert is made only after all of its notes were written, and a note goes only when the
        insert is in or the log no longer has that part. So where one has gone, the token tells
        ClickHouse whether the others are in.
        """
        parts: dict[int, int] = {}
        for partition in begun.partitions:
            found = self._begun[partition]
            if found is not None and found.token == begun.token:
                parts[partition] = found.last
        return parts

    def _lacks(self, begun: InsertIntent) -> str:
        """What an insert that was begun waits for; "" when it can be made again."""
        missing = sorted(set(begun.partitions) - self._begun.keys())
        if missing:
            return (
                f"{begun.token} waits for partitions {missing}, which another sink has; a folder "
                "has one sink, end the other one"
            )
        for partition, last in self._parts(begun).items():
            if not self._holds(partition, last):
                return f"{begun.token} waits for partition {partition} up to offset {last}"
        return ""

    def _again(self, begun: InsertIntent) -> Insert:
        logger.info("making the insert %s again", begun.token)
        cut = [self._inboxes[part].cut_at(last) for part, last in self._parts(begun).items()]
        return Insert(cut, begun.token, begun.partitions)

    def _new(self, waiting: Sequence[PartitionInbox], now: float) -> Insert | None:
        is_burst = self._bursts.is_burst(now)
        groups = [waiting] if self._is_joint else [[inbox] for inbox in waiting]
        for group in groups:
            if are_due(group, self._limits, now, is_burst=is_burst):
                self._bursts.let_go()
                return Insert.of(self._cut(group))
        return None

    def _cut(self, inboxes: Sequence[PartitionInbox]) -> list[Batch]:
        rows, size_bytes = self._limits.rows_max, self._limits.bytes_max
        batches: list[Batch] = []
        for inbox in inboxes[:INSERT_PARTITIONS_MAX]:
            waited_bytes = inbox.size_bytes
            batch = inbox.cut(rows, size_bytes)
            batches.append(batch)
            rows -= len(batch.records)
            size_bytes -= waited_bytes - inbox.size_bytes
            if rows <= 0 or size_bytes <= 0:
                break
        return batches
