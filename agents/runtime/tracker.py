"""Which offset of one partition may be committed: the contiguous acked prefix, and nothing past it.

Owns the arithmetic; refuses to know Kafka, asyncio or who acks. Only delivered offsets are tracked,
so gaps from compaction and from transaction markers need no table of gaps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol


class HasOffset(Protocol):
    """Anything with an offset; a fetched record in production."""

    @property
    def offset(self) -> int: ...


class Run:
    """A run of delivered records of one partition, acked as a whole or one by one."""

    __slots__ = ("_acked", "_tracker", "records", "remaining", "size_bytes")

    def __init__(
        self, tracker: OffsetTracker, records: Sequence[HasOffset], size_bytes: int
    ) -> None:
        self._tracker: OffsetTracker | None = tracker
        self._acked: set[int] | None = None
        self.records = records
        self.remaining = len(records)
        self.size_bytes = size_bytes

    def ack(self) -> bool:
        """Ack all records that are not acked yet; False when the run is stale or was done."""
        tracker = self._tracker
        if tracker is None or not self.remaining:
            return False
        tracker.on_acked(self, self.remaining)
        self.remaining = 0
        return True

    def ack_offset(self, offset: int) -> bool:
        """Ack one record; False when the run is stale or the record was acked before."""
        tracker = self._tracker
        if tracker is None or not self.remaining:
            return False
        if not self.records[0].offset <= offset <= self.records[-1].offset:
            raise ValueError(
                f"offset {offset} is not in this run of {self.records[0].offset} to "
                f"{self.records[-1].offset}"
            )
        if self._acked is None:
            self._acked = set()
        if offset in self._acked:
            return False
        self._acked.add(offset)
        tracker.on_acked(self, 1)
        self.remaining -= 1
        return True

    @property
    def acked_count(self) -> int:
        """Records of this run that are acked."""
        return len(self.records) - self.remaining

    def prefix_count(self) -> int:
        """How many records of this run are acked before the first that is not."""
        if not self.remaining:
            return len(self.records)
        acked = self._acked or ()
        for count, record in enumerate(self.records):
            if record.offset not in acked:
                return count
        return len(self.records)

    def prefix_end(self) -> int | None:
        """Return the offset after the acked prefix of this run, or None when it is empty."""
        if not self.remaining:
            return self.records[-1].offset + 1
        acked = self._acked
        end = None
        if acked:
            for record in self.records:
                if record.offset not in acked:
                    break
                end = record.offset + 1
        return end

    @property
    def is_stale(self) -> bool:
        """True when the partition was revoked or re-seeked since; the records come again."""
        return self._tracker is None

    def detach(self) -> None:
        """Make every later ack of this run a no-op: its partition was revoked or re-seeked."""
        self._tracker = None


class OffsetTracker:
    """Delivered and acked offsets of one topic partition."""

    __slots__ = ("_runs", "committed", "position", "unacked_bytes", "unacked_records")

    def __init__(self) -> None:
        self._runs: deque[Run] = deque()
        self.unacked_records = 0
        self.unacked_bytes = 0
        #: The offset after the contiguous acked prefix, or None when nothing was acked.
        self.position: int | None = None
        #: The last offset that Kafka confirmed as committed, or None.
        self.committed: int | None = None

    def resume_at(self, position: int) -> None:
        """Note that all before ``position`` was acked by one who may not have committed it."""
        self.position = position

    def deliver(self, records: Sequence[HasOffset], size_bytes: int = 0) -> Run:
        """Note that ``records`` (not empty, ascending offsets) were handed out."""
        run = Run(self, records, size_bytes)
        self._runs.append(run)
        self.unacked_records += len(records)
        self.unacked_bytes += size_bytes
        return run

    def on_acked(self, run: Run, count: int) -> None:
        """Keep the totals; called by the run, before its own count goes down."""
        self.unacked_records -= count
        if run.remaining == count:
            self.unacked_bytes -= run.size_bytes

    def committable(self) -> int | None:
        """Return the offset to commit when it is past the committed one, else None."""
        runs = self._runs
        while runs and not runs[0].remaining:
            self.position = runs.popleft().prefix_end()
        if runs:
            partial = runs[0].prefix_end()
            if partial is not None:
                self.position = partial
        if self.position is None or self.position == self.committed:
            return None
        return self.position

    @property
    def has_gap(self) -> bool:
        """Whether something behind the acked prefix is acked: a commit cannot tell of it."""
        is_prefix = True
        for run in self._runs:
            acked = run.acked_count
            if is_prefix and acked == len(run.records):
                continue
            if acked > (run.prefix_count() if is_prefix else 0):
                return True
            is_prefix = False
        return False

    def on_committed(self, offset: int) -> None:
        """Note that Kafka confirmed ``offset``."""
        self.committed = offset

    def clear(self) -> None:
        """Forget everything delivered: the partition was revoked or re-seeked."""
        for run in self._runs:
            run.detach()
        self._runs.clear()
        self.unacked_records = 0
        self.unacked_bytes = 0
        self.position = None
        self.committed = None
