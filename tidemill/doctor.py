"""Is everything there that a job needs: one finding a check, with what to do about it.

Owns the checks and their hints. Refuses to mend anything.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from agents import topics as topics_
from agents.runtime.clients import client_settings
from agents.settings import CommonSettings
from schemas.native import core
from schemas.rows import JOB_EVENTS, JOB_MINUTES, JOBS
from schemas.topics import Topics
from schemas.wire import HEARTBEAT_MISSING_SECONDS, HEARTBEAT_SECONDS
from tidemill.shadowing import shadowed
from tidemill.sql import SqlError, query_rows

Verdict = Literal["ok", "warning", "failed", "unknown"]

ANSWER_SECONDS: Final = 10.0  # for one question to Kafka
SKEW_SECONDS_MAX: Final = 5.0  # wait times and heartbeats are read against other clocks
LAG_RECORDS_MAX: Final = 10_000  # records that the ledger has not decided; a burst passes this
# Markers of transactions count as records and never go away.
PACKAGES: Final = (
    "tidemill", "confluent-kafka", "faust-streaming", "aiokafka", "pydantic", "orjson",
    "clickhouse-connect", "chdb",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `hint` is empty when there is nothing to do.

    unknown: the check could not be made because another one failed.
    """

    check: str
    verdict: Verdict
    found: str
    hint: str = ""


def examine(settings: CommonSettings) -> list[Finding]:
    """All checks, in the order in which they build on each other."""
    topics = Topics(settings.topic_prefix)
    findings = [_versions(), _core(), _extension(), _shadowing()]
    kafka = _kafka(settings.kafka)
    findings.append(kafka)
    kafka_checks: dict[str, Callable[[], Finding]] = {
        "topics": lambda: _topics(settings, topics),
        "partitions": lambda: _partitions(settings, topics),
        "ledger": lambda: _ledger(settings, topics),
        "workers": lambda: _workers(settings.kafka, topics),
    }
    findings += _all(kafka_checks, kafka, "Kafka")
    clickhouse = _clickhouse(settings.clickhouse)
    findings.append(clickhouse)
    clickhouse_checks: dict[str, Callable[[], Finding]] = {
        "tables": lambda: _tables(settings.clickhouse),
        "clock": lambda: _clock(settings.clickhouse),
    }
    findings += _all(clickhouse_checks, clickhouse, "ClickHouse")
    return findings


def _all(
    checks: dict[str, Callable[[], Finding]], needed: Finding, name: str
) -> Iterator[Finding]:
    for check, run in checks.items():
        if needed.verdict == "failed":
            yield Finding(check, "unknown", f"not checked without {name}")
            continue
        try:
            yield run()
        except (KafkaException, topics_.TopicsError, SqlError, TimeoutError) as error:
            yield Finding(check, "failed", f"no answer: {error}", f"mend {name} and try again")


def _versions() -> Finding:
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Finding("versions", "ok", ", ".join(found))


def _core() -> Finding:
    """Whether decisions run compiled, which only their speed shows."""
    return Finding("core", "ok", str(core))


def _extension() -> Finding:
    check = "faust extension"
    if importlib.util.find_spec("faust") is None:
        return Finding(
            check, "warning", "Faust is not installed: no role can run here",
            "pip install 'tidemill[ledger]' where roles run; a producer does not need it",
        )
    if importlib.util.find_spec("faust._cython.streams") is None:
        return Finding(
            check, "failed", "Faust runs in pure Python, which acks stale records on a rebalance",
            "install a wheel of faust-streaming that has the Cython extension for this system",
        )
    return Finding(check, "ok", "Cython extension present")


def _shadowing() -> Finding:
    hidden = shadowed()
    if hidden:
        found = ", ".join(f"{name} is at {place}" for name, place in hidden.items())
        return Finding("packages", "failed", found, "use a virtual environment of its own")
    return Finding("packages", "ok", "agents, streams and schemas are ours")


