"""Tidemill behind the `Program` protocol: as `tidemill dev` runs it, and at its best on two cores.

Owns what is measured and from when to when. Refuses to know how processes are started
(`dev_stack`). The full pipeline is on: validation, events, a rate limit on the no-op type that is
checked for each job and never bites, the sink with page and ClickHouse port.

Drain, strict: the ledger is frozen (SIGSTOP) while the jobs are enqueued, so of their whole way
nothing is done when the clock starts, not even their acceptance; a peer's jobs are rows or list
items in its database by then. `TidemillAccepted` measures what the peers measure: the backlog is
accepted, the worker's slots are held, and the clock starts when they are let go. The clock stops
when a read_committed consumer has seen the last record on `jobs.completed`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping

from benchmarks.dev_stack import DevStack
from benchmarks.noop_jobs import GATE_POLL_SECONDS, NOOP, USERS
from benchmarks.pace import Pace
from benchmarks.processes import wait_until
from benchmarks.program import (
    LATENCY_WARMUP_SECONDS,
    MEASURE_DEADLINE_SECONDS,
    WARMUP_JOBS,
    Latency,
    NotMeasuredError,
    Program,
    check_rate_held,
)
from benchmarks.watching import EndWatcher
from tidemill import Client, Request
from tidemill.schemas.topics import Topics

HOLD = "bench.hold"
ENDED = "state_after = 'succeeded'"
TOPICS = Topics()
# A stopped ledger is put out of its group after 10 s, and what follows would be a takeover.
FREEZE_SECONDS_MAX = 9.0
# How long no job may end before the run counts as hung.
STALL_SECONDS = 30.0
# Between two looks at whether the backlog was accepted.
POLL_SECONDS = 0.05


def noops(jobs: int, tag: str) -> Iterator[Request]:
    """Requests of `USERS` users in turn; the ids tell their order."""
    for number in range(jobs):
        yield Request(
            type=NOOP,
            user_id=f"user-{number % USERS}",
            job_id=f"{tag}-{number}",
            payload={"number": number},
        )


def new_tag() -> str:
    """In front of job ids: every run asks for new jobs."""
    return uuid.uuid4().hex[:12]


class Tidemill:
    """See `Program`."""

    def __init__(
        self, name: str, title: str, *, concurrency: int = 200, extra_ledgers: int = 0
    ) -> None:
        self.name = name
        self.title = title
        self.concurrency = concurrency
        self.stack = DevStack(concurrency=concurrency, extra_ledgers=extra_ledgers)
        self._client: Client | None = None
        self._ended = 0  # jobs since the start
        ledgers = extra_ledgers + 1
        self.settings: Mapping[str, str] = {
            "processes": f"`tidemill dev`: embedded broker, {ledgers} ledger(s), 1 worker with "
            f"concurrency {concurrency}, sink with page",
            "pipeline": "validation, all events, a rate limit that is checked and never bites, "
            "sink running, acks=all, exactly-once transactions",
            "drain": "from the thaw of a ledger that had seen none of the jobs to the last record "
            "on jobs.completed, read_committed",
            "enqueue": "Client.enqueue_many from a generator, acks=all",
            "latency": "AsyncClient.enqueue of each job when it is due, no answer awaited, until "
            "a read_committed consumer has the record of jobs.completed",
        }

    @property
    def client(self) -> Client:
        """The user program's client; only after `start`."""
        if self._client is None:
            raise NotMeasuredError("the stack is not started")
        return self._client

    def install(self) -> None:
        """Everything is in the wheel; the broker's jars come with the first start."""

    def start(self) -> None:
        self.stack.start()
        self._client = Client(kafka=self.stack.kafka)
        self._ended = 0
        self._run(WARMUP_JOBS)
        self.settle(WARMUP_JOBS)

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        self.stack.stop()

    def drain(self, jobs: int) -> float:
        rate = self.drain_alone(jobs)
        self.settle(jobs)
        return rate

    def drain_alone(self, jobs: int) -> float:
        """`drain`, and the sink may still have rows to write afterwards."""
        with EndWatcher(self.stack.kafka, TOPICS.completed) as ends:
            self._enqueue_before_ledger(jobs)
            begun = time.perf_counter()
            self.stack.thaw()
            return jobs / (ends.count(jobs, STALL_SECONDS) - begun)

    def enqueue(self, jobs: int) -> float:
        with EndWatcher(self.stack.kafka, TOPICS.completed) as ends:
            seconds = self._enqueue_before_ledger(jobs)
            self.stack.thaw()
            ends.count(jobs, STALL_SECONDS)
        self.settle(jobs)
        return jobs / seconds

    def latency(self, rate: int, seconds: float) -> Latency:
        warmup = round(rate * LATENCY_WARMUP_SECONDS)
        jobs = warmup + round(rate * seconds)
        tag = new_tag()
        with EndWatcher(self.stack.kafka, TOPICS.completed) as ends:
            pace = Pace(self.stack.kafka, list(noops(jobs, tag)), rate)
            pace.start()
            seen = ends.instants(jobs, STALL_SECONDS)
            pace.finish()
        self.settle(jobs)
        check_rate_held(rate=rate, jobs=jobs, seconds=pace.seconds)
        return Latency.of(
            [
                (seen[f"{tag}-{number}"] - pace.begun - number / rate) * 1000
                for number in range(warmup, jobs)
            ]
        )

    def settle(self, jobs: int) -> None:
        """Waits for the rows of what has ended: what a measurement leaves behind is none of the
        next one's, and a peer leaves nothing."""
        self._ended += jobs
        self.stack.wait_rows(self._ended, ENDED, MEASURE_DEADLINE_SECONDS)

    def _run(self, jobs: int) -> None:
        with EndWatcher(self.stack.kafka, TOPICS.completed) as ends:
            self.client.enqueue_many(noops(jobs, new_tag()))
            ends.count(jobs, STALL_SECONDS)

    def _enqueue_before_ledger(self, jobs: int) -> float:
        """Enqueues while the ledger is frozen, and leaves it so; the seconds of the call."""
        self.stack.freeze("ledger")
        begun = time.perf_counter()
        self.client.enqueue_many(noops(jobs, new_tag()))
        seconds = time.perf_counter() - begun
        if seconds > FREEZE_SECONDS_MAX:
            self.stack.thaw()
            raise NotMeasuredError(
                f"enqueueing took {seconds:.1f} s; after {FREEZE_SECONDS_MAX:g} s a frozen ledger "
                "has lost its partitions"
            )
        return seconds


