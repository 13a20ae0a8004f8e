"""One chaos run: engine, load, faults, quiet, proof.

Owns the order and the waiting, and what is asked for by what has happened: redrives, and the end of
the schedules. Refuses to know the rules (the checker) and the engine's inside.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.chaos import ticks
from tests.chaos.checker import Expectations, check_installation
from tests.chaos.clock_plans import PLANS
from tests.chaos.engine import Death, Engine, EngineFailed
from tests.chaos.faults import Fault, FaultRunner, schedule
from tests.chaos.handlers import EXPECT, FAN, STOPS
from tests.chaos.history import HistoryUnreadable, ask
from tests.chaos.load import DELIVERY_SECONDS, Loader, Sent
from tests.chaos.rawlog import read_topic, reader
from tests.chaos.receipts import write_receipts
from tests.chaos.report import Report

QUIET_SECONDS_MAX: Final = 120.0  # without one more ended job: what is left will never end
HISTORY_SECONDS_MAX: Final = 90.0  # ClickHouse has caught up by then
PAUSE_SECONDS_MAX: Final = 60.0  # until each schedule is paused, on an engine that lives
POLL_SECONDS: Final = 0.2
SEED: Final = 20_261_122


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how much, how rough."""

    jobs: int = 20_000
    seconds: float = 90.0  # over which requests and faults are spread
    kills: int = 6
    seed: int = SEED
    outage_seconds: float = 0.0  # ClickHouse away
    with_history: bool = True
    quiet_seconds: float = QUIET_SECONDS_MAX
    faults: Sequence[Fault] | None = None  # in place of a drawn schedule


@dataclass(slots=True)
class Outcome:
    """What a run ended with."""

    report: Report
    deaths: list[Death] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ended_seconds: float = 0.0  # from the last request to the end of the last job
    stop_codes: dict[str, int | None] = field(default_factory=dict)


class Follower(threading.Thread):
    """Reads `jobs.completed` while it grows, to know when all have ended. Dead letters of
    `redriven` types are redriven once."""

    def __init__(
        self, kafka: str, topic: str, partitions: int, redriven: Collection[str] = ()
    ) -> None:
        super().__init__(name="follower", daemon=True)
        self.ended: set[tuple[str, str]] = set()
        self.redriven: set[tuple[str, str]] = set()
        self.ended_again: set[tuple[str, str]] = set()
        self._redriven_types = frozenset(redriven)
        self._commands = topic.removesuffix("completed") + "commands"
        self._producer = commander(kafka)
        self.last_change = time.monotonic()
        self._stop_asked = threading.Event()
        self._consumer: Consumer = reader(kafka)
        self._consumer.assign([TopicPartition(topic, n, 0) for n in range(partitions)])

    def run(self) -> None:
        """Until `close`."""
        while not self._stop_asked.is_set():
            for message in self._consumer.consume(2_000, timeout=0.2):
                # The broker is away at times; librdkafka goes on by itself.
                if message.error() is None:
                    self._note(orjson.loads(message.value() or b"{}"))
                    self.last_change = time.monotonic()
            self._producer.poll(0)
        self._producer.flush(DELIVERY_SECONDS)
        self._consumer.close()

    def _note(self, body: dict[str, Any]) -> None:
        key = (body["user_id"], body["job_id"])
        self.ended.add(key)
        if body["type"] not in self._redriven_types:
            return
        if body["run"] > 1:
            self.ended_again.add(key)
        elif body["status"] == "failed":
            self.redriven.add(key)
            command = {"command": "redrive", "user_id": key[0], "job_id": key[1]}
            self._producer.produce(self._commands, json.dumps(command), key[0].encode())

    def close(self) -> None:
        """Stop reading."""
        self._stop_asked.set()
        self.join()


def commander(kafka: str) -> Producer:
    """Sends commands; what it is given is sent again until it is acknowledged."""
    return Producer(
        {
            "bootstrap.servers": kafka, "enable.idempotence": True, "acks": "all",
            "delivery.timeout.ms": int(DELIVERY_SECONDS * 1000), "log_level": 0,
        }
    )


def stop_schedules(engine: Engine) -> None:
    """Pauses each schedule of the run; returns when the engine says of each that it is paused."""
    for name, role in engine.roles.items():
        if role.name.startswith("ledger"):
            engine.wait_ready(name)
    producer = commander(engine.kafka)
    for name in PLANS:
        command = {
            "command": "schedule", "word": "pause", "name": name, "command_id": uuid.uuid4().hex
        }
        producer.produce("jobs.commands", json.dumps(command), (ticks.USER + name).encode())
    producer.flush(DELIVERY_SECONDS)
    deadline = time.monotonic() + PAUSE_SECONDS_MAX
    paused: set[str] = set()
    while paused != set(PLANS) and time.monotonic() < deadline:
        for record in read_topic(engine.kafka, "jobs.schedules"):
            if orjson.loads(record.value or b"{}").get("is_paused"):
                paused.add((record.key or b"").decode())
        time.sleep(POLL_SECONDS)


