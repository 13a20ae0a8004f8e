"""What user code hangs on logging breaks neither us nor the libraries below us."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from tidemill.agents import own_loggers
from tidemill.agents.logging import configure_logging
from tidemill.agents.own_loggers import take_loggers

NAMES = (
    "tidemill.worker", "tidemill.agents.runtime.test", "aiokafka.test", "asyncio", "faust.test",
)


class Kept(logging.Handler):
    """What was told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def raises(*_words: Any, **_more: Any) -> Any:
    raise LookupError("no request is served now")


class Raises(logging.Handler):
    handle = raises


@pytest.fixture
def kept() -> Iterator[Kept]:
    loggers = [logging.getLogger(name) for name in (*NAMES, own_loggers.OURS)]
    former = [(logger, logger.__class__, logger.level) for logger in loggers]
    root, kept = logging.getLogger(), Kept()
    ours, new = own_loggers.OwnLogger.handler, logging.Logger.manager.loggerClass
    factory, handlers = logging.getLogRecordFactory(), list(root.handlers)
    root.handlers[:] = [kept]
    take_loggers(kept, logging.INFO)
    yield kept
    logging.setLogRecordFactory(factory)
    root.handlers[:] = handlers
    own_loggers.OwnLogger.handler, logging.Logger.manager.loggerClass = ours, new
    for logger, kind, level in former:
        logger.__class__ = kind
        logger.setLevel(level)
        logger.filters.clear()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["factory", "filter", "handler", "none"])
def test_a_line_is_told_or_left_out_and_never_raises(name: str, what: str, kept: Kept) -> None:
    logger = logging.getLogger(name)
    if what == "factory":
        logging.setLogRecordFactory(raises)
    elif what == "filter":
        logger.addFilter(raises)
    elif what == "handler":
        logging.getLogger().addHandler(Raises())
    logger.error("a word of %s", name, extra={"job": "j"}, exc_info=ValueError("x"))
    assert kept.lines == ([] if what == "filter" else [f"a word of {name}"])
    with pytest.raises(LookupError):
        # Users' own loggers are theirs.
        logging.getLogger("shop").error("theirs") if what == "factory" else raises()


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_line_that_cannot_be_formatted_is_told_simply(
    form: Literal["console", "json"], capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    handlers, level, factory = list(root.handlers), root.level, logging.getLogRecordFactory()
    ours, new = own_loggers.OwnLogger.handler, logging.Logger.manager.loggerClass
    try:
        configure_logging("worker", form, "info")
        logging.setLogRecordFactory(raises)
        try:
            raise ValueError("a cause")
        except ValueError:
            logging.getLogger("tidemill.worker").exception("an attempt of %s\x1b[2J", "mail")
    finally:
        logging.setLogRecordFactory(factory)
        root.handlers[:], root.level = handlers, level
        own_loggers.OwnLogger.handler, logging.Logger.manager.loggerClass = ours, new
    told = capsys.readouterr().err
    assert "an attempt of mail" in told
    assert "ValueError: a cause" in told
    assert "\x1b" not in told
    if form == "json":
        assert json.loads(told)["role"] == "worker"
