"""One engine for all strangers: two ledgers, so that forwarding crosses processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.checker import check_installation
from tests.chaos.engine import Engine
from tests.chaos.running import Ends, running_engine
from tests.conftest import FRESH_KAFKA_VARIABLE


@pytest.fixture(scope="package")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A running engine; when all tests are over, the whole log must be right."""
    folder = tmp_path_factory.mktemp("strangers")
    handlers = ["tests/strangers/handlers.py"]
    with running_engine(folder, handlers, kafka=os.environ.get(FRESH_KAFKA_VARIABLE)) as running:
        yield running
        report = check_installation(running.kafka)
        assert report.is_clean, report.text()


@pytest.fixture(scope="package")
def ends(engine: Engine) -> Iterator[Ends]:
    """What has ended there so far."""
    tail = Ends(engine.kafka)
    tail.start()
    yield tail
    tail.close()


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where this test's jobs write that they ran."""
    return tmp_path
