"""Who is to be told of a job's end: the gathers that it is a member of.

Owns those rows at the member's home. Refuses to know what a gather does with an end. A watcher goes
with the end that it was told.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from tidemill.streams.job import JobKey
from tidemill.streams.store.finished import digest_of
from tidemill.streams.store.table import Table, UnknownRow

KIND: Final = b"w"
VERSION: Final = 1  # first element of a row
SINCE: Final = "0.1.0"  # first version of Tidemill that reads these rows
WATCHERS_MAX: Final = 1_000  # of one job; its row stays far below 1 MiB

Membership = tuple[str, str, int, str, int]
"""Parent's user, job and incarnation, the gather's name, and the parent's run."""


class Watcher:
    """A gather that a job is a member of. Never changed once made."""

    def __init__(self, of: Membership, index: int, *, is_own: bool) -> None:
        self.of = of
        self.index = index  # of the member
        self.is_own = is_own  # nobody but gathers has asked for the job, as far as is known

    def owning(self) -> Watcher:
        """The same, and the job is its own from now on."""
        return Watcher(self.of, self.index, is_own=True)


Watching = tuple[Watcher, ...]


class Watchers(Table[JobKey, Watching]):
    """Watchers by job. Rows: b"w" + the job's digest."""

    def __init__(self) -> None:
        super().__init__(KIND, SINCE)

    def row_key(self, key: JobKey) -> bytes:
        return KIND + digest_of(key)

    def row_value(self, key: JobKey, value: Watching) -> bytes:
        return orjson.dumps([
            VERSION, key[0], key[1], [(*one.of, one.index, one.is_own) for one in value]
        ])

    def read(self, key: bytes, value: bytes) -> tuple[JobKey, Watching]:
        row: list[Any] = orjson.loads(value)
        if row[0] != VERSION:
            raise UnknownRow(
                f"a row of a member's gathers of version {row[0]}; this ledger reads version "
                f"{VERSION}"
            )
        found = [
            Watcher((one[0], one[1], one[2], one[3], one[4]), one[5], is_own=one[6])
            for one in row[3]
        ]
        return (row[1], row[2]), tuple(found)
