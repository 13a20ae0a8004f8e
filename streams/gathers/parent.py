"""The parent's side: its list is collected, members are released, their ends are counted.

Owns when a member is released and when a gather is over. Refuses to know how a member runs.

A gather that has failed (more failures than it tolerates) asks those that are out to stop and is
over once all of them are known ended: so each member has one end, and a redrive meets none that
still runs. A parent that ends while it waits forgets its gather at once; what its members do
afterwards is nobody's business but their own.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import orjson

from tidemill.schemas.requests import GATHER_BYTES_MAX, GATHER_MEMBERS_MAX, ID_LENGTH_MAX
from tidemill.schemas.words import IN_FLIGHT_STATES, State
from tidemill.streams.commands import Gathered
from tidemill.streams.envelope import MESSAGE_BYTES_MAX
from tidemill.streams.gathers import wire
from tidemill.streams.gathers.progress import Progress
from tidemill.streams.gathers.table import (
    COLLECTING,
    END,
    GATHER,
    OPEN,
    OVER,
    PART,
    STOPPING,
    End,
    Gather,
    Gathers,
    Header,
    Part,
    dumped,
    part_of,
)
from tidemill.streams.gathers.watchers import Membership
from tidemill.streams.job import SUSPENSION, Job, JobKey
from tidemill.streams.policies.base import CannotTake

if TYPE_CHECKING:
    from tidemill.streams.store.memory import Memory
    from tidemill.streams.turn import Turn

ID: Final = "gather"
# Bytes of the requests in one part, as they are written again. Each fits a message.
PART_BYTES_MAX: Final = MESSAGE_BYTES_MAX - 65_536
RELEASED_MAX: Final = 1_000  # members released in one group: the group has other work too
ROWS_A_DECISION: Final = 8  # rows that are dropped or written cost about as much as one decision


class Parents:
    """The gathers of jobs that are at home in one partition."""

    def __init__(self) -> None:
        self.table = Gathers()
        self.memory: Memory | None = None  # set by `PartitionState`
        self.progress = Progress()
        self._roomy: dict[bytes, None] = {}  # gathers that may release somebody

    def clear(self) -> None:
        """After a restore or an undo: what may be released is found anew."""
        self._roomy = {}
        self.progress.clear()
        for gather in self.table.of_digest.values():
            if gather.has_room:
                self._roomy[gather.digest] = None
            if gather.header is not None and gather.header.state in (OPEN, STOPPING):
                self.progress.note(gather.digest)

    # --- the list ---

    def collect(self, turn: Turn, job: Job, outcome: dict[str, Any]) -> None:
        """A part of a list, from the attempt that is out. What comes of another one is passed over,
        and so is what comes again, and what is for a gather that has its list."""
        if job.state not in IN_FLIGHT_STATES or job.epoch != outcome["epoch"]:
            return
        name, number, requests = outcome["name"], outcome["part"], outcome["requests"]
        gather = self.table.find(job.key, name)
        if gather is not None and gather.head.incarnation != job.spec.requested_at:
            self.table.drop(gather)
            gather = None
        if gather is not None and gather.head.state != COLLECTING:
            return
        if gather is None or gather.head.epoch != job.epoch:
            if gather is not None:
                self.table.drop(gather)
            self.table.put_header(Header(job.key, job.spec.requested_at, name, job.epoch))
            gather = self.table.find(job.key, name)
        if gather is None or number != gather.head.parts:
            return
        first = gather.head.members
        part = _part_of(first, requests, job, name)
        if part is None:
            return
        has_room = (
            first + len(requests) <= GATHER_MEMBERS_MAX
            and gather.asked_bytes + part.size <= GATHER_BYTES_MAX
        )
        if has_room:
            header = gather.head.copy()
            header.parts, header.members = number + 1, first + len(requests)
            self.table.put((gather.digest, PART, number), part)
            self.table.put_header(header)
            turn.spend(1 + part.size // wire.PACK_BYTES_MAX)

    def listed(self, job: Job, waits: dict[str, Any]) -> int | None:
        """How many members the gather has. None: not all parts of its list have come, and the
        suspension does not count."""
        gather = self.table.of_job(job, waits["name"])
        if gather is None:
            return None
        header = gather.head
        is_whole = header.state == OVER or (
            header.state == COLLECTING and header.epoch == job.epoch
            and (header.parts, header.members) == (waits["parts"], waits["members"])
        )
        return header.members if is_whole else None

    def is_settled(self, job: Job, name: str) -> bool:
        """Whether the handler may go on at once."""
        gather = self.table.of_job(job, name)
        return gather is not None and self.table.is_settled(gather, job)

    def begin(self, turn: Turn, job: Job, data: dict[str, Any]) -> None:
        """The handler waits. What succeeded in an earlier run stays."""
        gather = self.table.of_job(job, data["name"])
        if gather is None or job.state is not State.AWAITING or self.table.is_settled(gather, job):
            return
        header = gather.head.copy()
        header.state, header.run, header.released = OPEN, job.run, 0
        header.first_run = header.first_run or job.run
        header.parallel = data["parallel"] or header.members
        header.tolerated = wire.tolerated(data["tolerate"], header.members) or 0
        header.opened_at = turn.now_ms
        self.table.put_header(header)
        self._look_at(gather)

    # --- release ---

    def next_at(self) -> int | None:
        """Epoch ms at which `work` has something to do; None: not by itself."""
        return 0 if self._roomy else self.progress.next_at()

    def work(self, turn: Turn, at_most: int) -> None:
        """Releases whom it may, and tells how far gathers are."""
        left = min(at_most, RELEASED_MAX)
        for digest in list(self._roomy):
            if left <= 0:
                break
            del self._roomy[digest]
            gather = self.table.of_digest.get(digest)
            if gather is not None and gather.has_room:
                left -= self._release(turn, gather, left)
                self._look_at(gather)
        self.progress.work(turn, self.table)

    def _look_at(self, gather: Gather) -> None:
        if gather.has_room:
            self._roomy[gather.digest] = None

    def _release(self, turn: Turn, gather: Gather, at_most: int) -> int:
        """The next ones in their order. Those that succeeded in an earlier run are passed over."""
        header = gather.head.copy()
        room = min(header.parallel - gather.live, at_most)
        by_home: dict[int, list[wire.Entry]] = {}
        released = 0
        while released < room and header.released < header.members:
            index = header.released
            header.released += 1
            if gather.counts(index):
                continue
            released += 1
            part = gather.part_at(index)
            at = index - part.first
            if header.run == header.first_run:
                text = b"[%d,%b,null]" % (index, part.requests[at])
            else:
                text = _asked_again(gather, header, index)
            home = turn.partition_of(part.users[at])
            by_home.setdefault(home, []).append((index, text))
        self.table.put_header(header)
        job = turn.job(header.key)
        facts = {
            "kind": "release", "of": membership_of(header),
            "traceparent": None if job is None else job.spec.traceparent,
        }
        _send(turn, by_home, facts, "members")
        turn.spend(released)
        return released

    # --- ends ---

    def take_ends(self, turn: Turn, of: Membership, ends: list[list[Any]]) -> bool:
        """Members have ended. False: nobody waits for them any more."""
        gather = self.table.find((of[0], of[1]), of[3])
        if gather is None:
            return False
        header = gather.head
        is_awaited = header.state in (OPEN, STOPPING) and membership_of(header) == of
        if not is_awaited:
            return False
        for index, end in ends:
            if not 0 <= index < header.members or not wire.is_end(end):
                raise CannotTake("it has an end that is none, or of a member that was never asked")
        for index, end in ends:
            if index < header.released and not gather.counts(index):
                self._put_end(gather, index, end)
        turn.spend(len(ends) // ROWS_A_DECISION)
        self.progress.note(gather.digest)
        self._settle(turn, gather)
        return True

    def _put_end(self, gather: Gather, index: int, end: dict[str, Any]) -> None:
        header = gather.head
        text = dumped(end)
        memory = self.memory
        if memory is not None and "result" in end and not memory.has_room(header.key, len(text)):
            del end["result"]
            end["result_omitted"] = True
            text = dumped(end)
        key = (gather.digest, END, index)
        self.table.put(key, End(header.run, end["status"], text))

    def _settle(self, turn: Turn, gather: Gather) -> None:
        """What follows from the ends so far."""
        header = gather.head
        if header.state == OPEN and gather.failed > header.tolerated:
            stopping = header.copy()
            stopping.state = STOPPING
            self.table.put_header(stopping)
            self._stop(turn, gather, forgets=False)
        if gather.is_complete:
            over = gather.head.copy()
            over.state, over.over_at = OVER, turn.now_ms
            self.table.put_header(over)
            self.table.drop_requests(gather)
            self.progress.drop(gather.digest)
            job = turn.job(over.key)
            if job is not None and job.waits_for == (SUSPENSION, GATHER, over.name):
                turn.command(over.key, Gathered(over.name))
        self._look_at(gather)

    def facts_of(self, job: Job, name: str) -> dict[str, Any]:
        """What the events of the parent say of a gather that is over."""
        gather = self.table.of_job(job, name)
        if gather is None:
            return {"name": name, "kind": GATHER}
        header = gather.head
        failed = gather.unsuccessful
        return {
            "name": name, "kind": GATHER, "members": header.members, "failed": failed,
            "is_tolerated": failed <= header.tolerated,
        }

    def _stop(self, turn: Turn, gather: Gather, *, forgets: bool) -> None:
        """Those that are out are asked to stop, as far as they are the gather's own."""
        header = gather.head
        if not gather.live:
            return
        by_home: dict[int, list[wire.Entry]] = {}
        for index in range(header.released):
            if gather.counts(index):
                continue
            request = gather.request_at(index)
            again = _next_id(header, request)
            last = gather.ends.get(index)
            job_id = request["job_id"] if last is None else orjson.loads(last.json)["job_id"]
            home = turn.partition_of(request["user_id"])
            text = orjson.dumps([index, request["user_id"], job_id, again])
            by_home.setdefault(home, []).append((index, text))
        facts = {"kind": "stop", "of": membership_of(header), "forgets": forgets}
        _send(turn, by_home, facts, "members")
        turn.spend(gather.live // ROWS_A_DECISION)

    # --- the parent's end ---

    def job_ended(self, turn: Turn, job: Job) -> None:
        """A job has ended: its gathers go with it, or stay for a redrive."""
        for gather in list(self.table.by_job.get(job.key, {}).values()):
            header = gather.head
            if header.state in (OPEN, STOPPING):
                self._stop(turn, gather, forgets=True)
            if job.is_dead_letter and header.state != COLLECTING:
                if header.state != OVER:
                    over = header.copy()
                    over.state, over.over_at = OVER, turn.now_ms
                    self.table.put_header(over)
                continue
            self.progress.drop(gather.digest)
            turn.spend((len(gather.ends) + len(gather.parts)) // ROWS_A_DECISION)
            self.table.drop(gather)


def membership_of(header: Header) -> Membership:
    """What a message calls the gather."""
    return (header.key[0], header.key[1], header.incarnation, header.name, header.run)


def _part_of(
    first: int, requests: list[dict[str, Any]], job: Job, name: str
) -> Part | None:
    """None: what no worker sends, as it fits no row and no message, or cannot be written."""
    filled = [_filled(one, job, name, first + at) for at, one in enumerate(requests)]
    try:
        part = part_of(first, filled)
    except TypeError:  # nested too deep
        return None
    return part if part.size <= PART_BYTES_MAX else None


def _filled(request: dict[str, Any], job: Job, name: str, index: int) -> dict[str, Any]:
    """The request of a member with what the parent says where it says nothing."""
    filled = dict(request)
    if filled.get("user_id") is None:
        filled["user_id"] = job.spec.user_id
    if filled.get("job_id") is None:
        filled["job_id"] = default_id(job.key, name, index)
    return filled


def default_id(parent: JobKey, name: str, index: int) -> str:
    """The id of a member that was asked for without one."""
    job_id = f"{parent[1]}.{name}.{index}"
    if len(job_id) <= ID_LENGTH_MAX:
        return job_id
    digest = blake2b(parent[1].encode(), digest_size=16).hexdigest()
    return f"{digest}.{name}.{index}"


def _asked_again(gather: Gather, header: Header, index: int) -> bytes:
    """A member of an earlier run: by the id that it had last, and the one that it may have now."""
    request = gather.request_at(index)
    again = _next_id(header, request)
    last = gather.ends.get(index)
    if last is not None:
        request["job_id"] = orjson.loads(last.json)["job_id"]
    return orjson.dumps([index, request, again])


def _next_id(header: Header, request: dict[str, Any]) -> str | None:
    """Under which id a member runs again that cannot be redriven; None in the first run."""
    if header.run == header.first_run:
        return None
    suffix = f"!{header.run}"
    job_id: str = request["job_id"]
    return job_id[: ID_LENGTH_MAX - len(suffix)] + suffix


def _send(
    turn: Turn, by_home: dict[int, list[wire.Entry]], facts: dict[str, Any], name: str
) -> None:
    for home in sorted(by_home):
        for pack in wire.packs(by_home[home]):
            body = dict(facts)
            body[name] = [orjson.Fragment(text) for text in pack]
            turn.send_to(home, ID, body)
