"""Collapse on real parts: many requests for one thing, one run, each end with its result; and the
ledger killed between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.roles import LEDGER, Roles, ledger_and_worker
from tests.waiting import wait_until
from tidemill import Client, JobHandle, Request

pytestmark = pytest.mark.timeout(240)
SECONDS = 90.0
JOBS = 20

MODULE = '''
import asyncio
from pathlib import Path
from tidemill import job


@job("report", collapse_by="payload.report", timeout_seconds=60)
async def report(payload: dict) -> dict:
    folder = Path(payload["folder"])
    with (folder / "runs").open("a") as file:
        file.write("run\\n")
    while not (folder / "go").exists():
        await asyncio.sleep(0.05)
    return {"report": payload["report"]}
'''


@pytest.fixture
def roles(kafka: str, topic_prefix: str, tmp_path: Path) -> Iterator[Roles]:
    (tmp_path / "reports.py").write_text(MODULE)
    with ledger_and_worker(
        kafka, topic_prefix, tmp_path, "reports.py", seconds=SECONDS
    ) as made:
        yield made


def test_one_run_and_each_end_has_its_result_though_the_ledger_is_killed(
    roles: Roles, kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    with Client(kafka=kafka, topic_prefix=topic_prefix) as client:
        def ask(first: int, last: int) -> list[JobHandle]:
            return client.enqueue_many(
                Request(
                    type="report", user_id="u", job_id=f"job-{number:02}",
                    payload={"report": 7, "folder": str(tmp_path), "asked": number},
                )
                for number in range(first, last)
            )

        handles = ask(0, JOBS // 2)
        wait_until((tmp_path / "runs").exists, SECONDS, "nothing runs")
        ledger = roles.roles["ledger"]
        ledger.kill()
        assert ledger.process is not None
        ledger.process.wait(SECONDS)
        handles += ask(JOBS // 2, JOBS)
        client.cancel("u", "job-01")
        roles.begin("ledger", *LEDGER)
        assert client.wait(handles[1], timeout=SECONDS).status == "cancelled"
        (tmp_path / "go").touch()
        ends = [client.wait(handle, timeout=SECONDS) for handle in handles]
    assert (tmp_path / "runs").read_text() == "run\n"
    assert ends[0].status == "succeeded"
    for end in ends[2:]:
        assert (end.status, end.reason, end.result) == ("skipped", "collapsed", {"report": 7})
        assert end.collapsed_into is not None
        assert (end.collapsed_into.job_id, end.collapsed_into.status) == ("job-00", "succeeded")
