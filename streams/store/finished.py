"""Ended jobs, packed: 16 bytes of identity and one number each, so that a repeat is recognised.

Owns the digest, the packing and the order in which ended jobs are forgotten. Refuses to know rows
and events. Bounded by time (`retention_ms`) and by count, the oldest first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final, NamedTuple

from tidemill.schemas.words import State
from tidemill.streams.job import JobKey

COUNT_MAX: Final = 2_000_000  # ended jobs a partition remembers
_DIGEST_BYTES: Final = 16
_STATES: Final[tuple[State, ...]] = (
    State.SUCCEEDED, State.FAILED, State.CANCELLED, State.SKIPPED, State.EXPIRED
)
_REFUSED: Final = len(_STATES)  # failed as well: the request could not be taken
_NUMBER_OF: Final = {state: number for number, state in enumerate(_STATES)}
_FINGERPRINT_BITS: Final = 32
_STATE_BITS: Final = 3


def digest_of(key: JobKey) -> bytes:
    """16 bytes that stand for (user_id, job_id). The separator cannot be in either."""
    return blake2b(f"{key[0]}\x00{key[1]}".encode(), digest_size=_DIGEST_BYTES).digest()


class Ended(NamedTuple):
    """What is remembered of an ended job."""

    finished_at: int  # epoch ms
    fingerprint: int
    state: State
    is_refused: bool = False  # its request could not be taken: a mended one may have its id


class FinishedJobs:
    """Ended jobs by digest, oldest first."""

    __slots__ = ("_again", "_by_digest", "_left", "_order", "_taken")

    def __init__(self) -> None:
        self._by_digest: dict[bytes, int] = {}
        self._order: deque[bytes] = deque()
        self._taken: list[tuple[bytes, int | None]] = []  # forgotten, not for good yet
        self._again: list[tuple[bytes, int]] = []  # taken up again, not for good yet
        self._left: dict[bytes, int] = {}  # places in the order whose job was taken up again

    def __len__(self) -> int:
        return len(self._by_digest)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._by_digest)

    def add(
        self,
        digest: bytes,
        finished_at: int,
        fingerprint: int,
        state: State,
        is_refused: bool = False,
    ) -> None:
        packed = (finished_at << _FINGERPRINT_BITS | fingerprint) << _STATE_BITS
        self._by_digest[digest] = packed | (_REFUSED if is_refused else _NUMBER_OF[state])
        self._order.append(digest)

    def take_up(self, digest: bytes) -> None:
        """The job lives again. `commit` makes it final, `rollback` takes it back."""
        packed = self._by_digest.pop(digest, None)
        if packed is not None:
            self._again.append((digest, packed))
            self._left[digest] = self._left.get(digest, 0) + 1

    def get(self, digest: bytes) -> Ended | None:
        packed = self._by_digest.get(digest)
        return None if packed is None else _unpacked(packed)

    def sort(self) -> None:
        """Restores the order by time after rows were read in the order of a compacted topic."""
        self._order = deque(sorted(self._by_digest, key=self._by_digest.__getitem__))
        self._left = {}

    def forget_until(self, ended_before: int, *, count_max: int, at_most: int) -> list[bytes]:
        """Takes out up to `at_most` that ended before the instant, or are beyond the count.

        `commit` makes it final, `rollback` puts them back.
        """
        forgotten: list[bytes] = []
        while self._order and len(forgotten) < at_most:
            if self._left and self._order[0] in self._left:
                self._taken.append((self._order[0], None))
                _count_down(self._left, self._order.popleft())
                continue
            packed = self._by_digest[self._order[0]]
            if (
                _unpacked(packed).finished_at >= ended_before
                and len(self._by_digest) <= count_max
            ):
                break
            digest = self._order.popleft()
            del self._by_digest[digest]
            self._taken.append((digest, packed))
            forgotten.append(digest)
        return forgotten

    def commit(self) -> None:
        """What was taken out stays out."""
        self._taken = []
        self._again = []

    def rollback(self) -> None:
        """What was taken out since the last `commit` is back in its place."""
        for digest, packed in reversed(self._taken):
            if packed is None:
                self._left[digest] = self._left.get(digest, 0) + 1
            else:
                self._by_digest[digest] = packed
            self._order.appendleft(digest)
        for digest, number in self._again:
            self._by_digest[digest] = number
            _count_down(self._left, digest)
        self._taken = []
        self._again = []


def _count_down(counts: dict[bytes, int], digest: bytes) -> None:
    left = counts[digest] - 1
    if left:
        counts[digest] = left
    else:
        del counts[digest]


def _unpacked(packed: int) -> Ended:
    rest = packed >> _STATE_BITS
    number = packed & (1 << _STATE_BITS) - 1
    is_refused = number == _REFUSED
    return Ended(
        rest >> _FINGERPRINT_BITS,
        rest & (1 << _FINGERPRINT_BITS) - 1,
        State.FAILED if is_refused else _STATES[number],
        is_refused,
    )
