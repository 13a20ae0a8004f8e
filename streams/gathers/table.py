"""The gathers of the jobs of a partition: what was asked for, and what has become of it.

Owns the rows, the counts that follow from them, and what a handler is told of a gather that is
over. Refuses to decide.

A gather has a header, its requests in parts as they came, and the end of each member that is known
to have ended. Members are released in the order of their index, so the header's `released` says
which were. An end counts in the run in which it came; one that succeeded counts in all later runs.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

import orjson

from tidemill.schemas.instants import instant_text
from tidemill.schemas.requests import GATHER_PART_BYTES_MAX
from tidemill.schemas.words import Reason, State
from tidemill.streams.job import Job, JobKey
from tidemill.streams.store.table import Table, UnknownRow

KIND: Final = b"g"
VERSION: Final = 1  # first element of each row
SINCE: Final = "0.1.0"  # first version of Tidemill that reads these rows
GATHER: Final = "gather"
ENDS: Final = "ends"

# What a row is: the byte behind the digest in its key.
HEADER: Final = 104  # "h"
PART: Final = 112  # "p"
END: Final = 101  # "e"

# How far a gather is.
COLLECTING: Final = "collecting"  # its parts arrive, and its handler still runs
OPEN: Final = "open"
STOPPING: Final = "stopping"  # too many have failed: those that are out are waited for
OVER: Final = "over"

_DIGEST_BYTES: Final = 16
FORGET_AT_ONCE_MAX: Final = 10  # jobs whose gathers are dropped in one group, each with many rows
OVERHEAD_BYTES: Final = 32  # what an end costs beside its JSON
SUCCESSES: Final = frozenset({State.SUCCEEDED.value, State.SKIPPED.value})
"""Ends that are no failure."""

RowKey = tuple[bytes, int, int]
"""The gather's digest, HEADER, PART or END, and the number of the part or the member."""


def digest_of(key: JobKey, name: str) -> bytes:
    """16 bytes that stand for a gather. The separator cannot be in any of the three."""
    text = f"{key[0]}\x00{key[1]}\x00{name}"
    return blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


class Row(ABC):
    """A header, a part or an end. Never changed once it is in the table."""

    @abstractmethod
    def value(self) -> bytes:
        """As JSON."""


class Header(Row):
    """What was asked for, and how far it is."""

    def __init__(self, key: JobKey, incarnation: int, name: str, epoch: int) -> None:
        self.key = key  # of the parent
        self.incarnation = incarnation  # of the parent
        self.name = name
        self.epoch = epoch  # of the attempt that sends the parts
        self.state = COLLECTING
        self.parts = 0
        self.members = 0
        self.parallel = 0  # released and not known ended, at most
        self.tolerated = 0  # failures, at most
        self.run = 0  # of the parent, in which it was opened last
        self.first_run = 0  # and first
        self.released = 0  # members below this index were, in this run
        self.opened_at = 0  # epoch ms, in this run
        self.over_at = 0  # epoch ms

    def copy(self) -> Header:
        """Another object with the same values."""
        made = Header(self.key, self.incarnation, self.name, self.epoch)
        made.state, made.parts, made.members = self.state, self.parts, self.members
        made.parallel, made.tolerated = self.parallel, self.tolerated
        made.run, made.first_run, made.released = self.run, self.first_run, self.released
        made.opened_at, made.over_at = self.opened_at, self.over_at
        return made

    def value(self) -> bytes:
        return orjson.dumps([
            VERSION, self.key[0], self.key[1], self.incarnation, self.name, self.epoch, self.state,
            self.parts, self.members, self.parallel, self.tolerated, self.run, self.first_run,
            self.released, self.opened_at, self.over_at,
        ])


def _header_of(row: list[Any]) -> Header:
    made = Header((row[1], row[2]), row[3], row[4], row[5])
    made.state, made.parts, made.members, made.parallel, made.tolerated = row[6:11]
    made.run, made.first_run, made.released, made.opened_at, made.over_at = row[11:16]
    return made


class Part(Row):
    """Some of the requests, each as JSON; `first`: the index of the first one."""

    def __init__(self, first: int, requests: list[bytes], users: list[str]) -> None:
        self.first = first
        self.requests = requests
        self.users = users  # whose each is
        self.size = sum([len(one) for one in requests])

    def value(self) -> bytes:
        return b"[%d,%d,[%b]]" % (VERSION, self.first, b",".join(self.requests))


class End(Row):
    """What became of a member: its end as JSON, and in which run of the parent it came."""

    def __init__(self, run: int, status: str, json: bytes) -> None:
        self.run = run
        self.is_success = status in SUCCESSES
        self.status = status
        self.json = json
        self.size = len(json) + OVERHEAD_BYTES

    def value(self) -> bytes:
        return b"[%d,%d,%b]" % (VERSION, self.run, self.json)


def _first_of(part: Part) -> int:
    return part.first


