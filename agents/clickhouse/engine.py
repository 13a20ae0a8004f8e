"""One way to both ClickHouse engines: the Protocol `Engine`, its errors, and `open_engine(dsn)`.

Owns the contract that both adapters fulfil, the translation of ClickHouse's error texts, and the
text form of query parameters. It refuses to know any table, and who asks: what a stranger may ask
is decided in `guard`. All calls block; an event loop calls them in a thread. All are thread-safe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import UUID

import orjson

CHDB_SCHEME = "chdb://"
CODE_UNKNOWN = 1001
"""ClickHouse's own code for an exception that carries none (STD_EXCEPTION)."""

# Trouble that passes by itself: asking again later is right, nothing is wrong with the data.
RETRYABLE_CODES = frozenset(
    {
        3,  # UNEXPECTED_END_OF_FILE, of a connection cut in mid-insert
        159,  # TIMEOUT_EXCEEDED
        202,  # TOO_MANY_SIMULTANEOUS_QUERIES
        203,  # NO_FREE_CONNECTION
        209,  # SOCKET_TIMEOUT
        210,  # NETWORK_ERROR
        236,  # ABORTED, while a server shuts down
        241,  # MEMORY_LIMIT_EXCEEDED
        242,  # TABLE_IS_READ_ONLY, a replica that lost its keeper
        243,  # NOT_ENOUGH_SPACE
        252,  # TOO_MANY_PARTS
        319,  # UNKNOWN_STATUS_OF_INSERT, safe to repeat with the same token
        394,  # QUERY_WAS_CANCELLED
        439,  # CANNOT_SCHEDULE_TASK
        999,  # KEEPER_EXCEPTION
    }
)

_ERROR_TEXT = re.compile(r"Code:\s*(?P<code>\d+)\.\s*DB::Exception:\s*(?P<rest>.*)", re.DOTALL)
_ERROR_NAME = re.compile(r"\((?P<name>[A-Z][A-Z0-9_]+)\)\s*(?:\(version[^)]*\))?\s*$")
_ERROR_VERSION = re.compile(r"\s*\(version [^)]*\)")
_SAFE_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


class EngineError(Exception):
    """ClickHouse refused or failed: its own code, its name of that code, and a readable text."""

    def __init__(self, message: str, *, code: int = CODE_UNKNOWN, name: str = "STD_EXCEPTION"):
        super().__init__(message)
        self.message = message
        self.code = code
        self.name = name

    @property
    def is_retryable(self) -> bool:
        """True when the same call may succeed later without any change to it."""
        return self.code in RETRYABLE_CODES

    def __str__(self) -> str:
        return f"Code: {self.code}. DB::Exception: {self.message} ({self.name})"


