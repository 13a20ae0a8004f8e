"""Dead letters are read from their topic where there is no ClickHouse, by the command line.

Owns what a person gets to see of a refused record and of a job that failed for good.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final

import pytest
from confluent_kafka import Producer

from tests.chaos.engine import Engine
from tests.chaos.running import Ends
from tidemill.agents import exit_codes

pytestmark = pytest.mark.timeout(240)

NOWHERE: Final = "http://127.0.0.1:1/none"
REFUSED: Final = {"type": "stranger.note", "user_id": "dead-refused", "job_id": "dead-r", "odd": 1}
FAILED: Final = {"type": "stranger.note", "user_id": "dead-failed", "job_id": "dead-f",
                 "payload": {"folder": ["\x1b[2J"]}}


def dead(engine: Engine, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tidemill", "dead", *words, "--kafka", engine.kafka,
         "--clickhouse", NOWHERE],
        capture_output=True, text=True, timeout=60, check=False,
    )


def entries(engine: Engine, *words: str) -> list[dict[str, Any]]:
    done = dead(engine, *words, "--from-topic", "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_the_topic_itself_names_each_dead_letter_and_its_way_out(
    engine: Engine, ends: Ends
) -> None:
    client = Producer({"bootstrap.servers": engine.kafka})
    for body in (REFUSED, FAILED):
        client.produce("jobs.requested", json.dumps(body), key=str(body["user_id"]))
    client.produce("jobs.requested", b"\xff no JSON", key="dead-broken")
    assert client.flush(30) == 0
    ends.wait_for({("dead-refused", "dead-r"), ("dead-failed", "dead-f")})

    found = {(e["kind"], e["user_id"]): e for e in entries(engine, "list", "--limit", "1000")}
    refused, failed = found["refused", "dead-refused"], found["failed", "dead-failed"]
    assert (refused["code"], refused["field"], refused["job_id"]) == (
        "UNKNOWN_FIELD", "odd", "dead-r"
    )
    assert "'odd'" in refused["way_out"]
    assert failed["code"] == "INVALID_PAYLOAD"
    assert "jobs redrive dead-f --user dead-failed" in failed["way_out"]
    assert any(
        e["code"] == "UNDECODABLE" and e["stage"] == "request"
        for e in entries(engine, "list", "--kind", "refused", "--limit", "1000")
    )
    assert {e["kind"] for e in entries(engine, "list", "--kind", "failed", "--limit", "1000")} == {
        "failed"
    }

    # By its place, and by its job's id with and without the user.
    assert entries(engine, "show", refused["id"])[0]["value"] == json.dumps(REFUSED)
    assert entries(engine, "show", failed["id"])[0]["job_id"] == "dead-f"
    assert entries(engine, "show", "dead-f", "--user", "dead-failed")[0]["id"] == failed["id"]
    assert dead(engine, "show", "dead-f", "--user", "dead-refused", "--from-topic").returncode == (
        exit_codes.NOT_FOUND
    )
    for words in (("list", "--limit", "1000"), ("show", failed["id"])):
        table = dead(engine, *words, "--from-topic")
        assert table.returncode == 0, table.stderr
        assert "INVALID_PAYLOAD" in table.stdout
        assert "\x1b" not in table.stdout
    # Without the option ClickHouse is asked, which is away here.
    assert dead(engine, "list").returncode == exit_codes.UNREACHABLE
