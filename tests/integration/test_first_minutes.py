"""The first five minutes: `tidemill new` and `tidemill dev --demo`, one stack, and a second start.

The same from a built wheel, in an environment of its own, is `test_wheel.py`'s.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_dev import SECONDS, STOP_SECONDS, Dev
from tests.tidy.sources import ROOT
from tests.waiting import wait_until
from tidemill import Client
from tidemill.demo_seeds import approval
from tidemill.sql import query_rows

pytestmark = pytest.mark.timeout(300)
PORTS = ("--kafka-port", "0", "--clickhouse-port", "0", "--http-port", "0")
JOBS = (
    "SELECT job_id, status, reason, error_code, attempts FROM jobs "
    "WHERE startsWith(job_id, 'demo-')"
)


def rows_of(clickhouse: str) -> dict[str, dict[str, Any]]:
    return {row["job_id"]: row for row in query_rows(clickhouse, JOBS)}


def has_every_fate(clickhouse: str) -> dict[str, dict[str, Any]] | None:
    """The demo's jobs once each has come as far as it comes by itself within seconds."""
    rows = rows_of(clickhouse)
    status = Counter(row["status"] for row in rows.values())
    expected = {
        "succeeded", "retrying", "failed", "skipped", "scheduled", "expired", "awaiting",
        "cancelled",
    }
    flaky = rows.get("demo-flaky", {}).get("status")
    delayed = [row for row in rows.values() if row["reason"] == "rate_limited"]
    return rows if expected <= set(status) and flaky == "succeeded" and len(delayed) == 3 else None


def test_new_and_demo_from_nothing_to_a_second_start(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TIDEMILL_NATIVE": "0"}
    made = subprocess.run(
        [sys.executable, "-m", "tidemill", "new", "my_jobs"], cwd=tmp_path, env=env,
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )
    assert made.returncode == 0, made.stderr
    dev = Dev(tmp_path, "my_jobs", "--demo", *PORTS)
    try:
        kafka, clickhouse, _ = dev.wait_ready()
        rows = wait_until(
            lambda: has_every_fate(clickhouse), SECONDS,
            lambda: f"{rows_of(clickhouse)}\n{dev.told()}",
        )
        assert rows is not None
        assert rows["demo-charge-dead"]["error_code"] == "CARD_DECLINED"
        assert rows["demo-fetch-retrying"]["status"] == "retrying"
        assert rows["demo-digest-skipped"]["reason"] == "nothing_new"
        assert rows["demo-greet-scheduled"]["status"] == "scheduled"
        assert rows["demo-trial-awaiting"]["status"] == "awaiting"
        assert rows["demo-greet-cancelled"]["reason"] == "cancelled_by_command"
        assert rows["demo-refund-awaiting"]["status"] == "awaiting"
        words = shlex.split(approval(kafka, ""))
        given = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, env=env, capture_output=True, text=True,
            timeout=SECONDS, check=False,
        )
        assert given.returncode == 0, given.stderr
        wait_until(
            lambda: rows_of(clickhouse)["demo-refund-awaiting"]["status"] == "succeeded",
            SECONDS, dev.told,
        )
        assert shlex.join(words) in dev.told()
        ran = wait_until(
            lambda: query_rows(
                clickhouse, "SELECT job_id FROM jobs WHERE type = 'demo.clock' "
                "AND status = 'succeeded'",
            ),
            SECONDS, dev.told,
        )
        assert str(ran[0]["job_id"]).startswith("demo.clock@")

        # The module that was written asks for its own job and waits for the end.
        own = subprocess.run(
            [sys.executable, "my_jobs.py"], cwd=tmp_path, env={**env, "TIDEMILL_KAFKA": kafka},
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )
        assert own.stdout.startswith("succeeded"), own.stderr + dev.told()
        assert "Hello, Ada!" in own.stdout
        assert dev.stop(signal.SIGINT) < STOP_SECONDS
        assert dev.popen.returncode == 0
    finally:
        dev.close()
    second = Dev(tmp_path, "my_jobs", "--demo", *PORTS)
    try:
        kafka, clickhouse, _ = second.wait_ready()
        wait_until(lambda: "none is asked for twice" in second.told(), SECONDS, second.told)
        # A job that comes after whatever the second start would have asked for.
        with Client(kafka) as client:
            mark = client.enqueue("demo.greet", user_id="mark", payload={"name": "mark"})
            assert client.wait(mark, SECONDS).status == "succeeded"
        wait_until(
            lambda: query_rows(
                clickhouse, "SELECT 1 FROM jobs WHERE job_id = {job:String}", {"job": mark.job_id}
            ),
            SECONDS, second.told,
        )
        assert rows_of(clickhouse).keys() == rows.keys()
        asked = query_rows(
            clickhouse, "SELECT count() AS count FROM job_events WHERE startsWith(job_id, 'demo-') "
            "AND event IN ('requested', 'duplicate_ignored', 'conflict_ignored')",
        )
        assert int(asked[0]["count"]) == len(rows)
        assert second.stop() < STOP_SECONDS
    finally:
        second.close()
