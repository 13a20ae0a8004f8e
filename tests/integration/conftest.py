"""What the tests of real parts share beside the broker: a ClickHouse server, a log, a sink."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pytest

from tests.conftest import CLICKHOUSE_VARIABLE
from tests.integration import clickhouse_stand_in
from tests.integration.sink_kit import Log, Place
from tidemill.agents.embedded.ports import free_port

ROOT: Final = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS: Final = 60.0


@pytest.fixture(scope="module")
def clickhouse_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """http://user:password@host:port of a ClickHouse server, or of what stands in for one."""
    if existing := os.environ.get(CLICKHOUSE_VARIABLE):
        yield existing.rstrip("/")
        return
    port = free_port()
    folder = tmp_path_factory.mktemp("stand-in") / "clickhouse"
    script = Path(clickhouse_stand_in.__file__)
    with subprocess.Popen(
        [sys.executable, str(script), str(folder), str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as popen:
        assert popen.stdin is not None
        assert popen.stdout is not None
        assert popen.stdout.readline() == b"serving\n"
        user, password = clickhouse_stand_in.USER, quote(clickhouse_stand_in.PASSWORD)
        yield f"http://{user}:{password}@127.0.0.1:{port}"
        popen.stdin.close()
        popen.wait(DEADLINE_SECONDS)


@pytest.fixture
def log(kafka: str, topic_prefix: str) -> Log:
    return Log(kafka, f"{topic_prefix}.")


@pytest.fixture(params=["chdb", "server"])
def place(
    request: pytest.FixtureRequest, kafka: str, topic_prefix: str, tmp_path: Path
) -> Iterator[Place]:
    server = None if request.param == "chdb" else request.getfixturevalue("clickhouse_server")
    made = Place(server, kafka, f"{topic_prefix}.", tmp_path / "clickhouse")
    yield made
    made.close()