def _kafka(kafka: str) -> Finding:
    begun = time.monotonic()
    try:
        found = AdminClient(client_settings(kafka, "tidemill-doctor", {})).list_topics(
            timeout=ANSWER_SECONDS
        )
    except KafkaException as error:
        return Finding(
            "kafka", "failed", f"{kafka}: {error.args[0].str()}",
            "start it with `tidemill dev` or `tidemill broker start`, or set --kafka",
        )
    took_ms = (time.monotonic() - begun) * 1000
    return Finding("kafka", "ok", f"{kafka}: {len(found.brokers)} broker(s), {took_ms:.0f} ms")


def _topics(settings: CommonSettings, topics: Topics) -> Finding:
    # With the partitions that are there: a wrong number is the next check's finding.
    partitions = topics_.found_partitions(settings.kafka, topics) or settings.partitions
    changes = topics_.plan(settings.kafka, topics, partitions)
    if changes:
        found = "; ".join(f"{one.topic}: {one.action} {one.detail}" for one in changes)
        return Finding("topics", "failed", found, "run `tidemill topics apply`")
    return Finding("topics", "ok", "all there and as planned")


def _partitions(settings: CommonSettings, topics: Topics) -> Finding:
    found = topics_.found_partitions(settings.kafka, topics)
    if found is None:
        return Finding("partitions", "failed", "no state topic", "run `tidemill topics apply`")
    if found != settings.partitions:
        return Finding(
            "partitions", "failed", f"{found} in Kafka, {settings.partitions} in the settings",
            f"use --partitions {found} or TIDEMILL_PARTITIONS={found} for every role",
        )
    return Finding("partitions", "ok", str(found))


def _ledger(settings: CommonSettings, topics: Topics) -> Finding:
    """Members of the ledger's group, and records that it has not decided, by partition."""
    admin = AdminClient(client_settings(settings.kafka, "tidemill-doctor", {}))
    group = f"{settings.topic_prefix}tidemill-ledger"
    described = admin.describe_consumer_groups([group], request_timeout=ANSWER_SECONDS)
    try:
        members = len(described[group].result(timeout=ANSWER_SECONDS).members)
    except KafkaException:
        members = 0
    lags = _lags(settings.kafka, admin, group, topics)
    total = sum(lags.values())
    by_partition = ", ".join(f"{number}: {lag}" for number, lag in sorted(lags.items()))
    found = f"{members} process(es); lag {total} records ({by_partition})"
    if members == 0:
        return Finding("ledger", "failed", found, "start `tidemill ledger` (or `tidemill dev`)")
    if total > LAG_RECORDS_MAX:
        return Finding(
            "ledger", "warning", found,
            "when it does not shrink: run more ledger processes, at most one a partition",
        )
    return Finding("ledger", "ok", found)


def _lags(kafka: str, admin: AdminClient, group: str, topics: Topics) -> dict[int, int]:
    """Ledger partition -> records of its inputs past the committed offsets."""
    ends = _ends(admin, topics)
    # Not the admin client's question: where the group's coordinator is not up yet, as on a new
    # broker, it ends the process.
    reader = Consumer(client_settings(kafka, "tidemill-doctor", {"group.id": group}))
    try:
        asked = [TopicPartition(topic, partition) for topic, partition in ends]
        answers = reader.committed(asked, timeout=ANSWER_SECONDS) if asked else []
    finally:
        reader.close()
    lags: dict[int, int] = {}
    for one in answers:
        behind = ends[one.topic, one.partition] - max(0, one.offset)
        lags[one.partition] = lags.get(one.partition, 0) + behind
    return lags


def _ends(admin: AdminClient, topics: Topics) -> dict[tuple[str, int], int]:
    known = admin.list_topics(timeout=ANSWER_SECONDS).topics
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    asked = {
        TopicPartition(topic, partition): latest
        for topic in topics.ledger_inputs
        if topic in known
        for partition in known[topic].partitions
    }
    answers = admin.list_offsets(
        asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=ANSWER_SECONDS
    )
    return {
        (place.topic, place.partition): future.result(timeout=ANSWER_SECONDS).offset
        for place, future in answers.items()
    }


