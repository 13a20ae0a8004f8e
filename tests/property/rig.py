"""One partition with its log and rows in memory, and the folds that judge it after each group.

Owns the running of groups and the comparisons. The folds are the chaos checker's: written from the
design, they import nothing of the engine, so they serve as the naive model here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from tests.chaos.jobfold import JobFold, JobId
from tests.chaos.legal import TERMINAL
from tests.chaos.promises import (
    Asked,
    CollapseFold,
    ConcurrencyFold,
    DueFold,
    Limit,
    LimitFold,
    UniqueFold,
)
from tests.chaos.rawlog import RawRecord
from tests.chaos.report import Report
from tests.unit.message_kit import relays
from tests.unit.partition_kit import decided, keep, restored
from tidemill.schemas.batch_builder import OutRecord
from tidemill.schemas.requests import MEMORY_BYTES_MAX
from tidemill.schemas.topics import Topics
from tidemill.schemas.wire import Definition
from tidemill.schemas.words import IN_FLIGHT_STATES
from tidemill.streams.dispatch.slot_pool import SlotPoolName
from tidemill.streams.job import Job
from tidemill.streams.limits import NOTHING_USED
from tidemill.streams.partition import Capacity, Partition
from tidemill.streams.store import rows
from tidemill.streams.store.finished import Ended
from tidemill.streams.store.kept_cancels import cancel_value
from tidemill.streams.store.state import PartitionState

TOPICS: Final = Topics()
WORKER: Final = "worker-1"
START_MS: Final = 1_760_000_000_000
ENTRY_BYTES_MAX: Final = 1_000  # of a name of 128 characters and what is written around it


@dataclass(frozen=True, slots=True)
class Input:
    """One record that waits for the next group."""

    topic: str
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


class Rig:
    """Partition 0 of 1, driven group by group."""

    def __init__(
        self,
        *,
        limits: Mapping[str, tuple[Limit, ...]] | None = None,
        concurrency: Mapping[str, int] | None = None,
        max_attempts: Mapping[str, int] | None = None,
    ) -> None:
        self.asked: dict[JobId, Asked] = {}
        self.report = Report()
        self.fold = JobFold(self.report, dict(max_attempts or {}))
        self.limits = LimitFold(self.report, limits or {})
        self.concurrency = ConcurrencyFold(self.report, concurrency or {})
        self.collapse = CollapseFold(self.report)
        self.due = DueFold(self.report, self.asked)
        self.unique = UniqueFold(self.report, self.asked)
        self.memory_max = MEMORY_BYTES_MAX
        self.known: dict[JobId, dict[str, list[Any]]] = {}  # what events say is remembered
        self.rows: dict[bytes, bytes] = {}
        self.offsets = dict.fromkeys(TOPICS.ledger_inputs, 0)
        self.taken: list[tuple[str, RawRecord]] = []
        self.events: list[dict[str, Any]] = []
        self.alive: dict[str, int] = {WORKER: 1}
        self.slots = 4
        self.definitions: dict[str, Definition] = {}
        self.engine = self.restored(START_MS)

    def restored(self, now_ms: int) -> Partition:
        """A new owner over the committed rows."""
        return restored(self.rows.items(), now_ms, policies=relays)

    # --- groups ---

    def records(self, inputs: Sequence[Input]) -> list[tuple[str, RawRecord]]:
        """The inputs as records, behind what was read before; gaps as transactions leave them."""
        made: list[tuple[str, RawRecord]] = []
        for given in inputs:
            offset = self.offsets[given.topic]
            self.offsets[given.topic] += 1 + offset % 2
            record = RawRecord(
                given.topic, 0, offset, START_MS, b"key", given.value, given.headers
            )
            made.append((given.topic, record))
        return made

    def decide(
        self, records: Sequence[tuple[str, RawRecord]], now_ms: int
    ) -> tuple[list[OutRecord], int]:
        """Everything up to the commit: the records, and how many the inputs alone led to."""
        room = Capacity(self.slots, self.slots, 1, (0, 1))
        lines = [SlotPoolName(queue, "async") for queue in ("default", "side")]
        out = decided(
            self.engine, now_ms, [record for _, record in records],
            alive=self.alive,
            rooms=dict.fromkeys(lines, room) if self.slots and self.alive else {},
            definitions=self.definitions.values(),
        )
        return list(out), len(records)

    def commit(self, records: Sequence[tuple[str, RawRecord]], now_ms: int) -> list[dict[str, Any]]:
        """A whole group; the events that it wrote."""
        out, _ = self.decide(records, now_ms)
        self.engine.commit()
        self.taken += records
        return self.write(out)

    def write(self, out: Sequence[OutRecord]) -> list[dict[str, Any]]:
        """What a committed transaction leaves: rows, and events for the folds."""
        keep(self.rows, out)
        written: list[dict[str, Any]] = []
        for topic, _, key, value, _ in out:
            if topic == TOPICS.events:
                written.append(self._feed(RawRecord(topic, 0, len(self.events), 0, key, value)))
        parts: dict[JobId, list[list[Any]]] = {}
        for topic, _, _, value, _ in out:
            if topic.startswith(TOPICS.ready("")):
                self._check_sent(orjson.loads(value or b""), parts)
        return written

    def _check_sent(self, pack: dict[str, Any], parts: dict[JobId, list[list[Any]]]) -> None:
        """A dispatch brings what the job remembers: all of it, and nothing else."""
        part = pack.get("part")
        if part is not None:
            parts.setdefault((part["user_id"], part["job_id"]), []).extend(part["entries"])
        for job in pack["jobs"]:
            key = (job["user_id"], job["job_id"])
            listed = parts.pop(key, None) or job.get("memory") or ()
            brought = {name: [kind, result] for name, kind, result in listed}
            assert brought == self.known.get(key, {}), job

    def _remember(self, event: dict[str, Any]) -> None:
        """The oracle of memory: the first result of a name counts, until the job ends for good."""
        key = (event["user_id"], event["job_id"])
        if event["event"] in ("step_completed", "resumed"):
            data = event["data"]
            value = data.get("value" if data["kind"] == "signal" else "result")
            found = [data["kind"], value]
            self.known.setdefault(key, {}).setdefault(data["name"], found)
        elif event["event"] in TERMINAL and event["event"] != "failed":
            self.known.pop(key, None)

    def _feed(self, record: RawRecord) -> dict[str, Any]:
        read = self.fold.feed(record)
        assert read is not None, record
        trace, step, event = read
        self.events.append(event)
        self._remember(event)
        if step.sequence is not None:
            self.limits.feed(trace, step)
            self.concurrency.feed(trace, step)
            self.collapse.feed(trace, step, event)
            self.due.feed(trace, step, event)
            self.unique.feed(trace, step)
        return event

    # --- judgement ---

    def check(self) -> None:
        """Folds are clean, rows give the live state, and so do the events."""
        self.collapse.finish()
        assert self.report.is_clean, self.report.text()
        kept, held = observable(self.restored(0).state), observable(self.engine.state)
        # A group that wrote nothing moves the live clock alone; the fold sees that no event does.
        assert kept.pop("clock") <= held.pop("clock")
        for part, value in held.items():
            assert kept[part] == value, part
        cancels = {cancel.key: cancel.cause for cancel in self.engine.state.cancels}
        assert cancels == self.fold.kept.waiting
        self._check_memory()
        signals = {key: one.cause for key, one in self.engine.state.signals.values.items()}
        assert signals == self.fold.signals.waiting
        live = self.engine.state.jobs
        for key, trace in self.fold.jobs.items():
            job = live.get(key)
            if job is None:
                assert not trace.is_live, trace.story()
                continue
            found = (job.state, job.sequence, job.run, job.epoch, job.attempt)
            last = [step for step in trace.steps if step.sequence is not None][-1]
            wanted = (trace.state, trace.sequence, trace.run, trace.epoch, last.attempt)
            assert found == wanted, trace.story()
        assert live.keys() <= self.fold.jobs.keys()

    def _check_memory(self) -> None:
        memory = self.engine.state.memory
        kept: dict[JobId, dict[str, list[Any]]] = {}
        for key, entries in memory.by_job.items():
            listed = [orjson.loads(entry.json) for entry in entries.values()]
            kept[(key[0], key[1])] = {name: [kind, result] for name, kind, result in listed}
            assert memory.size_of(key) == sum(entry.size for entry in entries.values())
            assert memory.size_of(key) <= self.memory_max + ENTRY_BYTES_MAX * len(entries)
        assert kept == self.known

    def in_flight(self) -> list[Job]:
        """Jobs whose attempt is out, in an order that does not depend on hashes."""
        jobs = self.engine.state.jobs.values()
        return [job for job in jobs if job.state in IN_FLIGHT_STATES]


def observable(state: PartitionState) -> dict[str, Any]:
    """Everything that a later decision may depend on, in a form that compares."""
    uses = state.policies.rate_limit.uses.values
    used = {name: value for name, value in uses.items() if value != NOTHING_USED}
    ended: dict[bytes, Ended | None] = {
        digest: state.finished.get(digest) for digest in state.finished
    }
    return {
        "jobs": {key: rows.live_value(job) for key, job in state.jobs.items()},
        "finished": ended, "limits": used, "unique": dict(state.policies.uniqueness.holders),
        "definitions": dict(state.definitions), "applied": dict(state.applied),
        "clock": state.clock_ms, "accepted": state.accepted,
        "dead": set(state._jobs.dead_letters),
        "cancels": [cancel_value(cancel) for cancel in state.cancels],
        "memory": {
            name: (entry.json, entry.incarnation) for name, entry in state.memory.values.items()
        },
        "signals": [state.signals.row_value(key, one) for key, one in state.signals.values.items()],
        "signals_of": (state.signals.by_job, state.signals._of_user, state.signals._size),
    }


def pack(outcomes: Sequence[Any], *, worker: str = WORKER, incarnation: int = 1) -> bytes:
    """An outcome record."""
    return orjson.dumps(
        {
            "schema_version": 1, "worker_id": worker, "incarnation": incarnation,
            "outcomes": outcomes,
        }
    )


def outcome_of(job: Job, kind: str, **facts: Any) -> dict[str, Any]:
    """What a worker says of the job's last dispatch."""
    named = {
        "user_id": job.spec.user_id, "job_id": job.spec.job_id, "run": job.run,
        "attempt": job.attempt, "epoch": job.epoch,
    }
    return {"kind": kind, **named, **facts}
