"""Log lines of the roles: one format, on stderr; readiness alone goes to stdout.

Owns the format. Refuses to know what is worth a line.
"""

from __future__ import annotations

import logging
import os
import sys
from json import dumps as _dumps
from traceback import format_exception as _format_exception
from typing import Any, Final, Literal

import structlog

from tidemill.agents import own_streams
from tidemill.agents.clocks import wall_text
from tidemill.agents.own_loggers import take_loggers
from tidemill.agents.plain_text import plain_event

READY_EVENT: Final = "role_ready"
EXTRA_FIELDS: Final = (
    "job", "user", "type", "attempt", "code", "reason", "stage", "field", "source"
)
"""What lines about jobs name apart from their words."""
LOADED_EVENT: Final = "role_loaded"
LOAD_FAILED_EVENT: Final = "role_load_failed"
REFUSED_EVENT: Final = "role_refused"  # Kafka's answer will be the same next time
_words = "console:info"  # what this process was configured with

# Libraries that tell at INFO what only their authors want to know.
_QUIET: Final = {
    "aiokafka": "WARNING",
    "asyncio": "WARNING",
    "faust": "WARNING",
    "httpx": "WARNING",
    "mode": "WARNING",
    "uvicorn": "WARNING",
    # Faust names the starts and stops of services after the modules of their classes.
    "tidemill.agents.runtime": "WARNING",
}


def configure_logging(
    role: str, log_format: Literal["console", "json"] = "console", log_level: str = "info"
) -> None:
    """Send structlog and the standard library's logging to stderr in one format."""
    global _words
    _words = f"{log_format}:{log_level}"
    level = logging.getLevelName(log_level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        _with_time,
        structlog.processors.format_exc_info,
        _with_role(role),
    ]
    # Fields of a standard line's `extra`.
    foreign: list[Any] = [*shared, structlog.stdlib.ExtraAdder(allow=EXTRA_FIELDS)]
    renderer: Any = (
        structlog.processors.JSONRenderer(sort_keys=True)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=_has_color(), pad_event_to=0)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(own_streams.log())
    handler.setFormatter(
        _Formatter(
            role,
            is_json=log_format == "json",
            foreign_pre_chain=foreign,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # JSON escapes by itself what could steer a terminal.
                *([] if log_format == "json" else [plain_event]),
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    take_loggers(handler, level)
    for name, quiet in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, logging.getLevelName(quiet)))


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """In the one format; a line that user code has made impossible there, such as by a factory of
    records that raises, is told with what little is needed for it."""

    def __init__(self, role: str, *, is_json: bool, **more: Any) -> None:
        super().__init__(**more)
        self._role = role
        self._is_json = is_json

    def format(self, record: logging.LogRecord) -> str:
        try:
            return super().format(record)
        except Exception:  # noqa: BLE001
            return self._simple(record)

    def _simple(self, record: logging.LogRecord) -> str:
        said = record.msg if isinstance(record.msg, dict) else {"event": record.getMessage()}
        event = {
            "event": str(said.get("event")), "level": record.levelname.lower(),
            "logger": record.name, "role": self._role, "timestamp": wall_text(),
        }
        if isinstance(record.exc_info, tuple):
            event["exception"] = _trace(record.exc_info)
        if self._is_json:
            return _dumps(event)
        safe = plain_event(None, "", dict(event))
        head = f"{safe['timestamp']} [{safe['level']}] {safe['event']} [{safe['logger']}]"
        return "\n".join([head, *([safe["exception"]] if "exception" in safe else [])])


def _trace(info: Any) -> str:
    return "".join(_format_exception(*info)).rstrip()


def log_words() -> str:
    """`FORMAT:LEVEL` of this process, for processes of ours that log beside it."""
    return _words


def _with_time(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    event["timestamp"] = wall_text()
    return event


def _with_role(role: str) -> Any:
    def add(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        event.setdefault("role", role)
        return event

    return add


def _has_color() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def announce_ready(role: str, **fields: Any) -> None:
    """Tell the supervisor, on stdout, that this role serves now."""
    tell_supervisor(READY_EVENT, role=role, **fields)


def tell_supervisor(event: str, **fields: Any) -> None:
    """One line of JSON on stdout, which a supervisor takes for itself."""
    line = _dumps({"event": event, "pid": os.getpid(), **fields})
    out = own_streams.out()
    out.write(line + "\n")
    out.flush()