def _workers(kafka: str, topics: Topics) -> Finding:
    now_ms = time.time() * 1000
    alive = {
        worker: beat
        for worker, beat in _latest_beats(kafka, topics.heartbeats).items()
        if now_ms - beat["at"] < HEARTBEAT_MISSING_SECONDS * 1000 and not beat["is_stopping"]
    }
    if not alive:
        return Finding(
            "workers", "failed", "none has beaten in the last "
            f"{HEARTBEAT_MISSING_SECONDS:g} s", "start `tidemill worker MODULE` (or `tidemill dev "
            "MODULE`); if one runs, compare the clocks of both machines",
        )
    types = sorted({type_name for beat in alive.values() for type_name in beat["types"]})
    ahead = [worker for worker, beat in alive.items()
             if beat["at"] - now_ms > SKEW_SECONDS_MAX * 1000]
    found = f"{len(alive)} alive ({', '.join(sorted(alive))}); types: {', '.join(types) or 'none'}"
    if ahead:
        return Finding(
            "workers", "warning", f"{found}; the clock of {', '.join(ahead)} is ahead",
            "synchronise the clocks (NTP)",
        )
    return Finding("workers", "ok", found)


def _latest_beats(kafka: str, topic: str) -> dict[str, dict[str, Any]]:
    """Worker -> its last beat of the last few seconds; waits for one beat when there is none."""
    consumer = Consumer(
        client_settings(
            kafka, "tidemill-doctor",
            {"group.id": f"tidemill-doctor-{uuid.uuid4()}", "enable.auto.commit": False,
             "auto.offset.reset": "latest"},
        )
    )
    beats: dict[str, dict[str, Any]] = {}
    try:
        since = int((time.time() - HEARTBEAT_MISSING_SECONDS) * 1000)
        starts = consumer.offsets_for_times(
            [TopicPartition(topic, 0, since)], timeout=ANSWER_SECONDS
        )
        consumer.assign(starts)
        deadline = time.monotonic() + HEARTBEAT_SECONDS * 1.5
        while time.monotonic() < deadline:
            message = consumer.poll(HEARTBEAT_SECONDS / 10)
            if message is not None and message.error() is None:
                beat = orjson.loads(message.value() or b"{}")
                beats[beat["worker_id"]] = beat
    finally:
        consumer.close()
    return beats


def _clickhouse(clickhouse: str) -> Finding:
    begun = time.monotonic()
    try:
        rows = query_rows(clickhouse, "SELECT version() AS version", timeout_seconds=ANSWER_SECONDS)
    except SqlError as error:
        return Finding(
            "clickhouse", "failed", str(error),
            "start `tidemill dev`, or set --clickhouse to your server's HTTP address",
        )
    took_ms = (time.monotonic() - begun) * 1000
    return Finding("clickhouse", "ok", f"version {rows[0]['version']}, {took_ms:.0f} ms")


def _tables(clickhouse: str) -> Finding:
    rows = query_rows(
        clickhouse,
        "SELECT table, groupArray(name) AS columns FROM system.columns "
        "WHERE database = currentDatabase() GROUP BY table",
    )
    there = {row["table"]: set(row["columns"]) for row in rows}
    wanted = {"job_events": JOB_EVENTS, "jobs": JOBS, "job_minutes": JOB_MINUTES}
    missing = [
        f"{table}.{column}"
        for table, columns in wanted.items()
        for column in columns
        if column not in there.get(table, set())
    ]
    if missing:
        return Finding(
            "tables", "failed", f"missing: {', '.join(missing[:10])}",
            "start `tidemill sink` (or `tidemill dev`), which makes them",
        )
    return Finding("tables", "ok", ", ".join(wanted))


def _clock(clickhouse: str) -> Finding:
    before = time.time()
    rows = query_rows(clickhouse, "SELECT toUnixTimestamp64Milli(now64(3)) AS now_ms")
    after = time.time()
    skew = int(rows[0]["now_ms"]) / 1000 - (before + after) / 2
    found = f"{skew:+.2f} s against ClickHouse"
    if abs(skew) > SKEW_SECONDS_MAX:
        return Finding("clock", "failed", found, "synchronise the clocks (NTP)")
    return Finding("clock", "ok", found)
