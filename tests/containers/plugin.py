"""A pytest plugin: `-p tests.containers.plugin` gives the tests a Kafka and a ClickHouse server in
containers, by the variables that tests/conftest.py reads.

Owns the containers' life: from before the collection of the tests to their end.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from tests.conftest import CLICKHOUSE_VARIABLE, FRESH_KAFKA_VARIABLE, KAFKA_VARIABLE
from tests.containers.daemon import no_daemon
from tests.containers.parts import running_clickhouse, running_kafka

_CONTAINERS = pytest.StashKey[ExitStack]()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Start both and name them."""
    if (reason := no_daemon()) is not None:
        raise pytest.UsageError(f"{reason}; start Docker, or run `make test`")
    with ExitStack() as starting:
        kafka = starting.enter_context(running_kafka())
        os.environ[KAFKA_VARIABLE] = os.environ[FRESH_KAFKA_VARIABLE] = kafka
        os.environ[CLICKHOUSE_VARIABLE] = starting.enter_context(running_clickhouse())
        config.stash[_CONTAINERS] = starting.pop_all()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove them."""
    containers = config.stash.get(_CONTAINERS, None)
    if containers is not None:
        containers.close()