def wait_born(engine: Engine, follower: Follower, quiet_seconds: float) -> int:
    """Until each job has ended that nobody has sent a request for: ticks and members. Those that
    ask for them have ended, or are paused. How many have not when nothing moves any more."""
    known: set[tuple[str, str]] | None = None
    while True:
        born = _born(engine)
        if born == known and born <= follower.ended:
            return 0
        known = born
        while not born <= follower.ended:
            engine.check_health()
            if time.monotonic() - follower.last_change > quiet_seconds:
                return len(born - follower.ended)
            time.sleep(POLL_SECONDS)


def _born(engine: Engine) -> set[tuple[str, str]]:
    found = set()
    of_ticks, of_members = ticks.USER.encode(), FAN.encode()
    for record in read_topic(engine.kafka, "jobs.events"):
        is_tick = record.key is not None and record.key.startswith(of_ticks)
        if is_tick or of_members in (record.value or b""):
            event = orjson.loads(record.value or b"")
            if is_tick or FAN in event["job_id"]:
                found.add((event["user_id"], event["job_id"]))
    return found


def run(engine: Engine, plan: Plan, say: Callable[[str], None] = print) -> Outcome:
    """The whole run against a started engine; the report tells what was violated."""
    expected = _expectations()
    follower = Follower(engine.kafka, "jobs.completed", 4, STOPS)
    follower.start()
    loader = Loader(
        engine.kafka, "jobs.requested", count=plan.jobs, seconds=plan.seconds, seed=plan.seed
    )
    faults = FaultRunner(
        engine,
        list(plan.faults) if plan.faults is not None else schedule(
            kills=plan.kills, seconds=plan.seconds, seed=plan.seed,
            with_history=plan.with_history, outage_seconds=plan.outage_seconds,
        ),
        say,
    )
    loader.start()
    faults.start()
    loader.join()
    faults.join()
    for error in (loader.error, faults.error):
        if error is not None:
            raise error
    if loader.tally.failures:
        raise EngineFailed(f"requests were not acknowledged: {loader.tally.failures[:3]}")
    begun = time.monotonic()
    stop_schedules(engine)
    late = wait_quiet(engine, follower, loader.sent, plan.quiet_seconds)
    late += wait_born(engine, follower, plan.quiet_seconds)
    say(f"all sent and acknowledged: {len(loader.tally.receipts):,}; still waiting: {late}")
    outcome = Outcome(Report(), engine.deaths, faults.done, time.monotonic() - begun)
    follower.close()
    write_receipts(engine.folder / "receipts.jsonl", loader.tally.receipts)
    (engine.folder / "expect.json").write_text(expected)
    if engine.clickhouse is not None and plan.with_history:
        wait_history(engine)
    outcome.report = check_installation(
        engine.kafka,
        receipts=loader.tally.receipts,
        expectations=Expectations.from_json(expected),
        clickhouse=engine.clickhouse if plan.with_history else None,
    )
    return outcome


def _expectations() -> str:
    return json.dumps({**EXPECT, "schedules": PLANS})


def wait_quiet(
    engine: Engine, follower: Follower, sent: list[Sent], quiet_seconds: float
) -> int:
    """Until each requested job has ended, and each that was redriven has ended again; gives how
    many have not when nothing moves any more."""
    wanted = {
        (item.user_id, item.job_id)
        for item in sent
        if item.kind == "job" and item.job_id is not None and item.user_id is not None
    }
    nameless = sum(item.kind == "job" and item.job_id is None for item in sent)
    while True:
        engine.check_health()
        ended = set(follower.ended)
        missing = len(wanted - ended) + len(follower.redriven - follower.ended_again)
        others = sum(_is_nameless(*job) for job in ended - wanted)
        if missing == 0 and others >= nameless:
            return 0
        if time.monotonic() - follower.last_change > quiet_seconds:
            return missing + max(0, nameless - others)
        time.sleep(POLL_SECONDS)


def _is_nameless(user_id: str, job_id: str) -> bool:
    """Whether the engine has named the job: it is no child, no member and no tick."""
    is_born = job_id.startswith("child-of-") or FAN in job_id or user_id.startswith(ticks.USER)
    return not is_born


def wait_history(engine: Engine) -> None:
    """Until ClickHouse has the log's last events; gives up quietly, the checker then tells."""
    assert engine.clickhouse is not None
    wanted = sum(1 for _ in read_topic(engine.kafka, "jobs.events"))
    deadline = time.monotonic() + HISTORY_SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            if int(ask(engine.clickhouse, "SELECT count() FROM job_events")[0][0]) >= wanted:
                return
        except HistoryUnreadable:
            # The process that serves ClickHouse is being started again.
            engine.check_health()
        time.sleep(POLL_SECONDS)
