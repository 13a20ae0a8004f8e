"""Records on their way out, as the batches that Kafka stores.

Owns which record goes into which batch, and how large one may be. Refuses to know how batches are
sent: `agents.runtime.batch_writer` gives each its producer and its place in the sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from agents.runtime.errors import PoisonMessage

Header: TypeAlias = tuple[str, bytes | None]
#: topic, partition, key, value (None is a tombstone), headers or None.
Outgoing: TypeAlias = tuple[str, int, bytes | None, bytes | None, list[Header] | None]
#: topic and partition.
Target: TypeAlias = tuple[str, int]

# The largest record: that of jobs.dead, with room for the headers.
RECORD_BYTES_MAX: Final = 8 * 1024 * 1024
# Bytes of a batch before it is compressed, unless one record has more. Topics take a batch of one
# record of 1 MiB, so this fits them all.
BATCH_BYTES_MAX: Final = 1_000_000
MAGIC: Final = 2  # the record format since Kafka 0.11
# Half the bytes of lz4 for events and rows, at less processor time with the codec at hand (D23).
ZSTD: Final = 4
_NO_HEADERS: Final[list[Header]] = []


class OutBatch:
    """Records of one partition in order. Once sent it is the same bytes at each try."""

    __slots__ = ("_builder", "_data", "append", "base_offset", "count", "target")

    def __init__(
        self, target: Target, *, is_transactional: bool = False, codec: int = ZSTD
    ) -> None:
        self.target = target
        self.count = 0
        self.base_offset = -1  # of its first record, once it is written
        self._builder = DefaultRecordBatchBuilder(
            magic=MAGIC,
            compression_type=codec,
            is_transactional=int(is_transactional),
            producer_id=-1,
            producer_epoch=-1,
            base_sequence=-1,
            batch_size=BATCH_BYTES_MAX,
        )
        #: (offset in the batch, epoch ms, key, value, headers); answers None when it is full. Who
        #: appends also counts: a call of ours around it would take longer than the append.
        self.append: Callable[..., Any] = self._builder.append
        self._data: bytearray | None = None

    @property
    def size(self) -> int:
        """Bytes so far, not compressed."""
        return int(self._builder.size())

    def seal(self, producer_id: int, epoch: int, sequence: int) -> None:
        """Compress it for good; `sequence` is its first record's."""
        if self._data is None:
            self._builder.set_producer_state(producer_id, epoch, sequence)
            self._data = self._builder.build()

    @property
    def data(self) -> bytearray:
        """As it goes to the broker; only after `seal`."""
        if self._data is None:
            raise ValueError(f"the batch for {self.target} is not sealed yet")
        return self._data


def transactional_batches(
    records: Iterable[Outgoing], now_ms: int
) -> dict[Target, deque[OutBatch]]:
    """Batches by partition, in the order of `records`. PoisonMessage names a record's topic."""
    by_target: dict[Target, list[Outgoing]] = {}
    last_topic, last_partition, same = "", -1, list[Outgoing]()
    for record in records:
        # Most records go where the one before went.
        if record[0] is not last_topic or record[1] != last_partition:
            last_topic, last_partition = record[0], record[1]
            same = by_target.setdefault((last_topic, last_partition), [])
        same.append(record)
    return {
        target: _filled(target, found, now_ms) for target, found in by_target.items()
    }


def _filled(target: Target, records: list[Outgoing], now_ms: int) -> deque[OutBatch]:
    batch = OutBatch(target, is_transactional=True)
    batches = deque((batch,))
    append, count = batch.append, 0
    for _, _, key, value, headers in records:
        if append(count, now_ms, key, value, headers or _NO_HEADERS) is None:
            batch.count = count
            batch = OutBatch(target, is_transactional=True)
            batches.append(batch)
            append, count = batch.append, 0
            append(0, now_ms, key, value, headers or _NO_HEADERS)
        count += 1
        # A batch takes its first record whatever its size, so only that one can be too large.
        if count == 1 and batch.size > RECORD_BYTES_MAX:
            raise PoisonMessage(
                f"a record of {batch.size} bytes for topic {target[0]} is larger than "
                f"{RECORD_BYTES_MAX} bytes; the decision must refuse it before it gets here"
            )
    batch.count = count
    return batches
