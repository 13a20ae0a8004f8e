"""Our loggers, as they stay whatever user code does to the logging of its process.

Owns that our lines are told, once each. Refuses to know their format (`agents.logging`).

`logging.disable`, `dictConfig`, which disables every logger that was there before, and
`basicConfig(force=True)` act on the whole process; a second handler on stderr doubles each line.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

OURS: Final = ("tidemill", "agents")


class OwnLogger(logging.Logger):
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
            ours.handle(record)
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
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in OURS:
            logger.__class__ = OwnLogger
    # Modules that are imported later make theirs by this.
    logging.Logger.manager.loggerClass = _new_logger  # type: ignore[assignment]  # is only called


def _new_logger(name: str) -> logging.Logger:
    is_ours = name.partition(".")[0] in OURS
    return OwnLogger(name) if is_ours else logging.getLoggerClass()(name)
