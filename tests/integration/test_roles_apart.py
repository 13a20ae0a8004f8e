"""Ledger, worker, sink and API as processes of their own, over a broker and a ClickHouse server.

Owns the way of a job from its request to its rows and its story, through the death of each role.

Over containers (`make test-containers`) this is the installation of docker-compose.yml.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.waiting import wait_until
from tidemill.agents import exit_codes
from tidemill.agents.clickhouse.engine import open_engine
from tidemill.agents.embedded.ports import free_port

SECONDS = 60.0
JOBS = """
from tidemill import Context, NonRetryable, job

@job("greet")
async def greet(payload: dict, ctx: Context) -> dict:
    if payload["name"] == "nobody":
        raise NonRetryable("nobody is here")
    return {"hello": payload["name"]}
"""
ROLES = ("ledger", "worker", "sink", "api")

pytestmark = pytest.mark.timeout(240)


class Installation:
    """The roles of one installation, and the command line beside them."""

    def __init__(self, folder: Path, env: dict[str, str], http_port: int) -> None:
        self.env = env
        self.folder = folder
        self.url = f"http://127.0.0.1:{http_port}"
        self.roles: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, role: str) -> Path:
        return self.folder / f"{role}.log"

    def start(self, role: str) -> None:
        words = [role, "jobs_apart.py"] if role == "worker" else [role]
        with self.log(role).open("ab") as log:
            self.roles[role] = subprocess.Popen(
                [sys.executable, "-m", "tidemill", *words], env=self.env, cwd=self.folder,
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )

    def tidemill(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tidemill", *words], env=self.env, cwd=self.folder,
            timeout=2 * SECONDS, capture_output=True, text=True, check=False,
        )

    def enqueue(self, name: str, job_id: str) -> subprocess.CompletedProcess[str]:
        return self.tidemill(
            "enqueue", "greet", "--user", "ada", "--job-id", job_id, "--json",
            json.dumps({"name": name}), "--wait", "--timeout", str(SECONDS),
        )

    def story(self, job_id: str) -> dict[str, Any]:
        """The job as the API tells it once its end is in ClickHouse."""

        def ended() -> dict[str, Any] | None:
            try:
                answer = httpx.get(f"{self.url}/api/jobs/{job_id}", timeout=SECONDS)
            except httpx.TransportError:
                return None  # the API is still starting
            found: dict[str, Any] = answer.json()
            return found if answer.status_code == 200 and "succeeded" in answer.text else None

        return wait_until(ended, SECONDS, self.told) or {}

    def told(self) -> str:
        """The ends of all logs."""
        return "\n".join(self.log(role).read_text()[-2_000:] for role in self.roles)


@pytest.fixture
def installation(
    kafka: str, topic_prefix: str, clickhouse_server: str, tmp_path: Path
) -> Iterator[Installation]:
    (tmp_path / "jobs_apart.py").write_text(JOBS)
    database, port = f"t{uuid.uuid4().hex[:10]}", free_port()
    server = open_engine(f"{clickhouse_server}/default")
    server.command(f"CREATE DATABASE {database}")
    env = os.environ | {
        "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": topic_prefix,
        "TIDEMILL_CLICKHOUSE": f"{clickhouse_server}/{database}",
        "TIDEMILL_HTTP_PORT": str(port), "TIDEMILL_DATA": str(tmp_path / "data"),
    }
    made = Installation(tmp_path, env, port)
    with ExitStack() as ending:
        ending.callback(server.close)
        ending.callback(lambda: server.command(f"DROP DATABASE {database}"))
        applied = made.tidemill("topics", "apply")
        assert applied.returncode == exit_codes.OK, applied.stderr
        for role in ROLES:
            made.start(role)
            ending.callback(made.roles[role].wait)
            ending.callback(made.roles[role].kill)
        yield made


def test_a_job_goes_through_all_roles_and_through_the_death_of_each(
    installation: Installation,
) -> None:
    done = installation.enqueue("Ada", "first")
    assert done.returncode == exit_codes.OK, done.stderr + installation.told()
    assert json.loads(done.stdout)["result"] == {"hello": "Ada"}
    assert installation.story("first")
    failed = installation.enqueue("nobody", "refused")
    assert failed.returncode == exit_codes.JOB_NOT_SUCCEEDED, failed.stderr + installation.told()
    for role in ROLES:
        installation.roles[role].kill()
        installation.roles[role].wait(SECONDS)
        installation.start(role)
    done = installation.enqueue("Bob", "second")
    assert done.returncode == exit_codes.OK, done.stderr + installation.told()
    assert installation.story("second")
    for role in ROLES:
        installation.roles[role].send_signal(signal.SIGTERM)
    codes = {role: process.wait(SECONDS) for role, process in installation.roles.items()}
    assert codes == dict.fromkeys(ROLES, exit_codes.OK), installation.told()
