"""Records whose header names are not UTF-8, which aiokafka refuses to read.

Owns the second way to decode a batch. Refuses to know what the records are for.

Kafka's header names are text, but the broker takes any bytes, and clients in C, Go and Rust send
them. aiokafka then raises for the whole batch, each time it is read: one such record from anybody
would stop its partition for ever. What cannot be decoded is replaced; keys, values and the headers'
own values stay as they are.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import aiokafka.consumer.fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

_BATCH_HEAD: Final = struct.Struct(">qi")  # base offset, length of what follows


class KeptRecords:
    """aiokafka's fetched batches, with their bytes, which its own type does not give back."""

    __slots__ = ("_inner", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._inner: Any = MemoryRecords(raw)

    def has_next(self) -> bool:
        return bool(self._inner.has_next())

    def next_batch(self) -> Any:
        return self._inner.next_batch()

    def size_in_bytes(self) -> int:
        return int(self._inner.size_in_bytes())


class _Lenient(bytearray):
    """Bytes whose slices decode as text whatever they hold."""

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return found if isinstance(found, int) else _Lenient(found)

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, "replace")


def decode_leniently(raw: bytes, base_offset: int) -> list[Any]:
    """The records of the batch that begins at `base_offset` in these fetched bytes."""
    place = 0
    while place + _BATCH_HEAD.size <= len(raw):
        first, length = _BATCH_HEAD.unpack_from(raw, place)
        end = place + _BATCH_HEAD.size + length
        if first == base_offset:
            batch = _DefaultRecordBatchPy(raw[place:end])
            records = iter(batch)  # uncompresses
            batch._buffer = _Lenient(batch._buffer)
            return list(records)
        place = end
    raise LookupError(f"no batch begins at offset {base_offset}")


def keep_bytes_of_fetches() -> None:
    """Let aiokafka's fetcher (pinned exactly) keep what `decode_leniently` needs."""
    aiokafka.consumer.fetcher.MemoryRecords = KeptRecords
