"""A ClickHouse server over its HTTP interface: the second adapter of `Engine`.

Owns the connection pool, its time-outs, and the translation of errors. It refuses to know SQL and
tables. It speaks the HTTP interface itself, since clickhouse-connect has no way to pass parameters
in their text form nor to insert with the settings of one call and raw bytes without copying them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlencode, urlsplit

import orjson

from tidemill.agents.clickhouse.engine import (
    EngineError,
    EngineUnavailable,
    QueryOutput,
    masked_dsn,
    parse_error,
    quoted_name,
    rows_of,
    text_params,
)

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

DEFAULT_PORTS = {"http": 8123, "https": 8443}
CONNECT_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = 60.0
"""Longer than an insert of a full batch on a busy server, shorter than a sink's patience."""
POOL_CONNECTIONS_MAX = 8
"""As many calls at once as a sink, an API and a page make from their threads."""
GATEWAY_STATUSES = frozenset({502, 503, 504})


class ServerEngine:
    """A pool of HTTP connections to one server; safe to call from several threads."""

    def __init__(self, dsn: str, *, base_url: str, database: str, headers: Mapping[str, str]):
        self._dsn = masked_dsn(dsn)
        self._base_url = base_url
        self._database = database
        self._headers = dict(headers)
        self._pool = _pool()

    @classmethod
    def open(cls, dsn: str) -> ServerEngine:
        """Connects at once, so that a wrong address or password shows here."""
        parts = urlsplit(dsn)
        if not parts.hostname:
            raise EngineError(
                f"clickhouse DSN {masked_dsn(dsn)!r}: no host; use http://host:8123/db"
            )
        headers = {"X-ClickHouse-User": unquote(parts.username or "default")}
        if parts.password:
            headers["X-ClickHouse-Key"] = unquote(parts.password)
        port = parts.port or DEFAULT_PORTS[parts.scheme]
        engine = cls(
            dsn,
            base_url=f"{parts.scheme}://{parts.hostname}:{port}/",
            database=parts.path.strip("/") or "default",
            headers=headers,
        )
        engine.run("SELECT 1", "Null")
        return engine

    @property
    def dsn(self) -> str:
        return self._dsn

    def query(
        self,
        sql: str,
        params: Mapping[str, object] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> list[dict[str, Any]]:
        plain_numbers = {"output_format_json_quote_64bit_integers": 0}
        return rows_of(
            self.query_bytes(sql, "JSONEachRow", params, {**plain_numbers, **(settings or {})})
        )

    def query_bytes(
        self,
        sql: str,
        fmt: str = "JSONEachRow",
        params: Mapping[str, object] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> bytes:
        return self.run(sql, fmt, text_params(params), settings).data

    def run(
        self,
        sql: str,
        fmt: str = "JSONEachRow",
        text_params: Mapping[str, str] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> QueryOutput:
        arguments: dict[str, object] = {"default_format": fmt, **(settings or {})}
        arguments.update({f"param_{name}": value for name, value in (text_params or {}).items()})
        return self._post(arguments, sql.encode())

    def command(
        self,
        sql: str,
        params: Mapping[str, object] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.run(sql, "Null", text_params(params), settings)

    def insert_bytes(
        self,
        table: str,
        data: bytes,
        fmt: str = "JSONEachRow",
        columns: Sequence[str] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> int:
        names = f" ({', '.join(quoted_name(name) for name in columns)})" if columns else ""
        sql = f"INSERT INTO {quoted_name(table)}{names} FORMAT {fmt}"
        response = self._request({"query": sql, **(settings or {})}, data)
        return int(_summary(response).get("written_rows", 0))

    def close(self) -> None:
        self._pool.clear()

    def _post(self, arguments: Mapping[str, object], body: bytes) -> QueryOutput:
        response = self._request(arguments, body)
        summary = _summary(response)
        return QueryOutput(
            data=response.data,
            rows_read=int(summary.get("read_rows", 0)),
            bytes_read=int(summary.get("read_bytes", 0)),
            elapsed_seconds=int(summary.get("elapsed_ns", 0)) / 1e9,
        )

    def _request(self, arguments: Mapping[str, object], body: bytes) -> BaseHTTPResponse:
        from urllib3.exceptions import HTTPError

        # Waiting for the end turns an error in mid-answer into a status instead of a broken body.
        address = urlencode(
            {"database": self._database, "wait_end_of_query": 1}
            | {name: int(v) if isinstance(v, bool) else v for name, v in arguments.items()}
        )
        try:
            response = self._pool.request(
                "POST",
                f"{self._base_url}?{address}",
                body=body,
                headers=self._headers,
                retries=False,
            )
        except HTTPError as error:
            raise EngineUnavailable(f"clickhouse at {self._dsn}: {error}") from error
        if response.status == 200 and "X-ClickHouse-Exception-Code" not in response.headers:
            return response
        raise self._error(response)

    def _error(self, response: BaseHTTPResponse) -> EngineError:
        text = response.data.decode("utf-8", "replace").strip()
        if "DB::Exception" not in text and response.status in GATEWAY_STATUSES:
            return EngineUnavailable(
                f"clickhouse at {self._dsn}: HTTP {response.status} {text[:200]}"
            )
        return parse_error(text or f"HTTP {response.status} without a text")


def _summary(response: BaseHTTPResponse) -> dict[str, str]:
    found: dict[str, str] = orjson.loads(response.headers.get("X-ClickHouse-Summary") or "{}")
    return found


def _pool() -> PoolManager:
    import urllib3

    return urllib3.PoolManager(
        maxsize=POOL_CONNECTIONS_MAX,
        timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=READ_TIMEOUT_SECONDS),
    )
