"""Signals that came before anybody waited for them: kept for a day, by job and name.

Owns which of them are kept, their rows and the bounds. Refuses to know events, and what becomes of
a signal that is waited for (`tidemill.streams.suspensions`).

Bounded by time, by number for a job, and by bytes for a user and for the partition. Beyond a bound
the newest is refused: what was told as kept stays.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

import orjson

from tidemill.streams.commands import Cause
from tidemill.streams.job import JobKey
from tidemill.streams.store.finished import digest_of
from tidemill.streams.store.table import Table, UnknownRow

KIND: Final = b"e"
VERSION: Final = 1  # first element of a row
SINCE: Final = "0.1.0"  # first version of Tidemill that reads these rows

KEPT_MS: Final = 86_400_000  # ms that a signal waits for somebody who waits for it, a day
JOB_COUNT_MAX: Final = 100  # a job: a handler that waits for more has waited for some of them
USER_BYTES_MAX: Final = 8 * 1_048_576  # a user: one who guesses ids takes nobody else's room
BYTES_MAX: Final = 64 * 1_048_576  # a partition: they are held in memory, and read at a restore
OVERHEAD_BYTES: Final = 250  # what one costs beside its texts

SignalKey = tuple[str, str, str]
"""user_id, job_id, name."""


class KeptSignal:
    """A signal that nobody waits for yet. Never changed once made."""

    __slots__ = ("actor", "cause", "kept_at", "key", "size", "value")

    def __init__(
        self, key: SignalKey, kept_at: int, value: bytes, actor: str | None, cause: Cause
    ) -> None:
        self.key = key
        self.kept_at = kept_at  # epoch ms
        self.value = value  # JSON text
        self.actor = actor
        self.cause = cause  # the command's place
        texts = len(key[0]) + len(key[1]) + len(key[2]) + len(actor or "")
        self.size = OVERHEAD_BYTES + texts + len(value)

    @property
    def job(self) -> JobKey:
        return (self.key[0], self.key[1])

    @property
    def kept_until(self) -> int:
        """Epoch ms."""
        return self.kept_at + KEPT_MS


class KeptSignals(Table[SignalKey, KeptSignal]):
    """Those of one partition, the oldest first. Rows: b"e" + the job's digest + the name."""

    def __init__(self) -> None:
        super().__init__(KIND, SINCE)
        self.by_job: dict[JobKey, dict[str, int]] = {}  # name -> bytes
        self._of_user: dict[str, int] = {}  # bytes
        self._size = 0

    def has_room(self, signal: KeptSignal) -> bool:
        """Whether one more may be kept."""
        return (
            len(self.by_job.get(signal.job, ())) < JOB_COUNT_MAX
            and self._of_user.get(signal.key[0], 0) + signal.size <= USER_BYTES_MAX
            and self._size + signal.size <= BYTES_MAX
        )

    def of(self, job: JobKey, name: str) -> KeptSignal | None:
        return self.values.get((job[0], job[1], name))

    def keep(self, signal: KeptSignal) -> None:
        self.put(signal.key, signal)

    def drop(self, job: JobKey, name: str) -> None:
        """It was given to the handler, or is forgotten."""
        if name in self.by_job.get(job, ()):
            self.put((job[0], job[1], name), None)

    def forget_job(self, job: JobKey) -> None:
        """The job has ended for good."""
        for name in list(self.by_job.get(job, ())):
            self.put((job[0], job[1], name), None)

    def too_old(self, now_ms: int, *, at_most: int) -> list[KeptSignal]:
        """The oldest ones, as far as their day is over."""
        oldest = islice(self.values.values(), at_most)
        return [signal for signal in oldest if signal.kept_until <= now_ms]

    # --- rows ---

    def row_key(self, key: SignalKey) -> bytes:
        return KIND + digest_of((key[0], key[1])) + key[2].encode()

    def row_value(self, key: SignalKey, value: KeptSignal) -> bytes:
        known = orjson.dumps((VERSION, *key, value.kept_at, value.actor, *value.cause))
        return b"%b,%b]" % (known[:-1], value.value)

    def read(self, key: bytes, value: bytes) -> tuple[SignalKey, KeptSignal]:
        row: list[Any] = orjson.loads(value)
        if row[0] != VERSION:
            raise UnknownRow(
                f"a kept signal's row of version {row[0]}; this ledger reads version {VERSION}"
            )
        of: SignalKey = (row[1], row[2], row[3])
        cause: Cause = (row[6], row[7], row[8])
        return of, KeptSignal(of, row[4], orjson.dumps(row[9]), row[5], cause)

    def follow(self, key: SignalKey, value: KeptSignal | None) -> None:
        """Numbers and bytes, of the job, of its user and of all."""
        job: JobKey = (key[0], key[1])
        sizes = self.by_job.get(job)
        if sizes is None:
            sizes = self.by_job[job] = {}
        grown = -sizes.pop(key[2], 0)
        if value is not None:
            sizes[key[2]] = value.size
            grown += value.size
        if not sizes:
            del self.by_job[job]
        self._size += grown
        of_user = self._of_user.get(key[0], 0) + grown
        if of_user:
            self._of_user[key[0]] = of_user
        else:
            self._of_user.pop(key[0], None)

    def rollback(self) -> None:
        if self.before:
            super().rollback()
            self._sort()

    def loaded(self) -> None:
        self._sort()

    def _sort(self) -> None:
        """Restores the order by time."""
        found = sorted(self.values.values(), key=lambda signal: (signal.kept_at, signal.cause))
        self.values = {signal.key: signal for signal in found}
