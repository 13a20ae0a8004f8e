"""The latest ends that a client has read: a wait for one of them ends at once.

Owns what is remembered, its bounds, and the index by job. Refuses to know Kafka and who waits. Any
thread may ask while one adds.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Final

import orjson

RECORDS_MAX: Final = 50_000  # ends that are remembered, for waits that begin after them
BYTES_MAX: Final = 64 * 1_048_576
# An id may be used anew when it is forgotten, after a day by default: an end from so long before
# the request is an earlier job's.
OTHER_LIFE_MS: Final = 12 * 3_600_000


class _OfUser:
    """The ends of one user, oldest first. They are only parsed when somebody asks."""

    __slots__ = ("by_job", "parsed", "unread")

    def __init__(self) -> None:
        self.unread: deque[tuple[int, bytes]] = deque()  # timestamp, value
        self.by_job: defaultdict[str, deque[tuple[int, int, bytes]]] = defaultdict(deque)
        self.parsed: deque[str] = deque()  # the job of each that is in `by_job`

    def find(self, job_id: str, run: int, since_ms: int) -> bytes | None:
        while self.unread:
            timestamp_ms, value = self.unread.popleft()
            body = orjson.loads(value)
            self.by_job[body["job_id"]].append((timestamp_ms, body["run"], value))
            self.parsed.append(body["job_id"])
        for timestamp_ms, its_run, value in self.by_job.get(job_id, ()):
            if its_run >= run and timestamp_ms >= since_ms:
                return value
        return None

    def drop_oldest(self) -> None:
        if not self.parsed:
            self.unread.popleft()
            return
        job_id = self.parsed.popleft()
        ends = self.by_job[job_id]
        ends.popleft()
        if not ends:
            del self.by_job[job_id]

    def __bool__(self) -> bool:
        return bool(self.unread or self.parsed)


class Remembered:
    """The latest ends of all partitions, within bounds."""

    def __init__(self, records_max: int = RECORDS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._ends: deque[tuple[int, int, str, bytes]] = deque()
        self._of_user: defaultdict[str, _OfUser] = defaultdict(_OfUser)
        self._size = 0

    def __len__(self) -> int:
        return len(self._ends)

    def add(
        self, partition: int, timestamp_ms: int, user_id: str, value: bytes
    ) -> list[tuple[int, int]]:
        """Remember an end; (partition, timestamp) of each that is forgotten for it."""
        with self._lock:
            return self._add(partition, timestamp_ms, user_id, value)

    def _add(
        self, partition: int, timestamp_ms: int, user_id: str, value: bytes
    ) -> list[tuple[int, int]]:
        self._ends.append((partition, timestamp_ms, user_id, value))
        self._of_user[user_id].unread.append((timestamp_ms, value))
        self._size += len(value)
        forgotten = []
        while len(self._ends) > self._records_max or self._size > self._bytes_max:
            partition, timestamp_ms, user_id, value = self._ends.popleft()
            self._size -= len(value)
            mine = self._of_user[user_id]
            mine.drop_oldest()
            if not mine:
                del self._of_user[user_id]
            forgotten.append((partition, timestamp_ms))
        return forgotten

    def find(self, user_id: str, job_id: str, run: int, since_ms: int) -> bytes | None:
        """The end of that run or a later one of a job that was asked for at about `since_ms`."""
        with self._lock:
            mine = self._of_user.get(user_id)
            return None if mine is None else mine.find(job_id, run, since_ms - OTHER_LIFE_MS)

    def forget_partition(self, partition: int) -> None:
        """Its records come again; remember none twice."""
        with self._lock:
            if any(entry[0] == partition for entry in self._ends):
                self._refill([entry for entry in self._ends if entry[0] != partition])

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._refill(())

    def _refill(self, kept: Iterable[tuple[int, int, str, bytes]]) -> None:
        self._ends.clear()
        self._of_user.clear()
        self._size = 0
        for entry in kept:
            self._add(*entry)
