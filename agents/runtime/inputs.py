"""How one input topic is read: its rank, its bounds, its demand, and one partition of it.

Owns the defaults of reading and the count of what is out; refuses to know which topics there are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from faust.types import TP

from tidemill.agents import exit_codes
from tidemill.agents.runtime.batches import PartitionBuffer, size_of
from tidemill.agents.runtime.chunk import Chunk
from tidemill.agents.runtime.failstop import fail_stop
from tidemill.agents.runtime.tracker import OffsetTracker

logger = logging.getLogger("tidemill.runtime")

# Records of one chunk: enough to make the cost of a hand-over vanish, little enough that deciding
# on one (some 50 us a record) does not hold the loop for longer than a heartbeat can wait.
CHUNK_RECORDS_MAX = 500
# Delivered and unacked records of one partition: two full group commits and some more.
UNACKED_RECORDS_MAX = 8_000
# The same in bytes, for partitions of large payloads.
UNACKED_BYTES_MAX = 32 * 1024 * 1024
# Fetched bytes of one partition, as they are in the log, that wait to be handed out.
PREFETCH_BYTES_MAX = 256 * 1024


@dataclass(frozen=True, slots=True)
class Gap:
    """Reading must go on at `wanted`, and the log holds `start` to `end` (the next offset)."""

    topic: str
    partition: int
    wanted: int
    start: int
    end: int

    @property
    def is_there(self) -> bool:
        return not self.start <= self.wanted <= self.end

    def __str__(self) -> str:
        why = (
            f"{self.start - self.wanted} offsets were deleted before they were read"
            if self.wanted < self.start
            else "the topic was made again, or cut"
        )
        return (
            f"topic {self.topic}, partition {self.partition}: reading must go on at offset "
            f"{self.wanted}, but the log holds {self.start} to {self.end}: {why}"
        )


@dataclass(frozen=True, slots=True)
class InputPolicy:
    """How the consumer reads one topic."""

    #: Lower is read first.
    priority: int = 0
    chunk_records_max: int = CHUNK_RECORDS_MAX
    unacked_records_max: int = UNACKED_RECORDS_MAX
    unacked_bytes_max: int = UNACKED_BYTES_MAX
    #: Asked with the partition: how many more records its agent wants now, 0 for none. After the
    #: answer grows, call ``consumer.wake()``. None is no limit beside the bounds above.
    credit: Callable[[int], int] | None = None
    #: True ends the process when the log no longer holds the next offset; False goes on from the
    #: log's start with a warning.
    is_gap_fatal: bool = True
    #: Asked with the partition: whether a position behind all that was acked may be committed. It
    #: passes markers of transactions, so that their offsets are in no gap later. None: never.
    may_pass: Callable[[int], bool] | None = None

    def end_at_gap(self, gap: Gap) -> None:
        """Tell of it, and end the process when reading may not go on."""
        if self.is_gap_fatal:
            fail_stop(
                f"{gap}. See OPERATIONS, \"A ledger says that its next offset is gone\": ask for "
                "what is missing again, and start once with TIDEMILL_ACCEPT_GAPS=true to go on "
                "without it",
                code=exit_codes.GAP,
            )
        logger.error("%s; going on from %s", gap, gap.start)


class InputPartition:
    """What the consumer knows of one assigned partition of an input topic."""

    __slots__ = ("began_at", "buffer", "held", "policy", "queue", "tp", "tracker")

    def __init__(self, tp: TP, policy: InputPolicy, queue: asyncio.Queue[Chunk]) -> None:
        self.tp = tp
        self.policy = policy
        self.queue = queue
        self.buffer = PartitionBuffer()
        self.tracker = OffsetTracker()
        self.held = False
        self.began_at = 0  # the offset from which it is read here

    def room(self) -> int:
        """How many records may be handed out now."""
        policy, tracker = self.policy, self.tracker
        if self.held or tracker.unacked_bytes >= policy.unacked_bytes_max:
            return 0
        room = policy.unacked_records_max - tracker.unacked_records
        if policy.credit is not None:
            room = min(room, policy.credit(self.tp.partition))
        return max(room, 0)

    @property
    def position(self) -> int:
        """The offset after the acked prefix."""
        acked = self.tracker.position
        return self.began_at if acked is None else acked

    @property
    def is_full(self) -> bool:
        """Whether enough waits to be handed out: no more is fetched for now."""
        return self.buffer.size_bytes >= PREFETCH_BYTES_MAX

    def take(self, on_ack: Callable[[], None]) -> bool:
        """Hand one chunk to the agent; False when there is none or no room."""
        count_max = min(self.room(), self.policy.chunk_records_max)
        if not count_max:
            return False
        records = self.buffer.take(count_max)
        if not records:
            return False
        run = self.tracker.deliver(records, size_of(records))
        chunk = Chunk(self.tp.topic, self.tp.partition, records, run, on_ack)
        self.queue.put_nowait(chunk)
        return True

    def committable(self, passed: int | None) -> int | None:
        """The offset to commit, if there is a new one; all before `passed` was read and acked."""
        offset, tracker = self.tracker.committable(), self.tracker
        if passed is None or self.policy.may_pass is None:
            return offset
        known = offset if offset is not None else tracker.committed
        if known is not None and passed <= known:
            return offset
        if not self.policy.may_pass(self.tp.partition):
            return offset
        tracker.resume_at(passed)
        return passed

    def clear(self) -> None:
        self.buffer.clear()
        self.tracker.clear()
