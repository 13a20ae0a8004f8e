"""What jobs remember from one attempt to the next: results of steps, and waits that are over.

Owns the rows, by job and name, and how long they are kept: as long as the job may run again, a dead
letter too. Refuses to know what a handler does with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from tidemill.schemas.requests import MEMORY_BYTES_MAX
from tidemill.streams.gathers.table import GATHER, Gathers
from tidemill.streams.job import Job, JobKey
from tidemill.streams.store.finished import digest_of
from tidemill.streams.store.table import Table, UnknownRow

KIND: Final = b"m"
VERSION: Final = 1  # first element of a row
SINCE: Final = "0.1.0"  # first version of Tidemill that reads these rows
STEP: Final = "step"
SLEEP: Final = "sleep"
SIGNAL: Final = "signal"
TIMED_OUT: Final = "timed_out"  # a signal that did not come in time
OVERHEAD_BYTES: Final = 32  # what an entry costs beside its name and value, where it is sent
FORGET_AT_ONCE_MAX: Final = 1_000  # jobs looked at in one group

Name = tuple[str, str, str]
"""user_id, job_id, name."""


class Entry:
    """One remembered value. Never changed once made."""

    __slots__ = ("incarnation", "json", "kind", "size")

    def __init__(self, name: str, kind: str, value: bytes, incarnation: int) -> None:
        self.kind = kind  # STEP, SLEEP, SIGNAL or TIMED_OUT
        self.incarnation = incarnation  # of its job
        self.json = b"[%b,%b,%b]" % (orjson.dumps(name), orjson.dumps(kind), value)
        self.size = len(self.json) + OVERHEAD_BYTES


class Memory(Table[Name, Entry]):
    """Entries of one partition. Rows: b"m" + the job's digest + the name."""

    def __init__(self, jobs: Mapping[JobKey, Job], gathers: Gathers) -> None:
        super().__init__(KIND, SINCE)
        self.gathers = gathers  # what has come of those is remembered too
        self._jobs = jobs
        self.by_job: dict[JobKey, dict[str, Entry]] = {}
        self._sizes: dict[JobKey, int] = {}
        self._left: list[JobKey] = []  # of jobs that were gone already when rows were loaded

    # --- what is asked ---

    def has(self, job: Job, name: str) -> bool:
        """Whether the job, and not an earlier one of its id, remembers something by that name."""
        return self.kind_of(job, name) is not None

    def kind_of(self, job: Job, name: str) -> str | None:
        """The kind of what the job remembers by that name; None when it remembers nothing."""
        entry = self.by_job.get(job.key, {}).get(name)
        if entry is None or entry.incarnation != job.spec.requested_at:
            return None
        return entry.kind

    def size_of(self, key: JobKey) -> int:
        """Bytes of all that a job remembers, as they are sent."""
        return self._sizes.get(key, 0) + self.gathers.size_of(key)

    def has_room(self, key: JobKey, size: int) -> bool:
        """Whether so many bytes more are within what a job may remember."""
        return self.size_of(key) + size <= MEMORY_BYTES_MAX

    def entries(self, job: Job) -> list[bytes]:
        """All that the job remembers, each an element of `ReadyJob.memory`."""
        found = self.by_job.get(job.key) or {}
        begun = job.spec.requested_at
        mine = [one.json for one in found.values() if one.incarnation == begun]
        return mine + self.gathers.entries(job) if self.gathers.by_job else mine

    # --- what changes ---

    def remember(self, job: Job, data: Mapping[str, Any]) -> None:
        """What an event of the job says is remembered from now on. The first of a name counts."""
        if data["kind"] == GATHER:
            return  # its own rows say it
        name: str = data["name"]
        if self.has(job, name):
            return
        value = orjson.dumps(data.get("value" if data["kind"] == SIGNAL else "result"))
        entry = Entry(name, data["kind"], value, job.spec.requested_at)
        self.put((job.key[0], job.key[1], name), entry)

    def forget_job(self, key: JobKey) -> None:
        """The job has ended for good, or is a dead letter that is forgotten."""
        for name in list(self.by_job.get(key, ())):
            self.put((key[0], key[1], name), None)

    def forget(self, now_ms: int) -> bool:
        """Drops what an earlier version has left of dead letters that were forgotten."""
        if not self._left:
            return False
        self._left = [key for key in self._left if key in self.by_job and key not in self._jobs]
        for key in self._left[:FORGET_AT_ONCE_MAX]:
            self.forget_job(key)
        return len(self._left) > 0

    # --- rows ---

    def row_key(self, key: Name) -> bytes:
        return KIND + digest_of((key[0], key[1])) + key[2].encode()

    def row_value(self, key: Name, value: Entry) -> bytes:
        return b"[%d,%b,%b,%d,%b]" % (
            VERSION, orjson.dumps(key[0]), orjson.dumps(key[1]), value.incarnation, value.json
        )

    def read(self, key: bytes, value: bytes) -> tuple[Name, Entry]:
        row: list[Any] = orjson.loads(value)
        if row[0] != VERSION:
            raise UnknownRow(
                f"a row of what a job remembers of version {row[0]}; this ledger reads version "
                f"{VERSION}"
            )
        name, kind, result = row[4]
        return (row[1], row[2], name), Entry(name, kind, orjson.dumps(result), row[3])

    def loaded(self) -> None:
        self._left = [key for key in self.by_job if key not in self._jobs]

    def follow(self, key: Name, value: Entry | None) -> None:
        job: JobKey = (key[0], key[1])
        found = self.by_job.get(job)
        if found is None:
            found = self.by_job[job] = {}
        former = found.pop(key[2], None)
        size = self._sizes.get(job, 0) - (0 if former is None else former.size)
        if value is not None:
            found[key[2]] = value
            size += value.size
        if found:
            self._sizes[job] = size
        else:
            del self.by_job[job]
            self._sizes.pop(job, None)
