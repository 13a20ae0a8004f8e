"""The sink against a real broker and a real engine: each event is one row, whatever happens.

The suite runs over chDB (in the process that also holds page and port), and over the server that
`TIDEMILL_TEST_CLICKHOUSE` names (http://user:password@host:port). Where it names none, a stand-in
(`clickhouse_stand_in`) takes its place, and pytest's header says so.
"""

from __future__ import annotations

import json
import random
import signal
import urllib.request
import uuid
from typing import Any

import pytest
from confluent_kafka import Consumer

from tests.integration.sink_kit import DEADLINE_SECONDS, PARTITIONS, Log, Place
from tests.unit.bounds_kit import TAKEN, events_of_life, nested, value_with
from tests.waiting import wait_until
from tidemill.agents.crash import CRASH_EXIT_CODE
from tidemill.agents.settings import CommonSettings
from tidemill.doctor.clickhouse import gaps as gaps_check

OUTAGE_SECONDS = 30.0


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
    ["sink.before_intents", "sink.after_intents_before_insert", "sink.after_insert_before_commit"],
)
def test_a_crash_at_any_step_leaves_each_event_once(
    log: Log, place: Place, crash_point: str
) -> None:
    log.produce(4_000)
    # The fifth batch: some are committed by then, and the one that is cut has neighbours.
    crashed = place.start(crash_at=f"{crash_point}:5")
    assert crashed.popen.wait(DEADLINE_SECONDS) == CRASH_EXIT_CODE
    log.produce(500)
    # Other limits would cut other batches; intents that were written down must hold all the same.
    place.start(batch_rows=3_000, batch_seconds=0.5).wait_ready()
    place.check(log)


@pytest.mark.parametrize(
    "crash_point",
    ["sink.before_intents", "sink.after_intents_before_insert", "sink.after_insert_before_commit"],
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
    broken = [BAD["cut"][0], BAD["unknown event"][0], BAD["no instant"][0]]
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


@pytest.mark.parametrize("name", ["two events", "a second offset", "fields missing", "wrong type"])
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


def test_events_of_a_newer_ledger_go_in_without_what_is_new(log: Log, place: Place) -> None:
    error = {"code": "E", "message": "m", "retryable": True, "hint": "new"}
    cause = {"topic": "t", "partition": 1, "offset": 2, "epoch": 3}
    newer = [
        _changed(job_id="top", new_in_2030={"a": [1]}),
        _changed(job_id="inside", error=error, cause=cause),
    ]
    log.produce_bad([*newer, BAD["cut"][0]], partition=1)  # looked at one by one
    log.produce_bad(newer, partition=2)  # as they are
    log.produce(200)
    place.start().wait_ready()
    place.wait_count(len(log.events) + 4)
    found = place.query(
        "SELECT job_id, error_code, cause_offset, kafka_partition FROM job_events"
        " WHERE job_id IN ('top', 'inside') ORDER BY kafka_partition, job_id"
    )
    assert [(row["job_id"], row["error_code"]) for row in found] == [
        ("inside", "E"), ("top", ""), ("inside", "E"), ("top", "")
    ]


def test_intents_name_exactly_what_was_inserted(log: Log, place: Place) -> None:
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


