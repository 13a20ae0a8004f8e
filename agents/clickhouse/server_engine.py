"""A ClickHouse server over HTTP: the second adapter of `Engine`, on clickhouse-connect.

Owns the client and the translation of its errors. It refuses to know SQL and tables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agents.clickhouse.engine import (
    EngineUnavailable,
    QueryOutput,
    masked_dsn,
    parse_error,
    quoted_name,
    rows_of,
    text_params,
)

CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 60
"""Longer than an insert of a full batch on a busy server, shorter than a sink's patience."""


class ServerEngine:
    """One pooled HTTP client; safe to call from several threads."""

    def __init__(self, dsn: str, client: Any):
        self._dsn = masked_dsn(dsn)
        self._client = client

    @classmethod
    def open(cls, dsn: str) -> ServerEngine:
        import clickhouse_connect

        with _translated_errors(masked_dsn(dsn)):
            client = clickhouse_connect.get_client(
                dsn=dsn,
                # A session serves one query at a time; threads share this client.
                autogenerate_session_id=False,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                send_receive_timeout=READ_TIMEOUT_SECONDS,
            )
        return cls(dsn, client)

    @property
    def dsn(self) -> str:
        return self._dsn

    def query(
        self,
        sql: str,
        params: Mapping[str, object] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> list[dict[str, Any]]:
        return rows_of(self.query_bytes(sql, "JSONEachRow", params, settings))

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
        transport = {f"param_{name}": value for name, value in (text_params or {}).items()}
        with _translated_errors(self._dsn):
            data = self._client.raw_query(
                sql,
                settings={"default_format": fmt, "output_format_json_quote_64bit_integers": 0}
                | dict(settings or {}),
                transport_settings=None,
                parameters=None,
            ) if not transport else self._client.raw_query(
                sql, settings={"default_format": fmt} | dict(settings or {}) | transport
            )
        return QueryOutput(data=bytes(data))

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
        with _translated_errors(self._dsn):
            summary = self._client.raw_insert(
                quoted_name(table),
                column_names=columns,
                insert_block=data,
                fmt=fmt,
                settings=dict(settings or {}),
            )
            return int(summary.written_rows)

    def close(self) -> None:
        self._client.close()


@contextlib.contextmanager
def _translated_errors(dsn: str) -> Iterator[None]:
    from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

    try:
        yield
    except OperationalError as error:
        raise EngineUnavailable(f"clickhouse at {dsn}: {error}") from error
    except ClickHouseError as error:
        raise parse_error(str(error)) from error
