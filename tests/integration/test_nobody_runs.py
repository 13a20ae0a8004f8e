"""Workers of one queue that run different types, a handler that goes, a queue without workers.

Owns real roles over the session's broker: one ledger, one process of sink, API and page, and
workers that come and go.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import pytest
from confluent_kafka import Producer

from tests.chaos.running import Tail
from tests.integration.roles import Roles
from tests.waiting import wait_until
from tidemill.agents import exit_codes
from tidemill.agents.embedded.ports import free_port

pytestmark = pytest.mark.timeout(300)

SECONDS: Final = 60.0
QUICK_SECONDS: Final = 5.0  # a hundred jobs of a half-deployed queue
JOBS: Final = 100
GIVEN_UP_SECONDS: Final = 60.0  # 30 s of waiting, and a machine that is busy
OLD: Final = """
from tidemill import job

@job("steady", queue="shared")
async def steady(payload: dict) -> None: ...

@job("other.a", queue="shared")
def other_a(payload: dict) -> None: ...
"""
NEW: Final = """
from tidemill import job

@job("steady", queue="shared")
async def steady(payload: dict) -> None: ...

@job("fresh", queue="shared")
async def fresh(payload: dict) -> None: ...

@job("other.b", queue="shared")
def other_b(payload: dict) -> None: ...
"""
NIGHT: Final = """
from tidemill import job

