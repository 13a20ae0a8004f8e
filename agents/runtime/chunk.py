"""A run of raw records of one partition: what an agent body receives.

Owns the shape and the ack of a chunk; refuses to decode anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tidemill.agents.runtime.tracker import Run


class Record(Protocol):
    """One fetched record, as the fetcher's C extension holds it; key and value are raw bytes."""

    @property
    def offset(self) -> int: ...

    @property
    def timestamp(self) -> int:
        """Milliseconds since the epoch, as the producer or the broker wrote them."""

    @property
    def key(self) -> bytes | None: ...

    @property
    def value(self) -> bytes | None:
        """None is a tombstone."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


class Chunk:
    """Consecutive records of one topic partition, in order, and their ack.

    Nothing is acked for you: a chunk that is never acked is never committed, and comes again.
    """

    __slots__ = ("_on_ack", "_run", "partition", "records", "topic")

    def __init__(
        self,
        topic: str,
        partition: int,
        records: Sequence[Record],
        run: Run,
        on_ack: _OnAck,
    ) -> None:
        self.topic = topic
        self.partition = partition
        #: Never empty.
        self.records = records
        self._run = run
        self._on_ack = on_ack

    @property
    def first_offset(self) -> int:
        return self.records[0].offset

    @property
    def last_offset(self) -> int:
        return self.records[-1].offset

    @property
    def size_bytes(self) -> int:
        """Bytes that the records hold, roughly."""
        return self._run.size_bytes

    @property
    def is_stale(self) -> bool:
        """True once its partition was revoked or re-seeked: drop it undecided, it comes again.

        Ask right before deciding, not when the chunk arrives: deciding on a stale chunk after an
        older one was dropped would skip the older one for ever.
        """
        return self._run.is_stale

    def __len__(self) -> int:
        return len(self.records)

    def ack(self) -> bool:
        """Ack the whole chunk; False when its partition was revoked meanwhile or it was acked."""
        acked = self._run.ack()
        if acked:
            self._on_ack()
        return acked

    def ack_offset(self, offset: int) -> bool:
        """Ack one record of the chunk, in any order; False when stale or acked before."""
        acked = self._run.ack_offset(offset)
        if acked:
            self._on_ack()
        return acked

    def __repr__(self) -> str:
        return f"<Chunk {self.topic}-{self.partition} {self.first_offset}..{self.last_offset}>"


class _OnAck(Protocol):
    def __call__(self) -> None: ...
