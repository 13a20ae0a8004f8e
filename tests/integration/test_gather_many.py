"""Ten thousand members on real parts: two ledgers and two workers, each killed with -9 meanwhile.

And what is asked for twice, by two parents, is one job each time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.checker import Expectations, check_installation
from tests.integration.roles import Roles
from tests.integration.stories import Feed
from tests.tidy.sources import ROOT
from tests.waiting import wait_until
from tidemill import Client

pytestmark = pytest.mark.timeout(300)
SECONDS = 150.0
PREFIX = "many."
MEMBERS = 10_000
PARALLEL = 1_500
TWICE = 2_000
USERS = 100

MODULE = '''
from typing import Any

from tidemill import Context, NonRetryable, Request, job


@job("unit")
async def unit(payload: dict[str, Any]) -> int:
    if payload["n"] % 1_000 == 7:
        raise NonRetryable("as asked")
    return payload["n"]


@job("fan")
async def fan(payload: dict[str, Any], ctx: Context) -> list[int]:
    asked = [
        Request(
            type="unit", user_id=f"user-{n % payload['users']}", payload={"n": n},
            job_id=f"shared-{n}" if payload["is_shared"] else None,
        )
        for n in range(payload["count"])
    ]
    ends = await ctx.gather("units", asked, parallel=payload["parallel"], tolerate="1%")
    good = [end for end in ends if end.status == "succeeded"]
    known = [end for end in good if not getattr(end, "result_omitted", False)]
    return [len(ends), len(good), sum(end.result for end in known), len(known)]
'''


def test_ten_thousand_members_through_deaths(kafka: str, tmp_path: Path) -> None:
    (tmp_path / "fans.py").write_text(MODULE)
    env = {
        **os.environ, "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": PREFIX,
        "TIDEMILL_NATIVE": "0", "PYTHONPATH": str(ROOT),
    }
    with ExitStack() as ending, Client(kafka=kafka, topic_prefix=PREFIX) as client:
        roles = Roles(tmp_path, env, ending, command_seconds=SECONDS)
        assert roles.tidemill("topics", "apply").returncode == 0
        for name in ("ledger 1", "ledger 2"):
            roles.begin(name, "ledger")
        for name in ("worker 1", "worker 2"):
            roles.begin(name, "worker", "fans.py", "--worker-id", name.replace(" ", "-"))
        feed = Feed(kafka, PREFIX)
        ending.callback(feed.close)

        def ended() -> int:
            return sum(
                each["event"] in ("succeeded", "failed")
                for number in range(USERS) for each in feed.of(f"user-{number}")
            )

        body: dict[str, object] = {
            "count": MEMBERS, "users": USERS, "parallel": PARALLEL, "is_shared": False
        }
        begun = time.monotonic()
        handle = client.enqueue("fan", user_id="p", job_id="parent", payload=body)
        for share, name in ((0.1, "ledger 1"), (0.3, "worker 1"), (0.5, "ledger 2"),
                            (0.7, "worker 2")):
            _wait_for(lambda: ended() >= share * MEMBERS, name)  # noqa: B023
            role = roles.roles[name]
            role.kill()
            assert role.process is not None
            role.process.wait(SECONDS)
            role.env = env
            role.start()
            ending.callback(role.process.wait)
            ending.callback(role.process.kill)
        done = client.wait(handle, timeout=SECONDS)
        print(f"{MEMBERS} members through four deaths: {time.monotonic() - begun:.1f} s")
        assert (done.status, done.attempts) == ("succeeded", 1), done
        good = [n for n in range(MEMBERS) if n % 1_000 != 7]
        assert done.result == [MEMBERS, len(good), sum(good), len(good)]

        body = {"count": TWICE, "users": USERS, "parallel": None, "is_shared": True}
        handles = [
            client.enqueue("fan", user_id="p", job_id=name, payload=body)
            for name in ("first", "second")
        ]
        for handle in handles:
            done = client.wait(handle, timeout=SECONDS)
            assert done.status == "succeeded", done
            assert done.result[:2] == [TWICE, TWICE - TWICE // 1_000]
        # What a member ended as is known once to each of both, and each ran once.
        shared = [
            each["job_id"] for number in range(USERS) for each in feed.of(f"user-{number}")
            if each["job_id"].startswith("shared-") and each["event"] == "requested"
        ]
        assert len(shared) == len(set(shared)) == TWICE
    report = check_installation(kafka, prefix=PREFIX, expectations=Expectations())
    assert report.is_clean, report.text()
    assert report.checked["members"] == MEMBERS + 2 * TWICE
    assert report.checked["members at once"] >= PARALLEL // 2


def _wait_for(is_so: Callable[[], bool], what: str) -> None:
    wait_until(is_so, SECONDS, f"too few members end before {what} is killed")
