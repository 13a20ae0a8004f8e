"""Questions to ClickHouse over its HTTP interface, without a driver: urllib does.

Owns the request, its parameters and the translation of failures. Refuses to know any query.
The same code asks the embedded port and a ClickHouse server.
"""

from __future__ import annotations

import base64
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from tidemill.agents.clickhouse.engine import tsv_escaped

ANSWER_SECONDS: Final = 30.0  # the embedded port's own limit is shorter
ERROR_LENGTH_MAX: Final = 2_000  # characters of a server's message that are shown

# Proxies of the environment are for the outside world, not for a database beside us.
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class SqlError(Exception):
    """A question that got no answer: the text says why. `is_reachable`: someone did answer."""

    def __init__(self, message: str, *, is_reachable: bool) -> None:
        super().__init__(message)
        self.is_reachable = is_reachable


@dataclass(frozen=True, slots=True)
class Answer:
    """What ClickHouse wrote, and in which of its formats: one in the query wins over the asked."""

    data: bytes
    fmt: str | None


def ask(
    clickhouse: str,
    sql: str,
    params: Mapping[str, str] | None = None,
    *,
    fmt: str | None = None,
    is_read_only: bool = False,
    settings: Mapping[str, str] | None = None,
    timeout_seconds: float = ANSWER_SECONDS,
) -> Answer:
    """The answer as ClickHouse wrote it. `params` fill {name:Type}. Raises SqlError.

    `is_read_only`: also a server that would let us write shall refuse to.
    """
    # Last: under `readonly` no setting may change after it.
    chosen = {**(settings or {}), **({"readonly": "1"} if is_read_only else {})}
    request = _request(clickhouse, sql, params or {}, fmt, chosen)
    try:
        with _OPENER.open(request, timeout=timeout_seconds) as response:
            return Answer(response.read(), response.headers.get("X-ClickHouse-Format", fmt))
    except urllib.error.HTTPError as error:
        text = error.read().decode("utf-8", "replace").strip()
        raise SqlError(text[:ERROR_LENGTH_MAX] or f"HTTP {error.code}", is_reachable=True) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise SqlError(
            f"no answer from ClickHouse at {_address(clickhouse)}: {reason}; check --clickhouse "
            "and that `tidemill dev` (or the server) runs",
            is_reachable=False,
        ) from None


def query_bytes(
    clickhouse: str,
    sql: str,
    params: Mapping[str, str] | None = None,
    *,
    fmt: str | None = None,
    is_read_only: bool = False,
    timeout_seconds: float = ANSWER_SECONDS,
) -> bytes:
    """`ask` for those who know the format."""
    return ask(
        clickhouse, sql, params, fmt=fmt, is_read_only=is_read_only,
        timeout_seconds=timeout_seconds,
    ).data


def query_rows(
    clickhouse: str,
    sql: str,
    params: Mapping[str, str] | None = None,
    *,
    timeout_seconds: float = ANSWER_SECONDS,
) -> list[dict[str, Any]]:
    """The answer as one dict a row. Raises SqlError."""
    answer = query_bytes(
        clickhouse, sql, params, fmt="JSONEachRow", timeout_seconds=timeout_seconds
    )
    try:
        return [orjson.loads(line) for line in answer.splitlines() if line]
    except orjson.JSONDecodeError as error:
        # An answer that began well may end with the text of an error, or is of another server.
        text = answer[-ERROR_LENGTH_MAX:].decode("utf-8", "replace")
        raise SqlError(
            f"{_address(clickhouse)} did not answer as ClickHouse does ({error}): {text}",
            is_reachable=True,
        ) from None


def _request(
    clickhouse: str,
    sql: str,
    params: Mapping[str, str],
    fmt: str | None,
    settings: Mapping[str, str],
) -> urllib.request.Request:
    if not clickhouse.startswith(("http://", "https://")):
        raise SqlError(
            f"{clickhouse!r}: one process holds a chDB folder, so ask over HTTP; set --clickhouse "
            "http://HOST:PORT",
            is_reachable=False,
        )
    parts = urllib.parse.urlsplit(clickhouse)
    given = dict(urllib.parse.parse_qsl(parts.query))
    if database := urllib.parse.unquote(parts.path).strip("/"):
        given.setdefault("database", database)  # as the roles read the same address
    given |= {f"param_{name}": tsv_escaped(value) for name, value in params.items()}
    # Without this a server writes 64-bit numbers as text in JSON.
    given["output_format_json_quote_64bit_integers"] = "0"
    if fmt is not None:
        given["default_format"] = fmt
    given |= settings
    url = f"{_address(clickhouse)}/?{urllib.parse.urlencode(given)}"
    request = urllib.request.Request(url, data=sql.encode())
    if parts.username:
        unquote = urllib.parse.unquote
        word = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_header("Authorization", "Basic " + base64.b64encode(word.encode()).decode())
    return request


def _address(clickhouse: str) -> str:
    parts = urllib.parse.urlsplit(clickhouse)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}"