class Gather:
    """A gather as its rows make it. Follows them, also when they are put back."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.header: Header | None = None
        self.parts: dict[int, Part] = {}
        self.ends: dict[int, End] = {}
        self.size = 0  # bytes of its ends
        self.asked_bytes = 0  # of its requests
        self.done = 0  # members whose end counts
        self.failed = 0  # of those
        self.kept = 0  # of those, members that succeeded in an earlier run
        self.live = 0  # released, and not known ended
        self._order: list[Part] | None = None  # by the first index, made when it is asked for
        self._firsts: list[int] = []

    @property
    def head(self) -> Header:
        """Its header. Only once there is one."""
        header = self.header
        if header is None:
            raise ValueError("a gather without a header")
        return header

    @property
    def is_empty(self) -> bool:
        return self.header is None and not self.parts and not self.ends

    @property
    def has_room(self) -> bool:
        """Whether one more may be released."""
        header = self.header
        return (
            header is not None and header.state == OPEN and header.released < header.members
            and self.live < header.parallel
        )

    @property
    def is_complete(self) -> bool:
        """Whether nobody is left to be waited for."""
        header = self.header
        if header is None:
            return False
        if header.state == STOPPING:
            return self.live == 0
        return header.state == OPEN and self.done == header.members

    @property
    def unsuccessful(self) -> int:
        """Members that have not succeeded, those that were never released too."""
        return self.head.members - self.done + self.failed

    def counts(self, index: int) -> bool:
        """Whether the end of that member is known, in this run or for good."""
        end = self.ends.get(index)
        return end is not None and (end.is_success or end.run == self.head.run)

    def request_at(self, index: int) -> dict[str, Any]:
        """What was asked for; only while its part is kept."""
        part = self.part_at(index)
        found: dict[str, Any] = orjson.loads(part.requests[index - part.first])
        return found

    def part_at(self, index: int) -> Part:
        """Where that stands."""
        if self._order is None:
            self._order = sorted(self.parts.values(), key=_first_of)
            self._firsts = [part.first for part in self._order]
        return self._order[bisect_right(self._firsts, index) - 1]

    # --- what follows from a changed row ---

    def set_header(self, header: Header | None) -> None:
        before, self.header = self.header, header
        if header is None:
            return
        if before is None or before.run != header.run or before.state == COLLECTING:
            self._recount(header)
            return
        low, high = min(before.released, header.released), max(before.released, header.released)
        moved = sum([1 for index in range(low, high) if not self.counts(index)])
        self.live += moved if header.released > before.released else -moved

    def _recount(self, header: Header) -> None:
        self.done = self.failed = self.kept = 0
        for end in self.ends.values():
            if end.is_success or end.run == header.run:
                self.done += 1
                self.failed += not end.is_success
                self.kept += end.run != header.run
        self.live = sum([1 for index in range(header.released) if not self.counts(index)])

    def set_part(self, number: int, part: Part | None) -> None:
        self._order = None
        before = self.parts.pop(number, None)
        if before is not None:
            self.asked_bytes -= before.size
        if part is not None:
            self.parts[number] = part
            self.asked_bytes += part.size

    def set_end(self, index: int, end: End | None) -> None:
        self._add(index, self.ends.pop(index, None), -1)
        if end is not None:
            self.ends[index] = end
            self._add(index, end, 1)

    def _add(self, index: int, end: End | None, sign: int) -> None:
        if end is None:
            return
        self.size += sign * end.size
        header = self.header
        if header is None or not (end.is_success or end.run == header.run):
            return
        self.done += sign
        if not end.is_success:
            self.failed += sign
        if end.run != header.run:
            self.kept += sign
        if index < header.released:
            self.live -= sign


class Gathers(Table[RowKey, Row]):
    """The gathers of one partition. Rows: b"g" + 16 bytes + b"h", or b"p" or b"e" and a number."""

    def __init__(self) -> None:
        super().__init__(KIND, SINCE)
        self.of_digest: dict[bytes, Gather] = {}
        self.by_job: dict[JobKey, dict[str, Gather]] = {}
        self.jobs: Mapping[JobKey, Job] = {}  # set by `PartitionState`

    # --- what is asked ---

    def find(self, key: JobKey, name: str) -> Gather | None:
        """The gather of that name, of the job that has the key now or had it before."""
        return self.by_job.get(key, {}).get(name)

    def of_job(self, job: Job, name: str) -> Gather | None:
        """The same of that job alone."""
        found = self.find(job.key, name)
        is_its = found is not None and found.head.incarnation == job.spec.requested_at
        return found if is_its else None

    def size_of(self, key: JobKey) -> int:
        """Bytes of all ends that are kept for a job."""
        return sum([one.size for one in self.by_job.get(key, {}).values()])

    def is_settled(self, gather: Gather, job: Job) -> bool:
        """Whether the gather is over and stays so in this run of its job."""
        header = gather.head
        return header.state == OVER and (header.run == job.run or not gather.unsuccessful)

    def entries(self, job: Job) -> list[bytes]:
        """What the handler is told of all that are over, each as `[name, kind, value]`."""
        found: list[bytes] = []
        for gather in self.by_job.get(job.key, {}).values():
            is_its = gather.head.incarnation == job.spec.requested_at
            if is_its and self.is_settled(gather, job):
                found += _entries_of(gather)
        return found

    # --- what changes ---

    def put_header(self, header: Header) -> None:
        self.put((digest_of(header.key, header.name), HEADER, 0), header)

    def drop(self, gather: Gather) -> None:
        """All rows of a gather go."""
        digest = gather.digest
        for index in list(gather.ends):
            self.put((digest, END, index), None)
        for number in list(gather.parts):
            self.put((digest, PART, number), None)
        self.put((digest, HEADER, 0), None)

    def forget(self, now_ms: int) -> bool:
        """Drops what is left of dead letters that were forgotten themselves."""
        gone = [key for key in self.by_job if key not in self.jobs][:FORGET_AT_ONCE_MAX]
        for key in gone:
            for gather in list(self.by_job[key].values()):
                self.drop(gather)
        return len(gone) >= FORGET_AT_ONCE_MAX

    def drop_requests(self, gather: Gather) -> None:
        """The requests of parts whose members have all succeeded are of no use any more."""
        for number, part in list(gather.parts.items()):
            ends = [gather.ends.get(part.first + i) for i in range(len(part.requests))]
            if all(end is not None and end.is_success for end in ends):
                self.put((gather.digest, PART, number), None)

    # --- rows ---

    def row_key(self, key: RowKey) -> bytes:
        begin = KIND + key[0] + bytes((key[1],))
        return begin if key[1] == HEADER else begin + key[2].to_bytes(4, "big")

    def row_value(self, key: RowKey, value: Row) -> bytes:
        return value.value()

    def read(self, key: bytes, value: bytes) -> tuple[RowKey, Row]:
        row: list[Any] = orjson.loads(value)
        digest, form = key[1 : 1 + _DIGEST_BYTES], key[1 + _DIGEST_BYTES]
        number = int.from_bytes(key[2 + _DIGEST_BYTES :], "big")
        if row[0] != VERSION or form not in (HEADER, PART, END):
            raise UnknownRow(
                f"a row of a gather of version {row[0]}; this ledger reads version {VERSION}"
            )
        if form == HEADER:
            return (digest, form, 0), _header_of(row)
        if form == PART:
            return (digest, form, number), part_of(row[1], row[2])
        return (digest, form, number), End(row[1], row[2]["status"], dumped(row[2]))

    def follow(self, key: RowKey, value: Row | None) -> None:
        digest = key[0]
        gather = self.of_digest.get(digest)
        if gather is None:
            gather = self.of_digest[digest] = Gather(digest)
        if key[1] == HEADER:
            header = value if isinstance(value, Header) else None
            self._index(gather, header)
            gather.set_header(header)
        elif key[1] == PART:
            gather.set_part(key[2], value if isinstance(value, Part) else None)
        else:
            gather.set_end(key[2], value if isinstance(value, End) else None)
        if gather.is_empty:
            del self.of_digest[digest]

    def _index(self, gather: Gather, header: Header | None) -> None:
        known = gather.header if header is None else header
        if known is None:
            return
        if header is not None:
            self.by_job.setdefault(known.key, {})[known.name] = gather
            return
        names = self.by_job.get(known.key)
        if names is not None and names.pop(known.name, None) is not None and not names:
            del self.by_job[known.key]


def dumped(value: object) -> bytes:
    """JSON in memory of its own size: orjson's results keep a buffer of 4 KiB."""
    return b"%b" % orjson.dumps(value)


