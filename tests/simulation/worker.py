"""Simulated workers: they take packs, run them on the virtual clock, die, freeze and repeat.

Owns what a worker may do to the ledger: late, lost, doubled and stale outcomes. Refuses to know
how the real one runs handlers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from zlib import crc32

import orjson

from tests.simulation.memory_log import MemoryLog, Place
from tidemill.agents.ledger.workers import groups_of
from tidemill.schemas.topics import READY_PARTITIONS, Topics
from tidemill.schemas.wire import HEARTBEAT_MISSING_SECONDS, LATE_START_SECONDS
from tidemill.streams.dispatch.slot_pool import Groups, SlotPoolName
from tidemill.streams.partition import Capacity

SLOTS: Final = 4  # jobs that one worker runs at once
MISSING_MS: Final = int(HEARTBEAT_MISSING_SECONDS * 1000)
LATE_START_MS: Final = int(LATE_START_SECONDS * 1000)
KILLERS: Final = 60  # one job in so many ends each worker that begins it
APART_FROM_RESCUES: Final = 3  # from here on it ends a process of its own
SLOW_MS_MAX: Final = 25_000  # the longest attempt

USERS: Final = ("user-1", "user-2", "a/b", 'say "ü"', "100%2F", "system:nightly")
Ends: Final = ("succeeded", "failed", "fatal", "skipped", "parent", "suspended")
FAN: Final = "fan"  # jobs of this type gather members
MEMBER_TYPES: Final = ("quick", "side", "two-at-once")
MEMBERS_MAX: Final = 12
REMEMBERED_MAX: Final = 4  # entries of a job that does no more steps and sleeps no more
NAP_MS_MAX: Final = 9_000
SIGNALS: Final = ("go", "stop")  # names that jobs wait for, and that somebody gives at any time


@dataclass(slots=True)
class Run:
    """One attempt on its way."""

    job: dict[str, Any]
    ledger_partition: int
    place: tuple[Place, int]  # of its ready record
    end: str
    started_at: int
    ends_at: int
    has_told_start: bool = False


@dataclass(slots=True)
class ReadyGroup:
    """The consumer group of the workers: which record may be forgotten."""

    committed: dict[Place, int] = field(default_factory=dict)
    open: dict[Place, dict[int, int]] = field(default_factory=dict)  # offset -> jobs not told of
    deaths: Counter[tuple[str, str, int]] = field(default_factory=Counter)  # by killers, by run


class Worker:
    """One worker process. `worker_id` survives it, `incarnation` does not."""

    def __init__(
        self,
        log: MemoryLog,
        topics: Topics,
        worker_id: str,
        now_ms: int,
        rng: Random,
        lacks: frozenset[str] = frozenset(),
    ) -> None:
        self.lacks = lacks  # types that its modules do not have
        self.worker_id = worker_id
        self.incarnation = now_ms
        self.beat_at = now_ms
        self.frozen_until = 0
        self.is_kind = False
        self.is_dead = False
        self.doubtful_until: dict[Place, int] = {}
        self.runs: list[Run] = []
        self.positions: dict[Place, int] = {}
        self._log = log
        self._topics = topics
        self._rng = rng
        self._outcomes: list[tuple[int, dict[str, Any], tuple[Place, int]]] = []
        self._control_position = 0

    @property
    def free(self) -> int:
        return SLOTS - len(self.runs)

    def step(self, now_ms: int, group: ReadyGroup) -> None:
        """Everything that the process does in one moment."""
        if now_ms < self.frozen_until:
            return
        self.beat_at = now_ms
        self._hear()
        self._go_on(now_ms)
        self._take(now_ms, group)
        if self.is_dead:
            return
        if self.is_kind or self._rng.random() < 0.8:
            self._write(group)

    def _hear(self) -> None:
        """Words of jobs.control: a cancelled attempt ends at once."""
        for record in self._log.read((self._topics.control, 0), self._control_position, 100):
            self._control_position = record.offset + 1
            word = orjson.loads(record.value or b"")
            for run in self.runs:
                if all(run.job[name] == word[name] for name in ("user_id", "job_id", "epoch")):
                    run.end, run.ends_at = "failed", 0

    def _go_on(self, now_ms: int) -> None:
        going: list[Run] = []
        for run in self.runs:
            if now_ms >= run.ends_at:
                if run.end == "gather":
                    self._gather(run, now_ms)
                    continue
                self._outcomes.append(
                    (run.ledger_partition, self._outcome_of(run, now_ms), run.place)
                )
                continue
            going.append(run)
            if not run.has_told_start and now_ms - run.started_at >= LATE_START_MS:
                run.has_told_start = True
                self._tell(run, "started", started_at=run.started_at)
            elif run.has_told_start and self._rng.random() < 0.1:
                self._tell(run, "progressed", progress={"percent": 50.0})
            elif run.has_told_start and self._rng.random() < 0.1:
                name = f"step {self._rng.randrange(3)}"
                if name not in remembered_by(run.job):
                    self._tell(run, "stepped", name=name, result={"n": now_ms})
        self.runs = going

    def _tell(self, run: Run, kind: str, **facts: Any) -> None:
        self._outcomes.append((run.ledger_partition, outcome(run.job, kind, **facts), run.place))

    def _gather(self, run: Run, now_ms: int) -> None:
        """Its handler asks for members, in parts, and waits for them."""
        rng = self._rng
        asked = [self._member() for _ in range(rng.randrange(1, MEMBERS_MAX))]
        name = f"members {run.job['run'] % 2}"
        parts = [asked[at : at + 3] for at in range(0, len(asked), 3)]
        for number, part in enumerate(parts):
            self._tell(run, "members", name=name, part=number, requests=part)
        waits = {
            "kind": "gather", "name": name, "parts": len(parts), "members": len(asked),
            "parallel": rng.choice((None, 1, 3)),
            "tolerate": rng.choice(({"count": 0}, {"count": 2}, {"share": 0.5}, {"share": 1.0})),
        }
        times = {"started_at": run.started_at, "finished_at": max(now_ms, run.started_at)}
        self._tell(run, "suspended", waits=waits, **times)

    def _member(self) -> dict[str, Any]:
        """A request; some are for jobs that others ask for too, some are refused."""
        rng = self._rng
        body: dict[str, Any] = {"type": rng.choice(MEMBER_TYPES), "payload": {"n": 1, "kind": 1}}
        if rng.random() < 0.8:
            body["user_id"] = rng.choice(USERS)
        draw = rng.random()
        if draw < 0.2:
            body["job_id"] = f"shared-{rng.randrange(8)}"
        elif draw < 0.25:
            body["max_attempts"] = 0
        elif draw < 0.3:
            body["expires_at"] = 1
        return body

    def _outcome_of(self, run: Run, now_ms: int) -> dict[str, Any]:
        times = {"started_at": run.started_at, "finished_at": max(now_ms, run.started_at)}
        match run.end:
            case "failed" | "fatal":
                retryable = run.end == "failed"
                error = {"code": "X", "message": "as drawn", "retryable": retryable}
                after_ms = self._rng.choice((None, None, 0, 1_500))
                return outcome(run.job, "failed", error=error, retry_after_ms=after_ms, **times)
            case "skipped":
                return outcome(run.job, "skipped", reason="nothing to do", **times)
            case "suspended":
                lasts_ms = self._rng.choice((0, self._rng.randrange(NAP_MS_MAX)))
                waits: dict[str, Any] = {
                    "kind": "sleep", "name": f"nap {len(remembered_by(run.job))}",
                    "for_ms": lasts_ms,
                }
                left = [name for name in SIGNALS if name not in remembered_by(run.job)]
                if left and self._rng.random() < 0.5:
                    waits = {
                        "kind": "signal", "name": self._rng.choice(left), "timeout_ms": lasts_ms
                    }
                return outcome(run.job, "suspended", waits=waits, **times)
            case "parent":
                children = [
                    {"type": "quick", "payload": {"n": 1}},
                    {"type": "quick", "user_id": self._rng.choice(USERS)},
                    {"type": "quick", "surprise": 1},
                ]
                return outcome(run.job, "succeeded", children=children, result=1, **times)
            case _:
                return outcome(run.job, "succeeded", result={"n": 1}, **times)

    def _take(self, now_ms: int, group: ReadyGroup) -> None:
        for place, position in self.positions.items():
            for record in self._log.read(place, position, 2):
                if self.free <= 0 and self._rng.random() < 0.7:
                    break
                self.positions[place] = record.offset + 1
                pack = orjson.loads(record.value or b"")
                group.open.setdefault(place, {})[record.offset] = len(pack["jobs"])
                for job in pack["jobs"]:
                    self._meet(job, pack["ledger_partition"], (place, record.offset), now_ms, group)
                    if self.is_dead:
                        return

    def _meet(
        self,
        job: dict[str, Any],
        ledger_partition: int,
        place: tuple[Place, int],
        now_ms: int,
        group: ReadyGroup,
    ) -> None:
        """A job of a ready record: what may have been delivered before is given back, though a
        worker of an older release would run it; one that kills ends this process."""
        is_killer = kills(job)
        is_doubtful = place[1] < self.doubtful_until.get(place[0], 0)
        if is_doubtful and (is_killer or self._rng.random() < 0.8):
            handed_back = outcome(job, "returned", reason="redelivered", detail="it died")
            self._outcomes.append((ledger_partition, handed_back, place))
            return
        if not is_killer or self.free <= 0:
            self._begin(job, ledger_partition, place, now_ms)
            return
        if job.get("rescues"):
            told = outcome(job, "started", started_at=now_ms)
            self._outcomes.append((ledger_partition, told, place))
            self._write(group)
        if job.get("rescues", 0) >= APART_FROM_RESCUES:  # it ends a process of its own
            error = {"code": "WORKER_LOST", "message": "it died apart", "retryable": False}
            died = outcome(job, "failed", started_at=now_ms, finished_at=now_ms, error=error)
            self._outcomes.append((ledger_partition, died, place))
            return
        group.deaths[job["user_id"], job["job_id"], job["run"]] += 1
        self.is_dead = True

    def _begin(
        self, job: dict[str, Any], ledger_partition: int, place: tuple[Place, int], now_ms: int
    ) -> None:
        if self.free <= 0 or job["type"] in self.lacks:
            reason = "type_not_run" if job["type"] in self.lacks else "no_free_slot"
            handed_back = outcome(job, "returned", reason=reason)
            self._outcomes.append((ledger_partition, handed_back, place))
            return
        end = self._rng.choices(Ends, (60, 16, 3, 3, 8, 10))[0]
        if job["type"] == FAN and not gathered_by(job):
            end = "gather"
        elif self.is_kind or (end == "suspended" and len(remembered_by(job)) >= REMEMBERED_MAX):
            end = "succeeded"
        is_slow = not self.is_kind and self._rng.random() < 0.25
        lasts = self._rng.randrange(SLOW_MS_MAX) if is_slow else self._rng.randrange(60)
        self.runs.append(Run(job, ledger_partition, place, end, now_ms, now_ms + lasts))

    def _write(self, group: ReadyGroup) -> None:
        """Outcomes become durable; then their ready records may be forgotten."""
        by_partition: dict[int, list[dict[str, Any]]] = {}
        for partition, told, _ in self._outcomes:
            by_partition.setdefault(partition, []).append(told)
        for partition, listed in by_partition.items():
            value = orjson.dumps(
                {
                    "schema_version": 1, "worker_id": self.worker_id,
                    "incarnation": self.incarnation, "outcomes": listed,
                }
            )
            is_doubled = not self.is_kind and self._rng.random() < 0.1
            for _ in range(1 + is_doubled):
                self._log.append(
                    self._topics.outcomes, partition, key=None, value=value, now_ms=self.beat_at
                )
        for _, told, (place, offset) in self._outcomes:
            if told["kind"] != "progressed":
                _forget(group, place, offset)
        self._outcomes = []


def kills(job: Mapping[str, Any]) -> bool:
    """Whether this job ends each worker that begins it."""
    return crc32(job["job_id"].encode()) % KILLERS == 0


def remembered_by(job: Mapping[str, Any]) -> set[str]:
    """The names that came with the dispatch."""
    return {name for name, _, _ in job.get("memory", ())}


def gathered_by(job: Mapping[str, Any]) -> set[str]:
    """The gathers that are over."""
    return {name for name, kind, _ in job.get("memory", ()) if kind == "gather"}


def outcome(job: Mapping[str, Any], kind: str, **facts: Any) -> dict[str, Any]:
    """An outcome of one job of a ready pack."""
    named = {name: job[name] for name in ("user_id", "job_id", "run", "attempt", "epoch")}
    return {"kind": kind, **named, **facts}


def _forget(group: ReadyGroup, place: Place, offset: int) -> None:
    """Commits the contiguous prefix of records whose jobs are all told of."""
    open_records = group.open.get(place, {})
    if offset in open_records:
        open_records[offset] -= 1
    while open_records:
        first = min(open_records)
        if open_records[first] > 0:
            return
        del open_records[first]
        group.committed[place] = first + 1


def assign(
    log: MemoryLog, workers: list[Worker], queues: list[str], topics: Topics, group: ReadyGroup
) -> None:
    """A rebalance: partitions are dealt out anew, what was read and not told comes again."""
    group.open.clear()
    for worker in workers:
        worker.positions = {}
        worker.doubtful_until = {}
    for queue in queues:
        for partition in range(READY_PARTITIONS):
            if workers:
                place = (topics.ready(queue), partition)
                owner = workers[partition % len(workers)]
                owner.positions[place] = group.committed.get(place, 0)
                owner.doubtful_until[place] = log.end(place)


def alive_of(workers: list[Worker], now_ms: int) -> dict[str, int]:
    """What the heartbeats of the last ten seconds say."""
    return {
        worker.worker_id: worker.incarnation
        for worker in workers
        if now_ms - worker.beat_at < MISSING_MS
    }


def told_of(
    workers: list[Worker], queues: list[str], types: Iterable[str], now_ms: int
) -> dict[str, Groups]:
    """By queue, what the workers run that still beat."""
    living = [worker for worker in workers if now_ms - worker.beat_at < MISSING_MS]
    known = sorted(types)
    groups = groups_of([[name for name in known if name not in w.lacks] for w in living])
    return dict.fromkeys(queues, groups) if living else {}


def capacity_of(
    workers: list[Worker],
    queues: list[str],
    topics: Topics,
    now_ms: int,
    told: Mapping[str, Groups],
) -> dict[SlotPoolName, Capacity]:
    """Free slots by line, of the workers that still beat."""
    living = [worker for worker in workers if now_ms - worker.beat_at < MISSING_MS]
    found: dict[SlotPoolName, Capacity] = {}
    for queue in queues if living else ():
        topic, groups = topics.ready(queue), told[queue]
        for group in sorted(set(groups.values())):
            types = {name for name, of in groups.items() if of == group}
            there = [worker for worker in living if not types & worker.lacks]
            partitions = sorted(p for w in there for t, p in w.positions if t == topic)
            if partitions:
                found[SlotPoolName(queue, "async", group)] = Capacity(
                    slots=SLOTS * len(there), free=sum(max(0, worker.free) for worker in there),
                    workers=len(there), partitions=tuple(partitions),
                )
    return found
