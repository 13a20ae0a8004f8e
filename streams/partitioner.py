"""Which partition a key belongs to: Kafka's murmur2, as Java's default partitioner has it.

Owns the arithmetic. Source: the murmur2 of Apache Kafka's client protocol (seed 0x9747b28c, sign
bit dropped, modulo the partition count).
"""

from __future__ import annotations

from typing import Final

_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995
_MASK: Final = 0xFFFFFFFF
_CACHE_MAX: Final = 200_000  # keys remembered; then the cache starts anew


def murmur2(data: bytes) -> int:
    """Unsigned 32-bit murmur2 of `data`."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for index in range(0, whole, 4):
        k = int.from_bytes(data[index : index + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = h * _M & _MASK ^ k
    if length > whole:
        h ^= int.from_bytes(data[whole:], "little")
        h = h * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_of(key: str, partitions: int) -> int:
    """The partition of a key. A user's key is the user_id: its requests, events and state are
    there. Keys of something else have a prefix that names it, such as "schedule:" or "queue:"."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions


class Partitioner:
    """`partition_of` with a memory: the same keys come again and again."""

    __slots__ = ("_known", "_partitions")

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._known: dict[str, int] = {}

    def of(self, key: str) -> int:
        """The partition of `key`."""
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _CACHE_MAX:
                self._known.clear()
            found = self._known[key] = partition_of(key, self._partitions)
        return found