def part_of(first: int, requests: list[dict[str, Any]]) -> Part:
    """The part of those requests."""
    texts = [dumped(one) for one in requests]
    return Part(first, texts, [sys.intern(one["user_id"]) for one in requests])


def _entries_of(gather: Gather) -> list[bytes]:
    header = gather.head
    name = orjson.dumps(header.name)
    facts = {
        "members": header.members, "failed": gather.unsuccessful,
        "is_tolerated": gather.unsuccessful <= header.tolerated,
    }
    found = [b'[%b,"gather",%b]' % (name, orjson.dumps(facts))]
    pack: list[bytes] = []
    size = 0
    for index in range(header.members):
        end = gather.ends.get(index)
        text = unreleased_end(gather, index) if end is None else end.json
        if pack and size + len(text) > GATHER_PART_BYTES_MAX:
            found.append(b'[%b,"ends",[%b]]' % (name, b",".join(pack)))
            pack, size = [], 0
        pack.append(b"[%d,%b]" % (index, text))
        size += len(text) + OVERHEAD_BYTES
    found.append(b'[%b,"ends",[%b]]' % (name, b",".join(pack)))
    return found


def unreleased_end(gather: Gather, index: int) -> bytes:
    """The end of a member that was never asked for."""
    request = gather.request_at(index)
    return orjson.dumps({
        "user_id": request["user_id"], "job_id": request["job_id"],
        "type": request.get("type") or "",
        "status": State.CANCELLED.value, "reason": Reason.NOT_RELEASED.value, "attempts": 0,
        "finished_at": instant_text(gather.head.over_at),
    })
