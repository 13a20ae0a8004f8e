"""What all tests share: a real Kafka for the session, names that no other test uses, waiting.

Owns: the session's broker and its data folder. Refuses to know: what the tests do with it.
"""

from __future__ import annotations

import faulthandler
import os
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

from tests.containers.daemon import no_daemon
from tidemill.agents.embedded.broker import Broker
from tidemill.agents.embedded.ports import free_port
from tidemill.agents.runtime import failstop
from tidemill.schemas.native import core

# host:port of a broker to use in place of one of our own; it must not create topics by itself.
KAFKA_VARIABLE = "TIDEMILL_TEST_KAFKA"
# The same for tests that need topics without a prefix: nobody else has used that broker before.
FRESH_KAFKA_VARIABLE = "TIDEMILL_TEST_FRESH_KAFKA"
# http://user:password@host:port of a ClickHouse server; it gets databases of its own.
CLICKHOUSE_VARIABLE = "TIDEMILL_TEST_CLICKHOUSE"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out what cannot be said of a compiled core."""
    if core.is_native:
        for item in items:
            if item.get_closest_marker("interpreted") is not None:
                reason = "replaces parts of the core: runs interpreted, with TIDEMILL_NATIVE=0"
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A crash says where on the run's own stderr: a test of the command line has set another."""
    faulthandler.enable(file=item.config.stash[fault_handler_stderr_fd_key])


def pytest_sessionstart(session: pytest.Session) -> None:
    """So does a fail-stop of what runs in this process: its own words would be captured."""
    stderr = session.config.stash[fault_handler_stderr_fd_key]
    tests = os.getpid()

    def leave(code: int) -> NoReturn:
        if os.getpid() == tests:
            os.write(stderr, b"the process of the tests fail-stops:\n")
            faulthandler.dump_traceback(file=stderr)
        os._exit(code)

    vars(failstop)["_exit"] = leave


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Lets a report travel to the process that prints it, whatever the test has logged."""
    report = yield
    # Half a surrogate pair has no UTF-8.
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def pytest_report_header() -> list[str]:
    has_server = bool(os.environ.get(CLICKHOUSE_VARIABLE))
    stands_in = f"{CLICKHOUSE_VARIABLE} names none: a stand-in over the embedded engine"
    server = f"as {CLICKHOUSE_VARIABLE} names it" if has_server else stands_in
    lines = [f"core: {core}", f"ClickHouse server: {server}"]
    if FRESH_KAFKA_VARIABLE in os.environ:
        return [*lines, f"containers: Kafka on {os.environ[FRESH_KAFKA_VARIABLE]}"]
    reason = no_daemon()
    told = "`make test` and `make test-containers` run them" if reason is None else reason
    return [*lines, f"containers: tests over them are skipped here: {told}"]


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a real broker that lives as long as the test session."""
    if existing := os.environ.get(KAFKA_VARIABLE):
        yield existing
        return
    broker = Broker(tmp_path_factory.mktemp("kafka"), free_port())
    broker.start()
    try:
        yield broker.bootstrap
    finally:
        broker.stop()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker of the test's own, not started yet: for tests that stop or kill it."""
    broker = Broker(tmp_path / "kafka", free_port())
    try:
        yield broker
    finally:
        broker.kill()


@pytest.fixture
def topic_prefix() -> str:
    """A prefix that no other test uses: tests share the session's broker."""
    return f"t{uuid.uuid4().hex[:10]}"
