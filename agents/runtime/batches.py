"""Fetched batches of one partition, decoded lazily, a chunk at a time.

Owns the reading of aiokafka's fetch results (aborted transactions and control batches are left
out); refuses to know who receives the records.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, TypeAlias

from tidemill.agents.runtime.chunk import Record
from tidemill.agents.runtime.errors import RecoverableError
from tidemill.agents.runtime.odd_headers import decode_leniently, keep_bytes_of_fetches

# Bytes that a record costs beside its key and value, so that empty records count too.
RECORD_OVERHEAD_BYTES = 64

keep_bytes_of_fetches()


FetchedBatch: TypeAlias = tuple[int, Any, bytes]
"""The lowest wanted offset, aiokafka's batch, and the bytes of the fetch that it is in."""


class CorruptBatchError(RecoverableError):
    """A batch whose checksum does not match its bytes."""


def readable_batches(partition_records: Any) -> tuple[list[FetchedBatch], int]:
    """Return (lowest wanted offset, batch, fetched bytes) and the offset to fetch next.

    ``partition_records`` is aiokafka's ``PartitionRecords``; its own iterator makes a Python object
    per record, this reads its batches and leaves the records to the C extension.
    """
    memory = partition_records._records
    aborted = partition_records._aborted_producers
    next_offset: int = partition_records.next_fetch_offset
    found: list[FetchedBatch] = []
    while memory.has_next():
        batch = memory.next_batch()
        if not batch.validate_crc():
            raise CorruptBatchError(f"invalid CRC in {partition_records._tp} at {next_offset}")
        if batch.producer_id is not None:
            partition_records._consume_aborted_up_to(batch.base_offset)
        if batch.is_control_batch:
            if partition_records._contains_abort_marker(batch):
                aborted.discard(batch.producer_id)
        elif not (batch.is_transactional and batch.producer_id in aborted):
            found.append((next_offset, batch, memory.raw))
        next_offset = batch.next_offset
    return found, next_offset


class PartitionBuffer:
    """Batches of one partition that were fetched and not yet handed out."""

    __slots__ = ("_batches", "_records", "_start", "size_bytes")

    def __init__(self) -> None:
        self._batches: deque[tuple[FetchedBatch, int]] = deque()
        #: As fetched, of the batches that are not decoded yet.
        self.size_bytes = 0
        self._records: Sequence[Record] = ()
        self._start = 0

    def __bool__(self) -> bool:
        return self._start < len(self._records) or bool(self._batches)

    def add(self, batches: list[FetchedBatch]) -> None:
        """Put the batches of one fetch behind the others."""
        if not batches:
            return
        # A batch does not tell its size, and those of a fetch are much alike.
        share = len(batches[0][2]) // len(batches)
        self._batches.extend((batch, share) for batch in batches)
        self.size_bytes += share * len(batches)

    def clear(self) -> None:
        self._batches.clear()
        self.size_bytes = 0
        self._records, self._start = (), 0

    def take(self, count_max: int) -> Sequence[Record]:
        """Return up to ``count_max`` records in order; empty when nothing is left.

        Small batches are joined, so that many tiny transactions still make one chunk.
        """
        taken: list[Record] = []
        while len(taken) < count_max:
            if self._start >= len(self._records) and not self._decode_next():
                break
            end = self._start + count_max - len(taken)
            part = self._records[self._start : end]
            self._start += len(part)
            taken.extend(part)
        return taken

    def _decode_next(self) -> bool:
        while self._batches:
            (lowest, batch, raw), share = self._batches.popleft()
            self.size_bytes -= share
            records: list[Record]
            try:
                records = list(batch)
            except UnicodeDecodeError:
                # The name of a header; see odd_headers.
                records = decode_leniently(raw, batch.base_offset)
            if records and records[0].offset < lowest:
                records = [record for record in records if record.offset >= lowest]
            if records:
                self._records, self._start = records, 0
                return True
        self._records, self._start = (), 0
        return False


def size_of(records: Sequence[Record]) -> int:
    """Return the bytes that ``records`` hold, roughly."""
    total = RECORD_OVERHEAD_BYTES * len(records)
    for record in records:
        value = record.value
        if value is not None:
            total += len(value)
    return total
