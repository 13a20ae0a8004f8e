"""kafkajs, the Node client that is used most, with its defaults: it asks for jobs and reads what is
public. It knows gzip and no other compression.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from confluent_kafka import Producer

from benchmarks.processes import cache_folder, copy_sources, mark_installed, run_step
from benchmarks.program import MissingError
from tests.chaos.engine import Engine
from tests.chaos.rawlog import read_topic
from tests.chaos.running import Ends
from tests.waiting import wait_until
from tidemill.schemas.topics import Topics

pytestmark = pytest.mark.timeout(240)

SOURCES: Final = Path(__file__).with_name("kafkajs")
JOBS: Final = 40
SECONDS: Final = 60.0
USER: Final = "kafkajs"


@pytest.fixture(scope="module")
def program() -> Path:
    """The folder of the client's program, installed from its lock file."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("kafkajs needs node and npm on PATH")
    folder = cache_folder("stranger-kafkajs")
    if not copy_sources(SOURCES, folder):
        try:
            run_step(
                ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder
            )
        except MissingError as error:
            pytest.skip(f"kafkajs cannot be installed: {error}")
        mark_installed(folder)
    return folder


def kafkajs(program: Path, engine: Engine, *words: str) -> str:
    done = subprocess.run(
        ["node", "program.mjs", engine.kafka, *words], cwd=program, text=True,
        capture_output=True, timeout=SECONDS, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def values(engine: Engine, topic: str) -> list[bytes]:
    return [record.value or b"" for record in read_topic(engine.kafka, topic)]


def test_its_requests_run_and_it_reads_their_ends(
    program: Path, engine: Engine, ends: Ends, notes: Path
) -> None:
    kafkajs(program, engine, "ask", "stranger.note", USER, str(JOBS), str(notes))
    jobs = {(USER, f"{USER}-{n}") for n in range(JOBS)}
    ended = ends.wait_for(jobs)
    assert {body["status"] for body in ended.values()} == {"succeeded"}
    there = values(engine, "jobs.completed")
    told = kafkajs(program, engine, "read", "jobs.completed", str(len(there)))
    found: list[dict[str, Any]] = [json.loads(line) for line in told.splitlines()]
    assert {(body["user_id"], body["job_id"]) for body in found} >= jobs


def test_it_reads_every_public_topic(
    program: Path, engine: Engine, ends: Ends, notes: Path
) -> None:
    """Large batches too: those are what a ledger compresses."""
    client = Producer({"bootstrap.servers": engine.kafka, "linger.ms": 100})
    jobs = {(f"{USER}-many", f"many-{n}") for n in range(20 * JOBS)}
    for user, job in jobs:
        request = {"type": "stranger.note", "user_id": user, "job_id": job,
                   "payload": {"folder": str(notes)}}
        client.produce("jobs.requested", json.dumps(request), user)
    # Refused, so that jobs.dead has something; and a handler that fails, for jobs.retry.
    client.produce("jobs.requested", b'{"type": "stranger.note", "user_id": 7}')
    missing = {"type": "stranger.note", "user_id": USER, "job_id": "no-folder",
               "payload": {"folder": str(notes / "missing")}}
    client.produce("jobs.requested", json.dumps(missing), USER)
    assert client.flush(30) == 0
    # The whole log is checked when all tests are over, so every job must have ended.
    ends.wait_for({*jobs, (USER, "no-folder")})
    topics = Topics()
    for spec in topics.fixed():
        if not spec.is_public or spec.name == topics.commands:
            continue
        wait_until(lambda name=spec.name: values(engine, name), SECONDS, spec.name)  # type: ignore[misc]
        there = values(engine, spec.name)
        told = kafkajs(program, engine, "read", spec.name, str(len(there)))
        assert len(told.splitlines()) >= len(there), spec.name
