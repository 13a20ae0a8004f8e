"""The whole engine in one thread: N partitions, workers, clients, a virtual clock, seeded faults.

Owns the order of what happens and the drawing of faults; everything follows from the seed. Refuses
to judge: `evidence` hands the log to the independent checker.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final

import orjson

from tests.chaos.checker import Checker, Evidence, Expectations
from tests.chaos.promises import Limit
from tests.chaos.receipts import Receipt
from tests.chaos.report import Report
from tests.simulation.ledger import Fate, Ledger
from tests.simulation.memory_log import MemoryLog
from tests.simulation.worker import (
    SIGNALS,
    USERS,
    ReadyGroup,
    Worker,
    alive_of,
    assign,
    capacity_of,
    told_of,
)
from tests.unit.partition_kit import Policies, no_policies
from tidemill.schemas.topics import Topics
from tidemill.schemas.wire import BackoffSpec, ConcurrencySpec, Definition, LimitSpec
from tidemill.schemas.words import State
from tidemill.streams.partitioner import partition_of

START_MS: Final = 1_760_000_000_000
PARTITIONS: Final = 3
QUEUES: Final = ["default", "side"]
STEPS: Final = 140  # moments with faults
KIND_STEPS_MAX: Final = 6_000  # moments without, after which everything must have ended
QUICK_BACKOFF: Final = BackoffSpec(base_ms=200, cap_ms=5_000)
WINDOW_MS: Final = 8_000


def _definition(type: str, **facts: Any) -> Definition:
    return Definition(schema_version=1, type=type, backoff=QUICK_BACKOFF, **facts)


DEFINITIONS: Final = (
    _definition("quick"),
    _definition("side", queue="side", max_attempts=2),
    _definition("one-a-user", unique_by="user"),
    _definition("few", limits=(LimitSpec(limit=2, window_ms=WINDOW_MS, over="skip"),)),
    _definition(
        "slowly",
        limits=(
            LimitSpec(limit=2, window_ms=WINDOW_MS, over="delay"),
            LimitSpec(limit=5, window_ms=4 * WINDOW_MS, over="delay"),
        ),
    ),
    _definition("two-at-once", concurrency=ConcurrencySpec(limit=2)),
    _definition("joint", collapse_by="payload.kind"),
    _definition("late"),  # nobody knows it at first
)
SOMETIMES_LACKING: Final = (  # by some workers
    "side", "one-a-user", "few", "slowly", "two-at-once", "joint",
)
NEVER_DEFINED: Final = "unheard-of"
EXPECTED: Final = Expectations(
    max_attempts={d.type: d.max_attempts for d in DEFINITIONS},
    limits={
        d.type: tuple(Limit(spec.limit, spec.window_ms, spec.over) for spec in d.limits)
        for d in DEFINITIONS
        if d.limits
    },
    concurrency={d.type: d.concurrency.limit for d in DEFINITIONS if d.concurrency},
)


class World:
    """One run. Everything that it does follows from `seed`."""

    policies: Policies = staticmethod(no_policies)

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now_ms = START_MS
        self.topics = Topics()
        self.log = MemoryLog()
        self.ledgers = [
            Ledger(self.log, self.topics, number, PARTITIONS, self.rng, self.policies)
            for number in range(PARTITIONS)
        ]
        self.group = ReadyGroup()
        self.workers: list[Worker] = []
        self.definitions = {d.type: d for d in DEFINITIONS if d.type != "late"}
        self.receipts: list[Receipt] = []
        self.asked: list[tuple[dict[str, Any], list[tuple[str, bytes | None]]]] = []
        self._workers_started = 0
        for _ in range(2):
            self._start_worker()

    # --- the run ---

    def run(self) -> Report:
        """Faults, then a kind world until everything has ended, then the proof."""
        for _ in range(STEPS):
            self._moment()
        self._be_kind()
        return Checker(self.evidence()).check()

    def evidence(self) -> Evidence:
        """What the checker looks at: the log alone."""
        topic = self.log.topic
        return Evidence(
            events=topic(self.topics.events), completed=topic(self.topics.completed),
            dead=topic(self.topics.dead), requested=topic(self.topics.requested),
            state=topic(self.topics.state), internal=topic(self.topics.internal),
            receipts=self.receipts, expectations=EXPECTED,
        )

    def _moment(self) -> None:
        rng = self.rng
        self.now_ms += rng.choice((1, 5, 20, 100, 100, 700, 2_500))
        for _ in range(rng.choice((0, 0, 1, 3))):
            self._ask()
        if rng.random() < 0.08:
            self._command()
        if rng.random() < 0.2:
            self._signal()
        self._step_workers()
        for ledger in self.ledgers:
            if rng.random() < 0.7:
                self._group(ledger, self._draw_fate())
        self._disturb()

    def _step_workers(self) -> None:
        for worker in list(self.workers):
            worker.step(self.now_ms, self.group)
            if worker.is_dead:
                # Its supervisor starts it again, under the same name.
                self.workers.remove(worker)
                self.now_ms += 1
                self._start_worker(worker.worker_id)
                self.workers[-1].is_kind = worker.is_kind

    def _draw_fate(self) -> Fate:
        return self.rng.choices(list(Fate), (86, 6, 3, 3, 2))[0]

    def _group(self, ledger: Ledger, fate: Fate) -> None:
        told = told_of(self.workers, QUEUES, self.definitions, self.now_ms)
        ledger.group(
            fate, self.now_ms, alive=alive_of(self.workers, self.now_ms),
            capacity=capacity_of(self.workers, QUEUES, self.topics, self.now_ms, told),
            definitions=list(self.definitions.values()), told=told,
        )

    def _be_kind(self) -> None:
        """No more faults: all that was accepted must end."""
        for worker in self.workers:
            worker.is_kind, worker.frozen_until = True, 0
        if not self.workers:
            self._start_worker()
            self.workers[0].is_kind = True
        for _ in range(KIND_STEPS_MAX):
            before = self.log.appended
            self._step_workers()
            for ledger in self.ledgers:
                ledger.skew_ms = 0
                self._group(ledger, Fate.COMMITTED)
            if self.log.appended == before:
                if self._is_over():
                    return
                self.now_ms += 500
            self.now_ms += 20

    def _is_over(self) -> bool:
        """Nothing is alive and nothing waits to be read."""
        return not any(worker.runs for worker in self.workers) and not any(
            ledger.has_input()
            or ledger.asks
            or any(job.state is not State.FAILED for job in ledger.engine.state.jobs.values())
            for ledger in self.ledgers
        )

    # --- disturbances ---

    def _disturb(self) -> None:
        rng = self.rng
        if rng.random() < 0.04:
            ledger = rng.choice(self.ledgers)
            ledger.restore(self.now_ms)
            ledger.rewind()
        if rng.random() < 0.04:
            rng.choice(self.ledgers).rewind()
        if rng.random() < 0.04:
            assign(self.log, self.workers, QUEUES, self.topics, self.group)
        if rng.random() < 0.03 and self.workers:
            self._kill_worker()
        if rng.random() < 0.05 and len(self.workers) < 3:
            self._start_worker()
        if rng.random() < 0.02 and self.workers:
            rng.choice(self.workers).frozen_until = self.now_ms + 14_000
        if rng.random() < 0.01:
            self.definitions["late"] = next(d for d in DEFINITIONS if d.type == "late")

    def _kill_worker(self) -> None:
        victim = self.rng.choice(self.workers)
        self.workers.remove(victim)
        assign(self.log, self.workers, QUEUES, self.topics, self.group)
        if self.rng.random() < 0.5:
            self._start_worker(victim.worker_id)

    def _start_worker(self, worker_id: str | None = None) -> None:
        self._workers_started += 1
        name = worker_id or f"worker-{self._workers_started}"
        # Some have old modules, some have new ones.
        lacks = frozenset(self.rng.sample(SOMETIMES_LACKING, self.rng.choice((0, 0, 1, 2))))
        self.workers.append(Worker(self.log, self.topics, name, self.now_ms, self.rng, lacks))
        assign(self.log, self.workers, QUEUES, self.topics, self.group)

    # --- clients ---

    def _ask(self) -> None:
        rng = self.rng
        draw = rng.random()
        if draw < 0.12 and self.asked:
            body, headers = rng.choice(self.asked)  # the same again
        elif draw < 0.17:
            self._send_poison()
            return
        else:
            body, headers = self._request()
            if "job_id" in body or any(name == "ce_id" for name, _ in headers):
                self.asked.append((body, headers))
        self._send(body, headers)

    def _request(self) -> tuple[dict[str, Any], list[tuple[str, bytes | None]]]:
        rng = self.rng
        kinds = [*(d.type for d in DEFINITIONS), "quick", "quick", NEVER_DEFINED]
        body: dict[str, Any] = {
            "type": rng.choice(kinds), "user_id": rng.choice(USERS),
            "payload": {"n": rng.randrange(1_000)},
        }
        body["payload"]["kind"] = body["payload"]["n"] % 2
        if rng.random() < 0.8:
            body["job_id"] = f"job-{len(self.receipts)}"
        if rng.random() < 0.1 and "job_id" in body:  # the checker knows such jobs by their id
            body["unique_key"] = f"key-{rng.randrange(2)}"
        if rng.random() < 0.1 and "job_id" in body:
            body["run_at"] = self.now_ms + rng.randrange(-2_000, 20_000)
        if rng.random() < 0.1:
            body["expires_at"] = self.now_ms + rng.randrange(-1_000, 10_000)
        if rng.random() < 0.3:
            body["priority"] = rng.choice(("high", "medium", "low"))
        headers: list[tuple[str, bytes | None]] = []
        if rng.random() < 0.1 and "job_id" in body:
            headers = [
                ("ce_specversion", b"1.0"), ("ce_id", body.pop("job_id").encode()),
                ("ce_source", b"/simulation"), ("ce_type", body["type"].encode()),
            ]
        return body, headers

    def _send(self, body: dict[str, Any], headers: list[tuple[str, bytes | None]]) -> None:
        """To the right partition, or to any, as producers with another partitioner do."""
        home = partition_of(body["user_id"], PARTITIONS)
        partition = home if self.rng.random() < 0.7 else self.rng.randrange(PARTITIONS)
        key = self.rng.choice((body["user_id"].encode(), None))
        record = self.log.append(
            self.topics.requested, partition, key=key, value=orjson.dumps(body),
            now_ms=self.now_ms, headers=headers,
        )
        named = dict(headers).get("ce_id")
        job_id = body.get("job_id") if named is None else named.decode()
        self.receipts.append(
            Receipt(
                partition, record.offset, user_id=body["user_id"], job_id=job_id,
                unique_key=body.get("unique_key"), run_at_ms=body.get("run_at"),
            )
        )

    def _send_poison(self) -> None:
        rng = self.rng
        value = rng.choice(
            (
                None, b"\xff\x00", b"[]", b"{}", b"[" * 5_000,
                b'{"type":"quick","user_id":"user-1","nonsense":1}',
                b'{"type":"quick","user_id":"user-2","job_id":"p%d","max_attempts":0}'
                % len(self.receipts),
            )
        )
        partition = rng.randrange(PARTITIONS)
        record = self.log.append(
            self.topics.requested, partition, key=b"k", value=value, now_ms=self.now_ms,
            headers=[("h", b"1")],
        )
        self.receipts.append(Receipt(partition, record.offset, kind="poison"))

    def _command(self) -> None:
        if not self.asked:
            return
        body, headers = self.rng.choice(self.asked)
        named = dict(headers).get("ce_id")
        value = {
            "command": self.rng.choice(("cancel", "redrive")),
            "user_id": body["user_id"],
            "job_id": body.get("job_id") if named is None else named.decode(),
        }
        self._send_command(value)

    def _signal(self) -> None:
        """For a job that waits for it, that may come to wait, or that nobody has asked for."""
        jobs = [job for ledger in self.ledgers for job in ledger.engine.state.jobs.values()]
        waiting = [job for job in jobs if job.state is State.AWAITING]
        chosen = self.rng.choice((waiting, waiting, jobs)) or jobs
        if not chosen:
            return
        user_id, job_id = self.rng.choice(chosen).key
        names = self.rng.choice((SIGNALS, SIGNALS, SIGNALS[:1], SIGNALS[:1] * 2))
        for name in names:
            self._send_command(
                {
                    "command": "signal", "user_id": user_id, "job_id": job_id, "name": name,
                    "value": {"n": self.now_ms},
                }
            )

    def _send_command(self, body: dict[str, Any]) -> None:
        self.log.append(
            self.topics.commands, self.rng.randrange(PARTITIONS), key=None,
            value=orjson.dumps(body), now_ms=self.now_ms,
        )
