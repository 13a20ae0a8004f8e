"""Each step boundary of docs/DELIVERY.md: the process ends there, and nothing is lost or doubled.

Owns one run for each crash point against one engine, and one proof over all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import pytest
from confluent_kafka import Producer

from tests.chaos.checker import Expectations, check_installation
from tests.chaos.engine import LEDGERS, STACK, WORKERS, Engine
from tests.chaos.handlers import EXPECT
from tests.chaos.run import wait_history
from tests.chaos.running import Ends, running_engine
from tests.waiting import wait_until
from tidemill.agents.crash import CRASH_EXIT_CODE, CRASH_POINTS, CRASH_VARIABLE

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

JOBS: Final = 120
PASSES: Final = 3  # the crash comes at the third time: there is work before and behind it
CRASH_SECONDS: Final = 60.0
ROLE_OF: Final = {"ledger": LEDGERS[0], "worker": WORKERS[0], "sink": STACK}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One process a role, so that the one that crashes has all the work."""
    folder = tmp_path_factory.mktemp("crash")
    with running_engine(
        folder, ["tests/chaos/handlers.py"], ledgers=1, with_history=True
    ) as running:
        yield running


@pytest.fixture(scope="module")
def ends(engine: Engine) -> Iterator[Ends]:
    tail = Ends(engine.kafka)
    tail.start()
    yield tail
    tail.close()


@pytest.mark.parametrize("point", list(CRASH_POINTS))
def test_nothing_is_lost_when_it_ends_there(engine: Engine, ends: Ends, point: str) -> None:
    role = engine.roles[ROLE_OF[point.split(".")[0]]]
    crashes = sum(death.exit_code == CRASH_EXIT_CODE for death in engine.deaths)
    killed = len(engine.deaths)
    # An insert a second would take all there is in its first two.
    role.env = {CRASH_VARIABLE: f"{point}:{PASSES}", "TIDEMILL_BATCH_SECONDS": "0.05"}
    role.kill()
    wait_until(lambda: len(engine.deaths) > killed, CRASH_SECONDS, f"{role.name} lives on")
    engine.wait_ready(role.name)
    client = Producer({"bootstrap.servers": engine.kafka, "linger.ms": 0})
    jobs = {(f"user-{n % 20}", f"{point}-{n}") for n in range(JOBS)}
    for user_id, job_id in sorted(jobs):
        kind = "chaos.flaky" if job_id.endswith("0") else "chaos.noop"
        value = json.dumps({"type": kind, "user_id": user_id, "job_id": job_id})
        # One after the other, so that there are several groups and several inserts.
        client.produce("jobs.requested", value, user_id)
        client.flush(10)
    wait_until(
        lambda: sum(d.exit_code == CRASH_EXIT_CODE for d in engine.deaths) > crashes,
        CRASH_SECONDS, f"{role.name} never came to {point}",
    )
    engine.wait_ready(role.name)
    ends.wait_for(jobs)


def test_the_whole_log_is_right(engine: Engine) -> None:
    wait_history(engine)
    report = check_installation(
        engine.kafka,
        expectations=Expectations.from_json(json.dumps(EXPECT)),
        clickhouse=engine.clickhouse,
    )
    assert report.is_clean, report.text()
    assert report.checked["jobs"] == JOBS * len(CRASH_POINTS)