@job("nightly", queue="night")
async def nightly(payload: dict) -> None: ...
"""

Event = dict[str, Any]


class Installation(Roles):
    """A ledger, a sink and workers by the name of their module."""

    def __init__(self, folder: Path, env: dict[str, str], ending: ExitStack) -> None:
        super().__init__(folder, env, ending, command_seconds=2 * SECONDS)
        kafka, prefix = env["TIDEMILL_KAFKA"], env["TIDEMILL_TOPIC_PREFIX"]
        self._prefix = prefix
        self._producer = Producer({"bootstrap.servers": kafka})
        self._kafka = kafka

    def follow(self) -> None:
        """Reads the events from now on; their topic must be there."""
        self._events = Tail(self._kafka, f"{self._prefix}jobs.events")
        self._events.start()
        self._ending.callback(self._events.close)

    def start(self, name: str, *words: str) -> None:
        role = self.begin(name, *words)
        wait_until(role.is_ready, SECONDS, role.tail)

    def work(self, module: str) -> None:
        """A worker with that module."""
        self.start(module, "worker", f"{module}.py", "--worker-id", f"w-{module}")

    def stop(self, name: str) -> None:
        role = self.roles.pop(name)
        assert role.process is not None
        role.process.terminate()
        assert role.process.wait(SECONDS) == exit_codes.OK, role.tail()

    def ask(self, type: str, name: str, count: int = JOBS, **fields: Any) -> set[str]:
        ids = {f"{name}-{number}" for number in range(count)}
        for number, job_id in enumerate(sorted(ids)):
            user = f"u{number % 8}"
            body = {"type": type, "user_id": user, "job_id": job_id, "payload": {}, **fields}
            self._producer.produce(
                f"{self._prefix}jobs.requested", orjson.dumps(body), user.encode()
            )
        assert self._producer.flush(SECONDS) == 0
        return ids

    def events(self, ids: set[str]) -> list[Event]:
        found = [orjson.loads(record.value or b"") for record in list(self._events.records)]
        return [event for event in found if event["job_id"] in ids]

    def kinds(self, ids: set[str]) -> set[str]:
        return {event["event"] for event in self.events(ids)}

    def wait_for(self, kind: str, ids: set[str], seconds: float = SECONDS) -> float:
        """Until each of the jobs has had such an event; seconds."""
        begun = time.monotonic()

        def missing() -> set[str]:
            return ids - {e["job_id"] for e in self.events(ids) if e["event"] == kind}

        wait_until(lambda: not missing(), seconds, lambda: f"no {kind}: {sorted(missing())[:5]}")
        return time.monotonic() - begun


@pytest.fixture(scope="module")
def installation(
    kafka: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("nobody")
    for name, text in (("old", OLD), ("new", NEW), ("night", NIGHT)):
        (folder / f"{name}.py").write_text(text)
    ports = {"clickhouse": str(free_port()), "http": str(free_port())}
    env = os.environ | {
        "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": f"t{uuid.uuid4().hex[:10]}",
        "TIDEMILL_CLICKHOUSE": f"http://127.0.0.1:{ports['clickhouse']}",
        "TIDEMILL_HTTP_PORT": ports["http"],
        "TIDEMILL_DATA": str(folder / "data"),
    }
    with ExitStack() as ending:
        made = Installation(folder, env, ending)
        applied = made.tidemill("topics", "apply")
        assert applied.returncode == exit_codes.OK, applied.stderr
        made.follow()
        made.start("ledger", "ledger")
        folder_of = f"chdb://{folder / 'clickhouse'}"
        made.start("stack", "stack", "--clickhouse", folder_of, "--clickhouse-port",
                   ports["clickhouse"])
        # `night` has told what it runs, and is gone.
        made.work("night")
        made.stop("night")
        made.work("old")
        yield made


def test_a_half_deployed_queue_is_quick_for_the_types_of_either_half(
    installation: Installation,
) -> None:
    installation.work("new")
    begun = time.monotonic()
    asked = [
        installation.ask(type_name, f"half-{type_name}")
        for type_name in ("fresh", "steady", "other.a", "other.b")
    ]
    for ids in asked:
        installation.wait_for("succeeded", ids)
    assert time.monotonic() - begun < QUICK_SECONDS * 2
    # One type by itself, as a deploy would have it.
    ids = installation.ask("fresh", "alone")
    assert installation.wait_for("succeeded", ids) < QUICK_SECONDS
    assert "returned" not in installation.kinds(ids)
    reasons = {
        event["reason"] for ids in asked for event in installation.events(ids)
        if event["event"] == "returned"
    }
    assert reasons <= {"no_free_slot"}


def test_a_handler_goes_while_its_jobs_wait_and_a_queue_has_no_worker(
    installation: Installation,
) -> None:
    if "new" in installation.roles:
        installation.stop("new")
    gone = installation.ask("fresh", "gone")
    night = installation.ask("nightly", "night", 20)
    elsewhere = installation.ask("nightly", "elsewhere", 5, queue="shared")
    installation.wait_for("deferred", gone | elsewhere, GIVEN_UP_SECONDS)
    # Who can be run is not held up by them, however many times it is asked.
    for number in range(3):
        ids = installation.ask("steady", f"beside-{number}", 20)
        assert installation.wait_for("succeeded", ids) < QUICK_SECONDS
    installation.wait_for("failed", gone | elsewhere, GIVEN_UP_SECONDS)
    installation.wait_for("deferred", night, GIVEN_UP_SECONDS)
    kinds = [event["event"] for event in installation.events(gone | elsewhere)]
    assert sorted(set(kinds)) == ["deferred", "failed", "requested"]
    assert len(kinds) == 3 * len(gone | elsewhere)
    told = installation.events(night)
    assert {event["reason"] for event in told if event["event"] == "deferred"} == {
        "queue_not_served"
    }
    assert "failed" not in installation.kinds(night)
    _is_named(installation)
    # They are run as soon as somebody is there, and so is what is redriven.
    installation.work("night")
    installation.wait_for("succeeded", night)
    installation.work("new")
    user = _user_of("gone-0", gone)
    redriven = installation.tidemill("jobs", "redrive", "gone-0", "--user", user)
    assert redriven.returncode == exit_codes.OK, redriven.stderr
    installation.wait_for("succeeded", {"gone-0"})


def _user_of(job_id: str, ids: set[str]) -> str:
    return f"u{sorted(ids).index(job_id) % 8}"


def _is_named(installation: Installation) -> None:
    """By `doctor` and by the job's story, once ClickHouse has it."""

    said: Any = None

    def finding() -> dict[str, Any] | None:
        nonlocal said
        said = orjson.loads(installation.tidemill("doctor", "--json").stdout)
        checks = said if isinstance(said, list) else said["checks"]
        found: dict[str, Any] = next(one for one in checks if one["check"] == "queues")
        return found if found["verdict"] == "failed" else None

    found = wait_until(finding, SECONDS, lambda: f"doctor says {said}")
    assert found is not None
    assert "'night'" in found["found"]
    shown = installation.tidemill("jobs", "show", "night-0", "--json")
    assert "queue_not_served" in shown.stdout, shown.stderr
    port = installation.env["TIDEMILL_HTTP_PORT"]
    story = httpx.get(f"http://127.0.0.1:{port}/api/jobs/night-0", timeout=SECONDS).json()
    assert story["job"]["reason"] == "queue_not_served"
    page = httpx.get(f"http://127.0.0.1:{port}/", timeout=SECONDS).text
    assert "no living worker serves its queue" in page
