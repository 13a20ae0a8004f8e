"""Cancels and requests that overtake each other, against the real engine.

Owns who comes first and by which partition. Every cancel has one answer on the log, and the log
keeps to it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from confluent_kafka import Producer

from tests.chaos.engine import Engine
from tests.chaos.rawlog import read_topic
from tests.chaos.running import PARTITIONS, Ends, Job
from tests.waiting import wait_until
from tidemill.agents import exit_codes
from tidemill.client import Client

pytestmark = pytest.mark.timeout(240)

JOBS: Final = 150
Headers = list[tuple[str, str | bytes | None]]

FORMS: Final = ("plain", "binary", "structured", "unknown type", "refused")


def answers(engine: Engine, places: set[tuple[int, int]]) -> dict[tuple[int, int], list[str]]:
    """The events whose cause is one of these commands."""
    found: dict[tuple[int, int], list[str]] = {place: [] for place in places}
    for record in read_topic(engine.kafka, "jobs.events"):
        event: dict[str, Any] = orjson.loads(record.value or b"")
        cause = event["cause"] or {}
        place = (cause.get("partition"), cause.get("offset"))
        if cause.get("topic") == "jobs.commands" and place in found:
            found[place].append(event["event"])
    return found


def test_a_cancel_right_after_an_acknowledged_enqueue_is_never_lost(
    engine: Engine, ends: Ends
) -> None:
    later = datetime.now(tz=UTC) + timedelta(hours=1)
    jobs: set[Job] = set()
    places: set[tuple[int, int]] = set()
    with Client(engine.kafka) as client:
        for number in range(JOBS):
            user = f"cancel-user-{number % 40}"
            handle = client.enqueue("stranger.note", user_id=user, run_at=later)
            receipt = client.cancel(user, handle.job_id)
            jobs.add((user, handle.job_id))
            places.add((receipt.partition, receipt.offset))
    ended = ends.wait_for(jobs)
    assert {body["status"] for body in ended.values()} == {"cancelled"}
    told = answers(engine, places)
    assert all(kinds in (["cancelled"], ["cancel_kept", "cancelled"]) for kinds in told.values())


def test_the_caller_is_told_what_the_log_says(engine: Engine, ends: Ends, notes: Path) -> None:
    later = datetime.now(tz=UTC) + timedelta(hours=1)
    with Client(engine.kafka) as client:
        waits = client.enqueue("stranger.note", user_id="told", run_at=later)
        ends_soon = client.enqueue("stranger.note", user_id="told", payload={"folder": str(notes)})
        assert client.wait(ends_soon).status == "succeeded"
        cancelled = client.answer(client.cancel("told", waits.job_id))
        assert (cancelled.event, cancelled.is_done) == ("cancelled", True)
        late = client.answer(client.cancel("told", ends_soon.job_id))
        assert (late.event, late.reason, late.is_done, late.is_unknown_job) == (
            "command_refused", "already_ended", False, False
        )
        kept = client.answer(client.cancel("told", "nobody-asked"))
        assert (kept.event, kept.is_unknown_job, kept.is_done) == ("cancel_kept", True, False)
        assert kept.until is not None
        lost = client.answer(client.redrive("told", "nobody-knows"))
        assert (lost.event, lost.reason, lost.is_unknown_job) == (
            "command_refused", "unknown_job", True
        )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("cancel", "cli-waits"), exit_codes.OK, '"event": "cancelled"'),
        (("cancel", "cli-nobody"), exit_codes.NOT_FOUND, "the cancel is kept until"),
        (("redrive", "cli-nobody"), exit_codes.NOT_FOUND, "there is no job"),
        (("redrive", "cli-waits-2"), exit_codes.CONFLICT, "not_ended"),
        (("cancel", "cli-waits-2", "--timeout", "0"), exit_codes.OK, '"offset"'),
    ],
)
def test_the_command_line_waits_for_the_answer(
    engine: Engine, ends: Ends, words: tuple[str, ...], code: int, said: str
) -> None:
    later = datetime.now(tz=UTC) + timedelta(hours=1)
    with Client(engine.kafka) as client:
        if "waits" in words[1]:
            client.enqueue("stranger.note", user_id="cli", job_id=words[1], run_at=later)
    done = subprocess.run(
        [sys.executable, "-m", "tidemill", "jobs", *words, "--user", "cli",
         "--kafka", engine.kafka],
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done
    if words[0] == "cancel" and "waits" in words[1]:
        ends.wait_for({("cli", words[1])})


def _request(form: str, user: str, job: str) -> tuple[bytes, Headers]:
    body: dict[str, Any] = {"type": "stranger.note", "user_id": user, "job_id": job}
    attributes = {"specversion": "1.0", "id": job, "source": "/x", "type": "stranger.note"}
    match form:
        case "binary":
            headers: Headers = [(f"ce_{name}", text.encode()) for name, text in attributes.items()]
            return json.dumps({"user_id": user}).encode(), headers
        case "structured":
            event = {**attributes, "data": {"user_id": user}}
            content: Headers = [("content-type", b"application/cloudevents+json")]
            return json.dumps(event).encode(), content
        case "unknown type":
            body["type"] = "nobody.has.it"
        case "refused":
            body["surprise"] = 1
    return json.dumps(body).encode(), []


def test_cancels_that_come_first_by_any_partition(engine: Engine, ends: Ends) -> None:
    client = Producer({"bootstrap.servers": engine.kafka})
    jobs: set[Job] = set()
    for form in FORMS:
        for partition in range(PARTITIONS):
            user, job = f"first-{form}-{partition}", f"first-{form}"
            command = {"command": "cancel", "user_id": user, "job_id": job}
            client.produce("jobs.commands", json.dumps(command), partition=partition)
            jobs.add((user, job))
    assert client.flush(30) == 0
    _wait_until_kept(engine, jobs)
    for number, (user, job) in enumerate(sorted(jobs)):
        value, headers = _request(job.removeprefix("first-"), user, job)
        client.produce(
            "jobs.requested", value, headers=headers, partition=number % PARTITIONS
        )
    assert client.flush(30) == 0
    ended = ends.wait_for(jobs)
    assert {body["status"] for body in ended.values()} == {"cancelled"}
    assert all(len(ends.of(job)) == 1 for job in jobs)


def _wait_until_kept(engine: Engine, jobs: set[Job]) -> None:
    def are_kept() -> bool:
        log = read_topic(engine.kafka, "jobs.events")
        events = [orjson.loads(record.value or b"") for record in log]
        kept = {(e["user_id"], e["job_id"]) for e in events if e["event"] == "cancel_kept"}
        return jobs <= kept

    wait_until(are_kept, 30, "not every cancel was kept")


def test_a_mended_request_runs_under_the_id_of_the_refused_one(
    engine: Engine, ends: Ends, notes: Path
) -> None:
    stranger = Producer({"bootstrap.servers": engine.kafka})
    jobs: set[Job] = {(f"mend-user-{number}", f"mend-{number}") for number in range(8)}
    for user, job in jobs:
        broken = {"type": "stranger.note", "user_id": user, "job_id": job, "surprise": 1}
        stranger.produce("jobs.requested", json.dumps(broken), key=user)
    assert stranger.flush(30) == 0
    refused = ends.wait_for(jobs)
    assert {body["error"]["code"] for body in refused.values()} == {"UNKNOWN_FIELD"}
    with Client(engine.kafka) as client:
        for user, job in jobs:
            handle = client.enqueue(
                "stranger.note", user_id=user, job_id=job, payload={"folder": str(notes), "n": 1}
            )
            end = client.wait(handle, 60)
            assert (end.status, end.run, end.attempts) == ("succeeded", 2, 1)
    wait_until(lambda: all(len(ends.of(job)) == 2 for job in jobs), 10, "two ends of each job")
