"""How one input topic is read: its rank, its bounds, its demand.

Owns the defaults of reading; refuses to know which topics there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Records of one chunk: enough to make the cost of a hand-over vanish, little enough that deciding
# on one (some 50 us a record) does not hold the loop for longer than a heartbeat can wait.
CHUNK_RECORDS_MAX = 500
# Delivered and unacked records of one partition: two full group commits and some more.
UNACKED_RECORDS_MAX = 8_000
# The same in bytes, for partitions of large payloads.
UNACKED_BYTES_MAX = 32 * 1024 * 1024


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
