"""Cancels that came before their request: kept for a day, and applied when the request arrives.

Owns which of them are kept, their rows, the bounds, and what goes first when there are too many.
Refuses to know events and who asks. A producer's request and its cancel travel over two topics, so
that the second may well be read first.

Bounded by time, and by number and bytes, for a user and for the partition: the oldest go first.
What changes is undone with the group that changed it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import orjson

from tidemill.streams.commands import Cause
from tidemill.streams.job import JobKey
from tidemill.streams.store.finished import digest_of
from tidemill.streams.store.table import Table, UnknownRow

KIND: Final = b"c"
VERSION: Final = 1  # first element of a kept cancel's row

KEPT_MS: Final = 86_400_000  # ms that a cancel waits for its request, a day
COUNT_MAX: Final = 100_000  # a partition
BYTES_MAX: Final = 32 * 1_048_576  # a partition
USER_COUNT_MAX: Final = 10_000  # a user: one who guesses ids pushes nobody else's out
USER_BYTES_MAX: Final = 4 * 1_048_576  # a user
OVERHEAD_BYTES: Final = 200  # what one costs beside its texts


class KeptCancel:
    """A cancel of a job that nobody has asked for yet. Never changed once made."""

    __slots__ = ("actor", "cause", "kept_at", "key", "reason", "size")

    def __init__(
        self, key: JobKey, kept_at: int, actor: str | None, reason: str | None, cause: Cause
    ) -> None:
        self.key = key
        self.kept_at = kept_at  # epoch ms
        self.actor = actor
        self.reason = reason
        self.cause = cause  # the command's place
        texts = len(key[0]) + len(key[1]) + len(actor or "") + len(reason or "")
        self.size = OVERHEAD_BYTES + texts

    @property
    def kept_until(self) -> int:
        """Epoch ms."""
        return self.kept_at + KEPT_MS


class _OfUser:
    """One user's, the oldest first."""

    __slots__ = ("size", "sizes")

    def __init__(self) -> None:
        self.sizes: dict[JobKey, int] = {}
        self.size = 0


class KeptCancels(Table[JobKey, KeptCancel]):
    """Those of one partition by job, the oldest first. Rows: b"c" + the job's digest."""

    def __init__(self) -> None:
        super().__init__(KIND)
        self._of_user: dict[str, _OfUser] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[KeptCancel]:
        return iter(self.values.values())

    def row_key(self, key: JobKey) -> bytes:
        return cancel_key(key)

    def row_value(self, key: JobKey, value: KeptCancel) -> bytes:
        return cancel_value(value)

    def read(self, key: bytes, value: bytes) -> tuple[JobKey, KeptCancel]:
        cancel = read_cancel(value)
        return cancel.key, cancel

    def keep(self, cancel: KeptCancel) -> None:
        """The newest; it takes the place of an earlier one of the same job."""
        self.drop(cancel.key)
        self.put(cancel.key, cancel)

    def drop(self, key: JobKey) -> None:
        """It was applied, or is forgotten."""
        if key in self.values:
            self.put(key, None)

    def too_many(self, user_id: str) -> KeptCancel | None:
        """The next one to be forgotten after one of this user was kept; None within all bounds."""
        of_user = self._of_user.get(user_id)
        if of_user is not None and (
            len(of_user.sizes) > USER_COUNT_MAX or of_user.size > USER_BYTES_MAX
        ):
            return self.values[next(iter(of_user.sizes))]
        if len(self.values) > COUNT_MAX or self._size > BYTES_MAX:
            return next(iter(self.values.values()))
        return None

    def too_old(self, now_ms: int, *, at_most: int) -> list[KeptCancel]:
        """The oldest ones, as far as their day is over."""
        oldest = islice(self.values.values(), at_most)
        return [cancel for cancel in oldest if cancel.kept_until <= now_ms]

    def follow(self, key: JobKey, value: KeptCancel | None) -> None:
        """Numbers and bytes, of the user and of all."""
        of_user = self._of_user.get(key[0])
        if of_user is not None:
            left = of_user.sizes.pop(key, 0)
            of_user.size -= left
            self._size -= left
        if value is not None:
            if of_user is None:
                of_user = self._of_user[key[0]] = _OfUser()
            of_user.sizes[key] = value.size
            of_user.size += value.size
            self._size += value.size
        elif of_user is not None and not of_user.sizes:
            del self._of_user[key[0]]

    def rollback(self) -> None:
        if self.before:
            super().rollback()
            self._sort()

    def loaded(self) -> None:
        self._sort()

    def _sort(self) -> None:
        """Restores the order by time."""
        found = sorted(self, key=lambda cancel: (cancel.kept_at, cancel.cause))
        self.values, self._of_user, self._size = {}, {}, 0
        for cancel in found:
            self._set(cancel.key, cancel)


def cancel_key(key: JobKey) -> bytes:
    return KIND + digest_of(key)


def cancel_value(cancel: KeptCancel) -> bytes:
    user_id, job_id = cancel.key
    return orjson.dumps(
        (VERSION, user_id, job_id, cancel.kept_at, cancel.actor, cancel.reason, *cancel.cause)
    )


def read_cancel(value: bytes) -> KeptCancel:
    """The inverse of `cancel_value`. Raises UnknownRow for another version."""
    row: list[Any] = orjson.loads(value)
    if row[0] != VERSION:
        raise UnknownRow(
            f"a kept cancel's row of version {row[0]}; this ledger reads version {VERSION}"
        )
    return KeptCancel((row[1], row[2]), row[3], row[4], row[5], (row[6], row[7], row[8]))
