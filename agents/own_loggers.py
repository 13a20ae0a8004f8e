"""Our loggers, as they stay whatever user code does to the logging of its process.

Owns that our lines are told, once each, and that no line breaks whoever says it. Refuses to know
their format (`tidemill.agents.logging`).

`logging.disable`, `dictConfig`, which disables every logger that was there before, and
`basicConfig(force=True)` act on the whole process; a second handler on stderr doubles each line. A
factory of records or a filter that raises would raise in us, and in the libraries below us.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping
from typing import Any, Final

OURS: Final = "tidemill"  # the top of all names of our loggers
BELOW_US: Final = ("aiokafka", "asyncio", "faust", "mode")

_Record: Final = logging.LogRecord


class SafeLogger(logging.Logger):
    """A logger whose lines break nobody, whatever user code has hung on logging."""

    def makeRecord(  # logging's own name
        self, name: str, level: int, fn: str, lno: int, msg: object, args: Any, exc_info: Any,
        func: str | None = None, extra: Mapping[str, object] | None = None,
        sinfo: str | None = None,
    ) -> logging.LogRecord:
        """Users' own factory of records is for users' own lines."""
        record = _Record(name, level, fn, lno, msg, args, exc_info, func, sinfo)
        record.__dict__.update(extra or {})
        return record

    def handle(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # of a filter or handler of users'
            super().handle(record)


class OwnLogger(SafeLogger):
    """A logger that user code can neither silence nor double by accident."""

    handler: logging.Handler | None = None  # ours, of this process

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        """`dictConfig` says so of every logger that it does not know."""

    def isEnabledFor(self, level: int) -> bool:  # logging's own name
        return level >= self.getEffectiveLevel()

    def callHandlers(self, record: logging.LogRecord) -> None:  # logging's own name
        ours = OwnLogger.handler
        if ours is None:
            super().callHandlers(record)
            return
        if record.levelno >= ours.level:
            ours.handle(record)  # first: what follows may raise
        for other in logging.getLogger().handlers:
            if other is not ours and record.levelno >= other.level and not _is_console(other):
                other.handle(record)


def _is_console(handler: logging.Handler) -> bool:
    """Whether it writes to where our own lines go."""
    stream = getattr(handler, "stream", None)
    console = getattr(handler, "console", None)  # of rich
    known = (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
    return console is not None or any(stream is each for each in known if each is not None)


def take_loggers(handler: logging.Handler, level: int) -> None:
    """Our loggers that exist now tell their lines by `handler`, from `level` on."""
    OwnLogger.handler = handler
    logging.getLogger(OURS).setLevel(level)
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        kind = _class_for(name)
        if isinstance(logger, logging.Logger) and kind is not None:
            logger.__class__ = kind
    # Modules that are imported later make theirs by this.
    logging.Logger.manager.loggerClass = _new_logger  # type: ignore[assignment]  # is only called


def _new_logger(name: str) -> logging.Logger:
    return (_class_for(name) or logging.getLoggerClass())(name)


def _class_for(name: str) -> type[logging.Logger] | None:
    first = name.partition(".")[0]
    if first == OURS:
        return OwnLogger
    return SafeLogger if first in BELOW_US else None
