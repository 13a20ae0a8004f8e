"""The ledger's small door for Prometheus: counts of what it could not take, and no names."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.chaos.rawlog import RawRecord
from tests.unit.core_kit import NOW
from tests.unit.partition_kit import TOPICS, Scene, decided, plain
from tidemill.agents.api.main import ApiServer
from tidemill.agents.ledger.metrics import LedgerCounts, LedgerMetrics, open_door
from tidemill.agents.settings import LedgerSettings, SettingsError
from tidemill.streams.output import DeadLetter
from tidemill.streams.store.kept_cancels import USER_COUNT_MAX

FAILED = DeadLetter("attempt", "A_CODE_OF_A_USER", "ada-l", "job-1", "mail", 3, "", "", "")
REFUSED = DeadLetter(
    "request", "UNKNOWN_FIELD", "ada-l", "job-2", "", 0, "", "x", "jobs.requested/0/1"
)
LOST = DeadLetter("request", "RECORDS_LOST", "", "", "", 0, "", "", "jobs.requested/0/9")


@pytest.fixture
def counts() -> LedgerCounts:
    return LedgerCounts()


@pytest.fixture
def door(counts: LedgerCounts) -> Iterator[ApiServer]:
    metrics = LedgerMetrics(counts)
    metrics.partitions, metrics.waiting, metrics.unreadable = (lambda: 8), (lambda: 3), (lambda: 2)
    opened = open_door(metrics, "127.0.0.1", 0)
    yield opened
    opened.stop()


def lines_of(door: ApiServer) -> set[str]:
    answer = httpx.get(f"http://127.0.0.1:{door.port}/metrics", timeout=30)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return set(answer.text.splitlines())


def test_what_is_counted_is_served(counts: LedgerCounts, door: ApiServer) -> None:
    assert "tidemill_ledger_failed_jobs_total 0.0" in lines_of(door)
    counts.add([FAILED, REFUSED, REFUSED, LOST], 0)
    counts.add([FAILED], 4)
    lines = lines_of(door)
    assert {
        "tidemill_ledger_failed_jobs_total 2.0",
        'tidemill_ledger_refused_records_total{code="UNKNOWN_FIELD",stage="request"} 2.0',
        'tidemill_ledger_refused_records_total{code="RECORDS_LOST",stage="request"} 1.0',
        "tidemill_ledger_forgotten_cancels_total 4.0",
        "tidemill_ledger_unreadable_worker_records_total 2.0",
        "tidemill_ledger_partitions 8.0",
        "tidemill_ledger_waiting_records 3.0",
    } <= lines
    told = "\n".join(lines)
    for name in ("ada-l", "job-1", "mail", "A_CODE_OF_A_USER"):
        assert name not in told


def test_nothing_else_is_served(door: ApiServer) -> None:
    for path in ("/", "/api/jobs", "/metrics/x"):
        assert httpx.get(f"http://127.0.0.1:{door.port}{path}", timeout=30).status_code == 404


def test_an_address_that_is_taken_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SettingsError) as refused:
        open_door(LedgerMetrics(LedgerCounts()), "127.0.0.1", taken.getsockname()[1])
    assert "TIDEMILL_METRICS_PORT" in str(refused.value)


def test_no_port_unless_it_is_asked_for() -> None:
    assert LedgerSettings().metrics_port is None
    assert LedgerSettings().metrics_host == "127.0.0.1"


def test_cancels_that_make_room_are_counted_in_their_group() -> None:
    scene = Scene(plain())
    values = [
        json.dumps({"command": "cancel", "user_id": "u", "job_id": f"c{number}"}).encode()
        for number in range(USER_COUNT_MAX + 7)
    ]
    scene.group(NOW, *[(TOPICS.commands, value) for value in values[:USER_COUNT_MAX]])
    assert scene.engine.forgotten_cancels == 0
    more = [
        RawRecord(TOPICS.commands, 0, USER_COUNT_MAX + number, NOW, b"k", value, ())
        for number, value in enumerate(values[USER_COUNT_MAX:])
    ]
    decided(
        scene.engine, NOW + 1, more, alive=scene.alive, rooms=scene.rooms,
        definitions=scene.definitions, told=scene.told, stalls=scene.stalls,
    )
    assert scene.engine.forgotten_cancels == 7
    scene.engine.commit()
    assert scene.engine.forgotten_cancels == 0
