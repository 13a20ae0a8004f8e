"""Every panel's SQL against ClickHouse's engine, compared with counts made in plain Python."""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CLICKHOUSE_VARIABLE
from tests.page.sample import (
    NOT_RUN,
    NOT_SERVED,
    SUSPENDED,
    Sample,
    engine_with,
    insert,
    make_sample,
)
from tidemill.agents import queries
from tidemill.agents.clickhouse.engine import Engine, open_engine
from tidemill.agents.queries.grafana import expand, to_grafana

NOW = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)
WINDOW = queries.Window.last(15, NOW)
WAITING = ("scheduled", "pending", "retrying")
TERMINAL = ("succeeded", "failed", "skipped", "cancelled", "expired")
NO_FILTER: dict[str, Any] = dict.fromkeys(
    ("status", "type", "queue", "user_id", "job_id", "tag", "batch", "parent"), ""
)
NO_CURSOR: dict[str, Any] = {
    "candidates": 100_000, "before_incarnation": 2**63, "before_user_id": "", "before_job_id": "",
}


@pytest.fixture(scope="module")
def sample() -> Sample:
    return make_sample(NOW, jobs=1_500)


# A named server is asked too. Without one, a stand-in would be the same engine a second time.
@pytest.fixture(
    scope="module", params=["chdb", "server"] if os.environ.get(CLICKHOUSE_VARIABLE) else ["chdb"]
)
def engine(
    request: pytest.FixtureRequest, sample: Sample, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    if request.param == "chdb":
        with engine_with(f"chdb://{tmp_path_factory.mktemp('clickhouse')}", sample) as opened:
            yield _with_more(opened)
        return
    address, database = os.environ[CLICKHOUSE_VARIABLE].rstrip("/"), f"t{uuid.uuid4().hex[:10]}"
    server = open_engine(f"{address}/default")
    server.command(f"CREATE DATABASE {database}")
    try:
        with engine_with(f"{address}/{database}", sample) as opened:
            yield _with_more(opened)
    finally:
        server.command(f"DROP DATABASE {database}")
        server.close()


def some_job(sample: Sample) -> dict[str, Any]:
    """A job with a long story."""
    return max(sample.rows, key=lambda row: (row["sequence"], row["job_id"]))


def _with_more(engine: Engine) -> Engine:
    """What no event tells: a refused record, a gap, and a job with labels."""
    engine.command(
        "INSERT INTO refused_requests (kafka_partition, kafka_offset, refused_at, stage, code)"
        " VALUES (2, 7, now64(3), 'request', 'INVALID_FIELD')"
    )
    engine.command(
        "INSERT INTO log_gaps (topic, kafka_partition, first_offset, last_offset)"
        " VALUES ('jobs.events', 1, 5, 19), ('jobs.events', 1, 5, 29)"
    )
    return engine


def params_of(name: str, sample: Sample) -> dict[str, Any]:
    job = {"job_id": some_job(sample)["job_id"], "user_id": ""}
    return {
        "job": job,
        "job_story": job | {"offset": 0},
        "jobs_list": NO_FILTER | NO_CURSOR,
        "schedule_runs": {"user_ids": "schedule:nobody,schedule:minutely"},
        "refused_request": {"kafka_partition": 2, "kafka_offset": 7},
    }.get(name, {})


@pytest.mark.parametrize("name", queries.names())
def test_every_panel_runs_and_finds_something(engine: Engine, sample: Sample, name: str) -> None:
    assert queries.run(engine, name, WINDOW, **params_of(name, sample))


@pytest.mark.parametrize("name", queries.names())
def test_grafana_gets_the_same_rows(engine: Engine, sample: Sample, name: str) -> None:
    if params_of(name, sample):
        with pytest.raises(ValueError, match="Grafana has no macro"):
            to_grafana(queries.load(name))
        return
    sql = expand(to_grafana(queries.load(name)), WINDOW)
    assert "$__" not in sql
    assert engine.query(sql, settings=queries.SETTINGS) == queries.run(engine, name, WINDOW)


def test_totals_are_what_was_written(engine: Engine, sample: Sample) -> None:
    counts = Counter(row["event"] for row in sample.rows)
    totals = queries.run(engine, "totals", WINDOW)[0]
    assert {status: totals[status] for status in TERMINAL} == {s: counts[s] for s in TERMINAL}
    assert totals["requested"] == counts["requested"] == 1_500
    assert totals["attempts_failed"] == counts["attempt_failed"]
    assert totals["ended_per_second"] == pytest.approx(totals["ended"] / 900)


def test_throughput_sums_to_what_ended(engine: Engine, sample: Sample) -> None:
    rows = queries.run(engine, "throughput", WINDOW)
    counts = Counter(row["event"] for row in sample.rows)
    for status in TERMINAL:
        total = sum(row[status] for row in rows) * WINDOW.step_seconds
        assert total == pytest.approx(counts[status])
    times = [datetime.fromisoformat(row["at"]) for row in rows]
    steps = {later - earlier for earlier, later in pairwise(times)}
    assert steps == {timedelta(seconds=WINDOW.step_seconds)}, "no gap and no double point"


def test_states_now_are_the_last_states(engine: Engine, sample: Sample) -> None:
    expected = Counter(sample.last_states().values())
    rows = queries.run(engine, "states_now")
    assert {row["status"]: row["jobs"] for row in rows} == expected
    live = queries.run(engine, "live_now")[0]
    assert live["waiting"] == sum(expected[s] for s in ("scheduled", "pending", "retrying"))
    assert live["in_flight"] == expected["dispatched"] + expected["running"]
    assert live["awaiting"] == expected["awaiting"] == SUSPENDED
    assert live["jobs"] == 1_500


def test_error_rates_by_type(engine: Engine, sample: Sample) -> None:
    ended = Counter(
        r["type"] for r in sample.rows if r["event"] in ("attempt_failed", "attempt_succeeded")
    )
    failed = Counter(r["type"] for r in sample.rows if r["event"] == "attempt_failed")
    rows = queries.run(engine, "error_rate_by_type", WINDOW)
    assert {row["type"]: row["attempts"] for row in rows} == ended
    for row in rows:
        assert row["error_percent"] == pytest.approx(100 * failed[row["type"]] / ended[row["type"]])


def test_percentiles_are_near_the_exact_ones(engine: Engine, sample: Sample) -> None:
    ran = sample.ended("succeeded") + sample.ended("failed")
    row = queries.run(engine, "latency", WINDOW)[0]
    ran = [job for job in ran if job["attempt"]]
    assert row["jobs"] == len(ran)
    for measure in ("wait", "run"):
        values = [job[f"{measure}_ms"] for job in ran]
        for percent in (50, 95, 99):
            shown = row[f"{measure}_p{percent}_ms"]
            below = 100 * sum(value < shown for value in values) / len(values)
            above = 100 * sum(value > shown for value in values) / len(values)
            # A digest may be off by a little in rank; across a gap in the data by much in value.
            assert below <= percent + 1
            assert above <= 100 - percent + 1


def test_an_empty_window_has_no_percentiles(engine: Engine) -> None:
    window = queries.Window.last(15, NOW - timedelta(days=400))
    row = queries.run(engine, "latency", window)[0]
    assert row["jobs"] == 0
    assert row["wait_p99_ms"] is None
    assert queries.run(engine, "totals", window)[0]["error_percent"] is None


def test_last_failures_are_the_newest(engine: Engine, sample: Sample) -> None:
    expected = sorted((row["occurred_at"] for row in sample.ended("failed")), reverse=True)[:5]
    rows = queries.run(engine, "last_failures", WINDOW, limit=5)
    assert [row["at"].replace("T", " ").rstrip("Z") for row in rows] == expected
    assert all(row["reason"] and row["error_code"] for row in rows)


def test_dead_letters_and_their_causes(engine: Engine, sample: Sample) -> None:
    dead = {key for key, state in sample.last_states().items() if state == "failed"}
    rows = queries.run(engine, "dead_letters", limit=1_000)
    assert {(row["user_id"], row["job_id"]) for row in rows} == dead
    groups = queries.run(engine, "dead_letter_groups", limit=1_000)
    assert sum(row["dead_jobs"] for row in groups) == len(dead)


def test_queues_add_up(engine: Engine, sample: Sample) -> None:
    rows = queries.run(engine, "queues", WINDOW)
    last = {(row["user_id"], row["job_id"]): row for row in sample.rows if row["sequence"]}
    waiting = Counter(row["queue"] for row in last.values() if row["state_after"] in WAITING)
    assert {row["queue"]: row["waiting"] for row in rows if row["waiting"]} == waiting
    assert "" in waiting, "the sample has jobs whose type is not known"
    live = queries.run(engine, "live_now")[0]
    assert sum(row["in_flight"] for row in rows) == live["in_flight"]
    assert {row["queue"]: row["awaiting"] for row in rows if row["awaiting"]} == {
        "trials": SUSPENDED
    }
    ended = Counter(row["queue"] for row in sample.rows if row["event"] in TERMINAL)
    assert {row["queue"]: row["ended"] for row in rows if row["ended"]} == ended


def test_what_nobody_can_run_is_named_with_its_cause(engine: Engine, sample: Sample) -> None:
    rows = queries.run(engine, "nobody_runs", limit=100)
    found = {(row["queue"], row["type"], row["reason"]): row["jobs"] for row in rows}
    assert found["mail", "mail.send", "queue_not_served"] == NOT_SERVED
    assert found["feed", "feed.gone", "type_not_run"] == NOT_RUN
    last = {(row["user_id"], row["job_id"]): row for row in sample.rows if row["sequence"]}
    unknown = [
        row for row in last.values()
        if (row["state_after"], row["reason"]) == ("scheduled", "unknown_type")
    ]
    assert sum(n for (_, _, reason), n in found.items() if reason == "unknown_type") == len(unknown)


def test_schedules_are_told_with_their_last_ticks(engine: Engine, sample: Sample) -> None:
    ticks = [row for row in sample.rows if row["user_id"] == "schedule:minutely"]
    asked = [row["job_id"] for row in ticks if row["event"] == "requested"]
    (last,) = queries.run(engine, "schedule_runs", **params_of("schedule_runs", sample))
    assert (last["schedule"], last["job_id"]) == ("minutely", asked[-1])
    assert last["status"] == "succeeded"
    (by_clock,) = queries.run(engine, "schedule_ticks", WINDOW)
    assert by_clock["last_job_id"] == asked[-2]
    (failing,) = queries.run(engine, "schedule_failures", WINDOW)
    failed = {row["job_id"] for row in ticks if row["event"] == "failed"}
    assert (failing["runs"], failing["failed"]) == (10, len(failed & set(asked[-10:])))
    assert failing["last_failed_job_id"] == max(failed)
    assert not failing["is_last_failed"]


def test_hand_backs_are_counted(engine: Engine, sample: Sample) -> None:
    (row,) = queries.run(engine, "hand_backs", WINDOW)
    assert (row["queue"], row["type"], row["reason"]) == ("feed", "feed.gone", "type_not_run")
    assert (row["hand_backs"], row["jobs"], row["most_of_a_job"]) == (NOT_RUN, NOT_RUN, 1)


def test_a_story_is_complete_and_in_order(engine: Engine, sample: Sample) -> None:
    job = some_job(sample)
    rows = queries.run(
        engine, "job_story", job_id=job["job_id"], user_id=job["user_id"], offset=0
    )
    expected = [row for row in sample.rows if row["job_id"] == job["job_id"]]
    assert [row["event"] for row in rows] == [row["event"] for row in expected]
    assert [row["sequence"] for row in rows] == list(range(1, len(expected) + 1))
    other = queries.run(engine, "job_story", job_id=job["job_id"], user_id="nobody", offset=0)
    assert other == []


def test_the_list_pages_over_every_job_once(engine: Engine, sample: Sample) -> None:
    seen: list[tuple[str, str]] = []
    cursor: dict[str, Any] = dict(NO_CURSOR)
    while rows := queries.run(engine, "jobs_list", **NO_FILTER, **cursor, limit=400):
        seen += [(row["user_id"], row["job_id"]) for row in rows]
        last = rows[-1]
        cursor = NO_CURSOR | {
            "before_incarnation": last["incarnation"],
            "before_user_id": last["user_id"],
            "before_job_id": last["job_id"],
        }
    assert len(seen) == len(set(seen))
    assert set(seen) == set(sample.last_states())


def test_a_gap_that_grew_is_one(engine: Engine) -> None:
    (row,) = queries.run(engine, "log_gaps")
    assert (row["first_offset"], row["last_offset"], row["offsets"]) == (5, 29, 25)


def test_the_list_filters(engine: Engine, sample: Sample) -> None:
    states = sample.last_states()
    params: dict[str, Any] = NO_FILTER | {"status": "failed,skipped"} | NO_CURSOR
    rows = queries.run(engine, "jobs_list", **params, limit=1_000)
    assert len(rows) == sum(state in ("failed", "skipped") for state in states.values())
    user = some_job(sample)["user_id"]
    params = NO_FILTER | {"user_id": user} | NO_CURSOR
    rows = queries.run(engine, "jobs_list", **params, limit=1_000)
    assert {row["job_id"] for row in rows} == {job for owner, job in states if owner == user}


def test_wrong_parameters_are_named(engine: Engine) -> None:
    with pytest.raises(queries.UnknownQuery, match="throughput"):
        queries.load("nonsense")
    with pytest.raises(ValueError, match="takes job_id, user_id, limit"):
        queries.run(engine, "job", job_id="x")
    with pytest.raises(ValueError, match="minutes: 0"):
        queries.Window.last(0, NOW)
    with pytest.raises(ValueError, match="the header names"):
        queries.parse("x", "-- title: T\n-- meaning: M\n-- unit:\n-- params: a\nSELECT {b:UInt8}")


def grafana_panels() -> list[tuple[str, dict[str, Any]]]:
    folder = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards"
    return [
        (f"{path.stem}: {panel['title']}", panel)
        for path in sorted(folder.glob("*.json"))
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
    ]


@pytest.mark.parametrize(("name", "panel"), grafana_panels(), ids=lambda value: str(value)[:60])
def test_every_query_of_grafana_runs(engine: Engine, name: str, panel: dict[str, Any]) -> None:
    (target,) = panel["targets"]
    rows = engine.query(expand(target["rawSql"], WINDOW), settings=queries.SETTINGS)
    assert rows, name
    if panel["type"] == "timeseries":
        assert target["format"] == 0
        assert "at" in rows[0]
    if panel["type"] == "stat":
        field = panel["options"]["reduceOptions"]["fields"].strip("/^$")
        assert isinstance(rows[0][field], int | float)


def test_labels_of_the_latest_event_are_columns_and_filters(
    engine: Engine, sample: Sample
) -> None:
    """Each event of a job brings them; the sample's own have none. Last: it adds a
    job."""
    born = {
        "job_id": "labelled", "user_id": "lab", "incarnation": 1_764_000_000_000,
        "tags": ["red", 'b"'], "batch_id": "batch/1", "parent_job_id": "mother",
    }
    made = Sample()
    made.rows = [
        sample.rows[0] | born | {"sequence": number, "state_after": state, "event_id": str(number)}
        for number, state in ((1, "pending"), (2, "succeeded"))
    ]
    insert(engine, made)
    for given in ({"tag": "red"}, {"batch": "batch/1"}, {"parent": "mother"}):
        rows = queries.run(engine, "jobs_list", **NO_FILTER | given, **NO_CURSOR)
        assert [(row["job_id"], row["status"]) for row in rows] == [("labelled", "succeeded")]
        assert rows[0]["tags"] == ["red", 'b"']
    assert not queries.run(engine, "jobs_list", **NO_FILTER | {"tag": "re"}, **NO_CURSOR)
    (row,) = engine.query("SELECT tags, batch_id, parent_job_id FROM jobs WHERE user_id = 'lab'")
    assert (row["batch_id"], row["parent_job_id"]) == ("batch/1", "mother")