class EngineUnavailable(EngineError):
    """No engine could be reached: a server that is away, or a folder that another process holds."""

    def __init__(self, message: str):
        super().__init__(message, code=210, name="NETWORK_ERROR")

    @property
    def is_retryable(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class QueryOutput:
    """What a query gave: the bytes in the asked format, and what reading them cost."""

    data: bytes
    rows_read: int = 0
    bytes_read: int = 0
    elapsed_seconds: float = 0.0


class Engine(Protocol):
    """A ClickHouse engine. `params` fill `{name:Type}`; `settings` hold for one call."""

    @property
    def dsn(self) -> str:
        """Where the engine is, without a password: safe to log."""

    def query(
        self,
        sql: str,
        params: Mapping[str, object] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> list[dict[str, Any]]:
        """Rows of a SELECT that has no FORMAT of its own; times come as ClickHouse writes them."""

    def query_bytes(
        self,
        sql: str,
        fmt: str = "JSONEachRow",
        params: Mapping[str, object] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> bytes:
        """The answer in a ClickHouse format; a FORMAT clause in `sql` wins over `fmt`."""

    def run(
        self,
        sql: str,
        fmt: str = "JSONEachRow",
        text_params: Mapping[str, str] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> QueryOutput:
        """Like `query_bytes`, with parameters already in their text form, and with statistics."""

    def command(
        self,
        sql: str,
        params: Mapping[str, object] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """One statement whose answer does not matter: DDL, INSERT ... SELECT, OPTIMIZE."""

    def insert_bytes(
        self,
        table: str,
        data: bytes,
        fmt: str = "JSONEachRow",
        columns: Sequence[str] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> int:
        """Insert encoded rows in one go; returns rows written, materialized views included.

        With `insert_deduplication_token` (and `deduplicate_blocks_in_dependent_materialized_views`)
        in `settings` a repeat changes nothing, where the table has a deduplication window.
        """

    def close(self) -> None:
        """Release the engine; later calls raise EngineError."""


def open_engine(dsn: str) -> Engine:
    """The engine behind a DSN: `chdb:///absolute/folder` or `http(s)://user:pass@host:port/db`."""
    if dsn.startswith(CHDB_SCHEME):
        from tidemill.agents.clickhouse.chdb_engine import ChdbEngine

        return ChdbEngine.open(dsn)
    if urlsplit(dsn).scheme in ("http", "https"):
        from tidemill.agents.clickhouse.server_engine import ServerEngine

        return ServerEngine.open(dsn)
    raise EngineError(
        f"clickhouse DSN {masked_dsn(dsn)!r}: unknown scheme; use chdb:///absolute/folder for the "
        "engine in this process, or http(s)://user:password@host:port/database for a server"
    )


def masked_dsn(dsn: str) -> str:
    """The DSN with its password hidden."""
    return re.sub(r"(//[^:/@]*):[^@/]*@", r"\1:***@", dsn)


def parse_error(text: str) -> EngineError:
    """ClickHouse's error text as an EngineError; nested and repeated prefixes are taken off."""
    code, rest = CODE_UNKNOWN, text
    while found := _ERROR_TEXT.search(rest):
        code, rest = int(found["code"]), found["rest"]
    named = _ERROR_NAME.search(rest)
    name = named["name"] if named else "STD_EXCEPTION"
    message = rest
    while named := _ERROR_NAME.search(message):
        message = message[: named.start()].rstrip()
    return EngineError(_ERROR_VERSION.sub("", message).rstrip(". ") or text, code=code, name=name)


def rows_of(data: bytes) -> list[dict[str, Any]]:
    """Rows of a JSONEachRow answer."""
    return [orjson.loads(line) for line in data.split(b"\n") if line]


def text_params(params: Mapping[str, object] | None) -> dict[str, str]:
    """Parameters in the text form that `param_<name>` has in ClickHouse's HTTP interface."""
    return {name: _param_text(value) for name, value in (params or {}).items()}


def check_setting_name(name: str) -> str:
    """The name, when it can be a setting; names are written into SQL, so nothing else may pass."""
    if not _SAFE_NAME.match(name):
        raise EngineError(
            f"setting {name!r}: not a setting's name", code=115, name="UNKNOWN_SETTING"
        )
    return name


def quoted(text: str) -> str:
    """A string literal of ClickHouse's SQL."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def quoted_name(name: str) -> str:
    """An identifier of ClickHouse's SQL; dots separate a database from its table."""
    parts = (part.replace("\\", "\\\\").replace("`", "\\`") for part in name.split("."))
    return ".".join(f"`{part}`" for part in parts)


def settings_text(settings: Mapping[str, object]) -> str:
    """Settings as `a = 1, b = 'x'`, for SET and for SETTINGS."""
    return ", ".join(
        f"{check_setting_name(name)} = {_setting_value(value)}" for name, value in settings.items()
    )


def _setting_value(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return str(value) if isinstance(value, int | float) else quoted(str(value))


def _param_text(value: object) -> str:
    match value:
        case None:
            return "\\N"
        case str():
            return tsv_escaped(value)
        case list() | tuple():
            return "[" + ",".join(_param_literal(item) for item in value) + "]"
        case _:
            return _scalar_text(value)


def _param_literal(value: object) -> str:
    match value:
        case None:
            return "NULL"
        case list() | tuple():
            return _param_text(value)
        case bool() | int() | float() | Decimal():
            return _scalar_text(value)
        case str():
            return quoted(value)
        case _:
            return quoted(_scalar_text(value))


def _scalar_text(value: object) -> str:
    match value:
        case bool():
            return str(int(value))
        case datetime():
            moment = value if value.tzinfo is None else value.astimezone(UTC)
            return moment.replace(tzinfo=None).isoformat(sep=" ")
        case int() | float() | Decimal() | date() | UUID():
            return str(value)
        case _:
            raise EngineError(
                f"query parameter of type {type(value).__name__}: not supported; pass str, int, "
                "float, bool, Decimal, datetime, date, UUID, None, or a list of these"
            )


def tsv_escaped(text: str) -> str:
    """A text as it stands in a value of ClickHouse's TSV, and in a parameter."""
    for plain, escaped in (
        ("\\", "\\\\"),
        ("\t", "\\t"),
        ("\n", "\\n"),
        ("\r", "\\r"),
        ("\0", "\\0"),
    ):
        text = text.replace(plain, escaped)
    return text
