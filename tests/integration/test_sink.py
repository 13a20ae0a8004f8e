"""The sink against a real broker and a real engine: each event is one row, whatever happens.

The suite runs over chDB (in the process that also holds page and port), and over the server that
`TIDEMILL_TEST_CLICKHOUSE` names (http://user:password@host:port). Where it names none, a stand-in
(`clickhouse_stand_in`) takes its place, and pytest's header says so.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from benchmarks.event_log import make_events
from tests.unit.bounds_kit import TAKEN, events_of_life, nested, value_with
from tests.waiting import wait_until
from tidemill.agents import topics as topics_
from tidemill.agents.clickhouse.engine import open_engine
from tidemill.agents.crash import CRASH_EXIT_CODE, CRASH_VARIABLE
from tidemill.agents.embedded.broker import free_port
from tidemill.agents.settings import CommonSettings
from tidemill.doctor.clickhouse import gaps as gaps_check
from tidemill.schemas.dead import dead_headers
from tidemill.schemas.event_writer import Event
from tidemill.schemas.topics import Topics

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("sink_process.py")
PARTITIONS = 4
DEADLINE_SECONDS = 60.0
OUTAGE_SECONDS = 30.0
EVENT_COLUMNS = "kafka_partition, event, count() AS events"


class Log:
    """What was produced to `jobs.events`, and how to produce more."""

    def __init__(self, kafka: str, prefix: str) -> None:
        self.topics = Topics(prefix)
        self._kafka = kafka
        topics_.apply(kafka, self.topics, PARTITIONS)
        self._producer = Producer(
            {"bootstrap.servers": kafka, "transactional.id": f"{prefix}ledger", "linger.ms": 20}
        )
        self._producer.init_transactions()
        self.events: list[tuple[int, Event]] = []
        self.refused = 0
        self._lives = make_events(1_000_000, partitions=PARTITIONS)

    def produce(self, count: int, group: int = 500) -> None:
        """`count` more events, in transactions of `group` with an aborted one after each."""
        wanted = list(itertools.islice(self._lives, count))
        for begin in range(0, count, group):
            self._producer.begin_transaction()
            for partition, event, value in wanted[begin : begin + group]:
                self.put(value, partition, event.user_id.encode())
            self._producer.commit_transaction()
            self._producer.begin_transaction()
            self.put(b'{"schema_version":1,"never":"seen"}', begin % PARTITIONS, b"user")
            self._producer.flush()
            self._producer.abort_transaction()
        self.events += [(partition, event) for partition, event, _ in wanted]

    def put(self, value: bytes | None, partition: int, key: bytes, **more: Any) -> None:
        self._producer.produce(self.topics.events, value, key, partition, **more)

    def produce_bad(self, values: Sequence[bytes | None], partition: int) -> None:
        """Records that are no events, with a header, in one transaction."""
        self._producer.begin_transaction()
        for value in values:
            self.put(value, partition, b"key", headers=[("trace", b"1")])
        self._producer.commit_transaction()

    def produce_refused(self, count: int) -> None:
        """Dead letters of refused requests, each with a failed job's beside it and an aborted one
        behind it."""
        for number in range(count):
            partition = number % PARTITIONS
            self._producer.begin_transaction()
            for stage in ("request", "attempt"):
                headers = dead_headers(
                    [], topic="jobs.requested", partition=partition, offset=self.refused + number,
                    timestamp=1_764_000_000_000, stage=stage, code="INVALID_FIELD",
                    message="field 'x': no\x1b[2J", field="x", user_id="u",
                )
                self._put_dead(b'{"card":"\x1b[31m\xff"}', partition, headers)
            self._producer.commit_transaction()
            self._producer.begin_transaction()
            self._put_dead(b"never seen", partition, [])
            self._producer.flush()
            self._producer.abort_transaction()
        self.refused += count

    def _watermarks(self) -> list[tuple[int, int]]:
        consumer = Consumer({"bootstrap.servers": self._kafka, "group.id": "none"})
        places = [TopicPartition(self.topics.events, number) for number in range(PARTITIONS)]
        found = [consumer.get_watermark_offsets(place, DEADLINE_SECONDS) for place in places]
        consumer.close()
        return [(int(start), int(end)) for start, end in found]

    def ends(self) -> list[int]:
        """Behind the last offset of each partition, markers included."""
        return [end for _, end in self._watermarks()]

    def starts(self) -> list[int]:
        """The first offset that each partition has."""
        return [start for start, _ in self._watermarks()]

    def delete_before(self, offsets: list[int]) -> None:
        """As retention does."""
        admin = AdminClient({"bootstrap.servers": self._kafka})
        places = [
            TopicPartition(self.topics.events, number, offset)
            for number, offset in enumerate(offsets)
        ]
        for future in admin.delete_records(places).values():
            future.result(DEADLINE_SECONDS)

    def committed(self) -> list[int]:
        """How far the sink's group is."""
        consumer = Consumer(
            {"bootstrap.servers": self._kafka, "group.id": f"{self.topics.prefix}tidemill-sink"}
        )
        places = [TopicPartition(self.topics.events, number) for number in range(PARTITIONS)]
        found = consumer.committed(places, DEADLINE_SECONDS)
        consumer.close()
        return [place.offset for place in found]

    def _put_dead(self, value: bytes, partition: int, headers: Any) -> None:
        self._producer.produce(self.topics.dead, value, b"key", partition, headers=headers)

    # What the tables must say, counted from what was produced.

    def by_event(self) -> dict[tuple[int, str], int]:
        return dict(Counter((partition, str(event.kind)) for partition, event in self.events))

    def by_status(self) -> dict[str, int]:
        latest = {(event.user_id, event.job_id): event for _, event in self.events}
        return dict(Counter(str(event.state_after) for event in latest.values()))

    def by_minute(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        found: dict[tuple[str, str, str], tuple[int, int]] = {}
        for _, event in self.events:
            key = (event.type, str(event.kind), (event.error or {}).get("code", ""))
            count, run_ms = found.get(key, (0, 0))
            found[key] = (count + 1, run_ms + (event.run_ms or 0))
        return found


class SinkProcess:
    """A sink in a process of its own, whose words can be waited for."""

    def __init__(self, role: str, settings: dict[str, Any], env: dict[str, str]) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.popen = subprocess.Popen(
            [sys.executable, str(SCRIPT), role, json.dumps(settings)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()

    def wait_for(self, text: str) -> str:
        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None, DEADLINE_SECONDS)
        line = found()
        assert line is not None, f"{text!r} never came:\n" + "\n".join(self.lines)
        return line

    def wait_ready(self) -> None:
        self.wait_for('"role_ready"')

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        code = self.popen.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        return code


class Place:
    """An engine, the sinks over it, and questions to it."""

    def __init__(self, server: str | None, kafka: str, prefix: str, folder: Path) -> None:
        self._base: dict[str, Any] = {
            "kafka": kafka, "topic_prefix": prefix, "instance_id": "sink-0",
            "partitions": PARTITIONS,
        }
        self._processes: list[SinkProcess] = []
        if server is None:
            self._role, self._base["clickhouse"] = "stack", f"chdb://{folder}"
            self._base["clickhouse_port"] = free_port()
            self._base["http_port"] = free_port()
            self._server = None
            return
        database = f"t{uuid.uuid4().hex[:10]}"
        self._role = "sink"
        self._server = open_engine(f"{server}/default")
        self._server.command(f"CREATE DATABASE {database}")
        self._server = open_engine(f"{server}/{database}")
        self._base["clickhouse"] = f"{server}/{database}"

    def start(self, *, crash_at: str = "", fault: str = "", **settings: Any) -> SinkProcess:
        env = {CRASH_VARIABLE: crash_at, "SINK_FAULT": fault}
        defaults = {"batch_rows": 400, "batch_seconds": 0.2}
        process = SinkProcess(self._role, {**self._base, **defaults, **settings}, env)
        self._processes.append(process)
        return process

    def query(self, sql: str) -> list[dict[str, Any]]:
        if self._server is not None:
            return self._server.query(sql)
        url = f"http://127.0.0.1:{self._base['clickhouse_port']}/"
        asked = urllib.request.Request(url, f"{sql} FORMAT JSONEachRow".encode())
        with urllib.request.urlopen(asked, timeout=DEADLINE_SECONDS) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    def count(self) -> int:
        return int(self.query("SELECT count() AS n FROM job_events")[0]["n"])

    def wait_rows(self, log: Log) -> None:
        """Until everything is there, or more. A view's rows show a moment after those it reads."""
        wanted = len(log.events)
        self.wait_count(wanted)
        latest = {(event.user_id, event.job_id): event.sequence for _, event in log.events}
        for sql, least in (
            ("SELECT sum(events) AS n FROM job_minutes", wanted),
            ("SELECT sum(sequence) AS n FROM jobs", sum(s or 0 for s in latest.values())),
        ):
            wait_until(
                lambda sql=sql, least=least: int(self.query(sql)[0]["n"]) >= least,  # type: ignore[misc]
                DEADLINE_SECONDS, sql,
            )

    def wait_count(self, wanted: int) -> None:
        """Until so many rows are there, or more."""
        wait_until(lambda: self.count() >= wanted, DEADLINE_SECONDS, lambda: f"{self.count()} rows")

    def check(self, log: Log) -> None:
        """Every table says what the log says."""
        self.wait_rows(log)
        distinct = self.query(
            "SELECT count() AS n, uniqExact(kafka_partition, kafka_offset) AS u FROM job_events"
        )[0]
        assert int(distinct["n"]) == int(distinct["u"]) == len(log.events)
        rows = self.query(f"SELECT {EVENT_COLUMNS} FROM job_events GROUP BY kafka_partition, event")
        found = {(r["kafka_partition"], r["event"]): int(r["events"]) for r in rows}
        assert found == log.by_event()
        rows = self.query("SELECT status, count() AS jobs FROM jobs GROUP BY status")
        assert {r["status"]: int(r["jobs"]) for r in rows} == log.by_status()
        rows = self.query(
            "SELECT type, event, error_code, sum(events) AS n, sum(run_ms_sum) AS run_ms"
            " FROM job_minutes GROUP BY type, event, error_code"
        )
        minutes = {
            (r["type"], r["event"], r["error_code"]): (int(r["n"]), int(r["run_ms"])) for r in rows
        }
        assert minutes == log.by_minute()

    def check_refused(self, log: Log) -> None:
        """Each refused record is one row, and no failed job is."""
        said = (
            "SELECT count() AS n, uniqExact(kafka_partition, kafka_offset) AS u,"
            " uniqExact(source_offset) AS s FROM refused_requests"
        )
        wait_until(
            lambda: int(self.query(said)[0]["n"]) >= log.refused, DEADLINE_SECONDS,
            lambda: f"{self.query(said)} of {log.refused}",
        )
        row = self.query(said)[0]
        assert int(row["n"]) == int(row["u"]) == int(row["s"]) == log.refused
        assert not self.query("SELECT 1 FROM refused_requests WHERE stage != 'request'")

    def wait_committed(self, log: Log) -> None:
        """Until the group is at the end of the log, behind the last marker."""
        wait_until(
            lambda: log.committed() == log.ends(), DEADLINE_SECONDS,
            lambda: f"{log.committed()} of {log.ends()}",
        )

    @property
    def url(self) -> str:
        """Of the embedded port; "" over a server."""
        return "" if self._server else f"http://127.0.0.1:{self._base['clickhouse_port']}"

    def close(self) -> None:
        for process in self._processes:
            process.end(signal.SIGKILL)
            assert process.popen.stdout is not None
            process.popen.stdout.close()
        if self._server is not None:
            self._server.command(f"DROP DATABASE {self._base['clickhouse'].rpartition('/')[2]}")
            self._server.close()


@pytest.fixture
def log(kafka: str, topic_prefix: str) -> Log:
    return Log(kafka, f"{topic_prefix}.")


@pytest.fixture(params=["chdb", "server"])
def place(
    request: pytest.FixtureRequest, kafka: str, topic_prefix: str, tmp_path: Path
) -> Iterator[Place]:
    server = None if request.param == "chdb" else request.getfixturevalue("clickhouse_server")
    made = Place(server, kafka, f"{topic_prefix}.", tmp_path / "clickhouse")
    yield made
    made.close()


def test_tables_say_what_the_log_says(log: Log, place: Place) -> None:
    log.produce(3_000)
    sink = place.start()
    sink.wait_ready()
    log.produce(1_000)
    place.check(log)
    assert sink.end() == 0
    again = place.start()
    again.wait_ready()
    log.produce(500)
    place.check(log)


def test_a_row_holds_its_event(log: Log, place: Place) -> None:
    log.produce(600)
    place.start().wait_ready()
    place.check(log)
    event = next(e for _, e in log.events if e.kind == "failed")
    row = place.query(
        f"SELECT * FROM job_events WHERE job_id = '{event.job_id}' AND event = 'failed'"
    )[0]
    assert event.error is not None
    assert event.cause is not None
    assert row["user_id"] == event.user_id
    assert row["event_id"] == event.event_id
    assert (row["state_before"], row["state_after"]) == ("running", "failed")
    assert row["error_code"] == event.error["code"]
    assert row["error_message"] == event.error["message"]
    assert row["error_retryable"] is True
    assert (row["cause_topic"], row["cause_partition"]) == event.cause[:2]
    assert (row["wait_ms"], row["run_ms"]) == (event.wait_ms, event.run_ms)
    assert row["due_at"] is None
    begin = next(e for _, e in log.events if e.kind == "requested")
    row = place.query(
        f"SELECT * FROM job_events WHERE job_id = '{begin.job_id}' AND event = 'requested'"
    )[0]
    assert json.loads(row["data"]) == begin.data
    assert (row["state_before"], row["worker_id"], row["error_code"]) == ("", "", "")
    dispatched = place.query("SELECT * FROM job_events WHERE event = 'dispatched' LIMIT 1")[0]
    assert dispatched["data"] == ""
    assert (dispatched["cause_topic"], dispatched["cause_offset"]) == ("", None)
    retry = place.query("SELECT * FROM job_events WHERE event = 'retry_scheduled' LIMIT 1")[0]
    assert retry["due_at"].startswith("2025-11-24 16:00:0")


@pytest.mark.parametrize(
    "crash_point",
    ["sink.before_borders", "sink.after_borders_before_insert", "sink.after_insert_before_commit"],
)
def test_a_crash_at_any_step_leaves_each_event_once(
    log: Log, place: Place, crash_point: str
) -> None:
    log.produce(4_000)
    # The fifth batch: some are committed by then, and the one that is cut has neighbours.
    crashed = place.start(crash_at=f"{crash_point}:5")
    assert crashed.popen.wait(DEADLINE_SECONDS) == CRASH_EXIT_CODE
    log.produce(500)
    # Other limits would cut other batches; borders that were written down must hold all the same.
    place.start(batch_rows=3_000, batch_seconds=0.5).wait_ready()
    place.check(log)


@pytest.mark.parametrize(
    "crash_point",
    ["sink.before_borders", "sink.after_borders_before_insert", "sink.after_insert_before_commit"],
)
def test_a_crash_at_any_step_leaves_each_refused_record_once(
    log: Log, place: Place, crash_point: str
) -> None:
    log.produce_refused(40)
    crashed = place.start(crash_at=f"{crash_point}:2", batch_rows=10)
    assert crashed.popen.wait(DEADLINE_SECONDS) == CRASH_EXIT_CODE
    log.produce_refused(12)
    place.start(batch_rows=3_000, batch_seconds=0.5).wait_ready()
    place.check_refused(log)
    row = place.query("SELECT * FROM refused_requests LIMIT 1")[0]
    assert (row["code"], row["field"], row["user_id"]) == ("INVALID_FIELD", "x", "u")
    assert row["message"] == "field 'x': no\ufffd[2J"
    assert row["value"] == '{"card":"\ufffd[31m\ufffd"}'
    # Beside a flood of events both tables are whole.
    log.produce(500)
    log.produce_refused(5)
    place.check(log)
    place.check_refused(log)


def test_a_gap_is_told_with_its_offsets_and_markers_are_none(log: Log, place: Place) -> None:
    """Retention took records that the sink had not read, and holes that were never records."""
    log.produce(300)
    sink = place.start()
    sink.wait_ready()
    place.check(log)
    place.wait_committed(log)
    assert sink.end() == 0
    # All of it was read: what goes now is no loss, the markers at the end of the log included.
    log.delete_before(log.ends())
    sink = place.start()
    sink.wait_ready()
    log.produce(100)
    place.check(log)
    place.wait_committed(log)
    assert not place.query("SELECT * FROM log_gaps")
    assert sink.end() == 0
    before = log.ends()
    kept = list(log.events)
    log.produce(100)
    log.delete_before(log.ends())
    log.events = kept
    log.produce(100)
    for _ in range(2):  # a gap that is met again is the same one
        sink = place.start(batch_seconds=0.05)
        sink.wait_ready()
        place.check(log)
        sink.end(signal.SIGKILL)
    place.start().wait_ready()
    rows = place.query("SELECT * FROM log_gaps FINAL ORDER BY kafka_partition")
    assert [row["kafka_partition"] for row in rows] == list(range(PARTITIONS))
    assert {row["topic"] for row in rows} == {log.topics.events}
    for row in rows:
        assert int(row["first_offset"]) == before[row["kafka_partition"]]
        assert int(row["last_offset"]) == log.starts()[row["kafka_partition"]] - 1
    if place.url:
        finding = gaps_check(CommonSettings(clickhouse=place.url))
        assert finding.verdict == "failed"
        assert f"offsets {before[0]} to" in finding.found


def test_kills_at_random_moments_leave_each_event_once(log: Log, place: Place) -> None:
    rng = random.Random(20)
    log.produce(2_000)
    for _ in range(3):
        sink = place.start(batch_rows=rng.choice([50, 150, 2_000]), batch_seconds=0.05)
        sink.wait_ready()
        log.produce(1_500)
        place.wait_count(int(rng.uniform(0.2, 1.0) * len(log.events)))
        sink.end(signal.SIGKILL)
    place.start().wait_ready()
    place.check(log)


def test_an_insert_that_reports_failure_and_succeeded_is_not_made_twice(
    log: Log, place: Place
) -> None:
    log.produce(3_000)
    sink = place.start(fault="ambiguous:3")
    sink.wait_for("fault: ambiguous")
    place.check(log)


def test_an_outage_is_waited_out(log: Log, place: Place) -> None:
    log.produce(2_000)
    sink = place.start(fault=f"away:3:{OUTAGE_SECONDS}")
    sink.wait_for("fault: away")
    log.produce(6_000)
    sink.wait_for("ClickHouse takes rows again")
    place.check(log)
    assert sink.end() == 0


def test_a_stop_within_an_outage_loses_nothing(log: Log, place: Place) -> None:
    log.produce(2_000)
    sink = place.start(fault="away:3:600")
    sink.wait_for("fault: away")
    assert sink.end() == 0
    place.start().wait_ready()
    place.check(log)


GOOD_BUT_STRANGE: dict[str, Any] = {
    "schema_version": 1, "event_id": "u/j/1/1", "event": "requested", "job_id": "strange",
    "user_id": "u", "type": "t", "queue": "", "priority": "low", "incarnation": 1_764_000_000_000,
    "run": 1, "sequence": 1, "attempt": 0, "epoch": 0, "occurred_at": "2025-11-24T16:00:00.000Z",
    "state_before": None, "state_after": "pending", "reason": None, "error": None,
    "worker_id": None, "due_at": None, "wait_ms": None, "run_ms": None, "cause": None,
    "data": {"payload": {"text": "line\nbreak \u2028 \"quoted\" \U0001f642"}},
}


def _changed(**fields: Any) -> bytes:
    return json.dumps({**GOOD_BUT_STRANGE, **fields}, separators=(",", ":")).encode()


BAD: dict[str, tuple[bytes | None, str]] = {
    "tombstone": (None, "EMPTY_RECORD"),
    "no JSON": (b"\xff\x00", "UNDECODABLE"),
    "cut": (_changed()[:-20], "UNDECODABLE"),
    "two events": (_changed() + _changed(), "UNDECODABLE"),
    "a list": (b"[1]", "NOT_AN_OBJECT"),
    "deep": (b'{"schema_version":1,"data":' + b"[" * 10_000, "TOO_DEEP"),
    "another version": (_changed(schema_version=2), "UNKNOWN_VERSION"),
    "no version": (b"{}", "UNKNOWN_VERSION"),
    "unknown field": (_changed(extra=1), "INVALID_FIELD"),
    "fields missing": (b'{"schema_version":1,"event":"requested"}', "INVALID_FIELD"),
    "no id": (_changed(job_id=""), "INVALID_FIELD"),
    "wrong type": (_changed(attempt="three"), "INVALID_FIELD"),
    "too large": (_changed(attempt=2**32), "INVALID_FIELD"),
    "negative": (_changed(run=-1), "INVALID_FIELD"),
    "no instant": (_changed(occurred_at="yesterday"), "INVALID_FIELD"),
    "unknown event": (_changed(event="exploded"), "INVALID_FIELD"),
    "a second offset": (_changed(kafka_offset=7), "INVALID_FIELD"),
}


DeadLetter = tuple[bytes | None, dict[str, bytes]]


def _dead_letters(kafka: str, topic: str, count: int) -> list[DeadLetter]:
    consumer = Consumer(
        {
            "bootstrap.servers": kafka, "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest", "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    found: list[DeadLetter] = []

    def poll() -> bool:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            headers: Any = message.headers() or []
            found.append((message.value(), dict(headers)))
        return len(found) >= count

    wait_until(poll, DEADLINE_SECONDS, lambda: f"{len(found)} of {count} dead letters")
    consumer.close()
    return found


def test_bad_events_become_dead_letters_and_neighbours_go_on(
    log: Log, place: Place, kafka: str
) -> None:
    log.produce(500)
    log.produce_bad([value for value, _ in BAD.values()], partition=1)
    log.produce_bad([_changed()], partition=1)
    log.produce(500)
    place.start().wait_ready()
    wanted = len(log.events) + 1
    place.wait_count(wanted)
    assert place.count() == wanted
    strange = place.query("SELECT * FROM job_events WHERE job_id = 'strange'")
    assert json.loads(strange[0]["data"]) == GOOD_BUT_STRANGE["data"]
    letters = _dead_letters(kafka, log.topics.dead, len(BAD))
    by_value = dict(letters)
    assert len(letters) == len(by_value) == len(BAD)
    for name, (value, code) in BAD.items():
        headers = by_value[value]
        assert headers["tidemill.dead.error.code"].decode() == code, name
        assert headers["tidemill.dead.stage"] == b"event"
        assert headers["tidemill.dead.topic"].decode() == log.topics.events
        assert headers["tidemill.dead.partition"] == b"1"
        assert headers["trace"] == b"1"
        assert headers["tidemill.dead.error.message"]


def test_events_at_every_bound_of_the_door_go_in_beside_a_broken_one(
    log: Log, place: Place, kafka: str
) -> None:
    lives = [
        events_of_life(value_with(name, value), result=nested(254))
        for name, values in TAKEN.items() for value in values
    ]
    good = [event for life in lives for event in life]
    broken = [BAD["cut"][0], BAD["unknown field"][0], BAD["no instant"][0]]
    log.produce_bad([*good[:40], broken[0], *good[40:], *broken[1:]], partition=1)
    place.start().wait_ready()
    place.wait_count(len(good))
    assert place.count() == len(good)
    rows = place.query(
        "SELECT toString(max(due_at)) AS latest, toString(min(due_at)) AS first FROM job_events "
        "WHERE event = 'scheduled' AND due_at > '2200-01-01'"
    )
    assert rows == [
        {"latest": "2299-12-31 00:00:00.000", "first": "2200-12-31 10:00:00.000"}
    ]
    letters = _dead_letters(kafka, log.topics.dead, len(broken))
    assert [value for value, _ in letters] == broken


@pytest.mark.parametrize("name", ["two events", "unknown field", "fields missing", "wrong type"])
def test_a_record_that_looks_like_an_event_is_found_without_bad_neighbours(
    log: Log, place: Place, kafka: str, name: str
) -> None:
    """ClickHouse itself refuses these: nothing else in their batch asks for a careful look."""
    value, code = BAD[name]
    log.produce_bad([value], partition=2)
    log.produce(200)
    place.start().wait_ready()
    place.check(log)
    letters = _dead_letters(kafka, log.topics.dead, 1)
    assert [(found, h["tidemill.dead.error.code"].decode()) for found, h in letters] == [
        (value, code)
    ]


def test_borders_name_exactly_what_was_inserted(log: Log, place: Place) -> None:
    """After the crash behind an insert, the note beside the offset and the rows agree."""
    log.produce(1_000)
    crashed = place.start(crash_at="sink.after_insert_before_commit:2")
    assert crashed.popen.wait(DEADLINE_SECONDS) == CRASH_EXIT_CODE
    again = place.start(batch_rows=5_000)
    line = again.wait_for("making the insert")
    assert "again" in line
    place.check(log)


def test_two_sinks_share_the_partitions(log: Log, place: Place) -> None:
    if place._role == "stack":
        pytest.skip("one process holds a chDB folder")
    log.produce(1_000)
    first = place.start(instance_id="sink-0")
    first.wait_ready()
    second = place.start(instance_id="sink-1")
    second.wait_ready()
    log.produce(2_000)
    place.wait_rows(log)
    first.end(signal.SIGKILL)
    log.produce(1_000)
    place.check(log)


def test_page_and_port_answer_while_rows_go_in(log: Log, place: Place) -> None:
    if place._role != "stack":
        pytest.skip("a sink over a server serves no page")
    sink = place.start(batch_rows=20_000, batch_seconds=1.0)
    ready = json.loads(sink.wait_for('"role_ready"'))
    log.produce(20_000, group=5_000)

    def answered() -> bool:
        with urllib.request.urlopen(f"{ready['http']}/healthz", timeout=5.0) as answer:
            assert answer.status == 200
        return place.count() >= len(log.events)

    wait_until(answered, DEADLINE_SECONDS, "rows did not come")
    place.check(log)