class TidemillAccepted(Tidemill):
    """The same stack, its drain measured as the peers' are: from an accepted backlog."""

    def drain(self, jobs: int) -> float:
        self._hold_all_slots()
        before = self._accepted()
        with EndWatcher(self.stack.kafka, TOPICS.completed) as ends:
            self.client.enqueue_many(noops(jobs, new_tag()))
            wait_until(
                lambda: self._accepted() >= before + jobs,
                MEASURE_DEADLINE_SECONDS,
                "the acceptance of all jobs",
                POLL_SECONDS,
            )
            begun = time.perf_counter()
            self.stack.gate.touch()
            finished = ends.count(jobs + self.concurrency, STALL_SECONDS)
        self.settle(jobs + self.concurrency)
        return jobs / (finished - begun - GATE_POLL_SECONDS / 2)

    def _hold_all_slots(self) -> None:
        self.stack.gate.unlink(missing_ok=True)
        tag = new_tag()
        self.client.enqueue_many(
            Request(type=HOLD, user_id=f"user-{number}", job_id=f"{tag}-{number}", payload={})
            for number in range(self.concurrency)
        )
        wait_until(
            lambda: self._rows("attempt_started", tag) >= self.concurrency,
            MEASURE_DEADLINE_SECONDS,
            "the start of the holding jobs",
            POLL_SECONDS,
        )

    def _accepted(self) -> int:
        return self._rows("requested", "")

    def _rows(self, event: str, tag: str) -> int:
        return self.stack.count(f"event = '{event}' AND startsWith(job_id, '{tag}')")


def dev() -> Tidemill:
    """The topology of `tidemill dev`."""
    return Tidemill("tidemill", "Tidemill (tidemill dev)")


def best() -> Tidemill:
    """Our best topology on two cores."""
    return Tidemill("tidemill-best", "Tidemill (2 ledgers)", extra_ledgers=1)


def accepted() -> Tidemill:
    """The topology of `tidemill dev`, drained from an accepted backlog."""
    return TidemillAccepted("tidemill-accepted", "Tidemill (dev, backlog accepted before)")


def all_own() -> list[Program]:
    """One new instance of each of ours."""
    return [dev(), best(), accepted()]
