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

from tidemill.schemas.record_pages import RecordPages
from tidemill.streams.commands import Cause
from tidemill.streams.job import JobKey
from tidemill.streams.store.finished import digest_of
from tidemill.streams.store.table import AnyTable, UnknownRow

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

    __slots__ = ("keys", "size")

    def __init__(self) -> None:
        self.keys: dict[JobKey, None] = {}
        self.size = 0


class KeptCancels(AnyTable):
    """Those of one partition by job, the oldest first. Rows: b"c" + the job's digest."""

    def __init__(self) -> None:
        super().__init__(KIND)
        self._by_key: dict[JobKey, KeptCancel] = {}
        self._of_user: dict[str, _OfUser] = {}
        self._old: dict[JobKey, KeptCancel | None] = {}  # before this group
        self._size = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[KeptCancel]:
        return iter(self._by_key.values())

    def get(self, key: JobKey) -> KeptCancel | None:
        return self._by_key.get(key)

    def keep(self, cancel: KeptCancel) -> None:
        """The newest; it takes the place of an earlier one of the same job."""
        key = cancel.key
        self._old.setdefault(key, self._by_key.get(key))
        self._remove(key)
        self._add(cancel)

    def drop(self, key: JobKey) -> None:
        """It was applied, or is forgotten."""
        if key in self._by_key:
            self._old.setdefault(key, self._by_key[key])
            self._remove(key)

    def too_many(self, user_id: str) -> KeptCancel | None:
        """The next one to be forgotten after one of this user was kept; None within all bounds."""
        of_user = self._of_user.get(user_id)
        if of_user is not None and (
            len(of_user.keys) > USER_COUNT_MAX or of_user.size > USER_BYTES_MAX
        ):
            return self._by_key[next(iter(of_user.keys))]
        if len(self._by_key) > COUNT_MAX or self._size > BYTES_MAX:
            return next(iter(self._by_key.values()))
        return None

    def too_old(self, now_ms: int, *, at_most: int) -> list[KeptCancel]:
        """The oldest ones, as far as their day is over."""
        oldest = islice(self._by_key.values(), at_most)
        return [cancel for cancel in oldest if cancel.kept_until <= now_ms]

    # --- the group's end, and a restore ---

    @property
    def changed(self) -> dict[JobKey, KeptCancel | None]:
        """What this group has changed, as it was before; `get` tells what it is now."""
        return self._old

    def has_rows(self) -> bool:
        return len(self._by_key) > 0

    def has_changes(self) -> bool:
        return len(self._old) > 0

    def write(self, pages: RecordPages) -> None:
        for key in self._old:
            kept = self._by_key.get(key)
            pages.add(cancel_key(key), None if kept is None else cancel_value(kept))

    def commit(self) -> None:
        if self._old:
            self._old = {}

    def rollback(self) -> None:
        if not self._old:
            return
        for key, cancel in self._old.items():
            self._remove(key)
            if cancel is not None:
                self._add(cancel)
        self._old = {}
        self.sort()

    def load(self, key: bytes, value: bytes) -> None:
        self._add(read_cancel(value))

    def loaded(self) -> None:
        self.sort()

    def sort(self) -> None:
        """Restores the order by time."""
        found = sorted(self._by_key.values(), key=lambda cancel: (cancel.kept_at, cancel.cause))
        self._by_key, self._of_user, self._size = {}, {}, 0
        for cancel in found:
            self._add(cancel)

    def _add(self, cancel: KeptCancel) -> None:
        key = cancel.key
        self._by_key[key] = cancel
        of_user = self._of_user.get(key[0])
        if of_user is None:
            of_user = self._of_user[key[0]] = _OfUser()
        of_user.keys[key] = None
        of_user.size += cancel.size
        self._size += cancel.size

    def _remove(self, key: JobKey) -> None:
        cancel = self._by_key.pop(key, None)
        if cancel is None:
            return
        self._size -= cancel.size
        of_user = self._of_user[key[0]]
        del of_user.keys[key]
        of_user.size -= cancel.size
        if not of_user.keys:
            del self._of_user[key[0]]


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
