"""ClickHouse's HTTP interface, read and write, over the embedded engine: a server for tests of the
adapter that speaks to servers, where `TIDEMILL_TEST_CLICKHOUSE` names none.

Owns the answers of the interface as far as `tidemill.agents.clickhouse.server_engine` relies on
them: query in the address or in the body, `param_*`, `database`, settings of a call, status,
summary, error text. Refuses to know SQL: the engine below is ClickHouse's own. It proves our side
of the contract and nothing about a server's version, its users and its limits; the same suite runs
over a server.

    python clickhouse_stand_in.py FOLDER PORT        prints "serving" when it is asked to come
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import chdb
import orjson
from chdb.state import sqlitelike

from tidemill.agents.clickhouse.engine import parse_error, settings_text

USER, PASSWORD = "test", "s&cret"
# What a server takes for itself and not for a setting of the query.
OF_THE_INTERFACE = frozenset({"query", "database", "wait_end_of_query", "default_format"})


class StandIn(ThreadingHTTPServer):
    """All connections over one folder; inserts one by one, as the file of each has one name."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.folder = folder
        self.base = sqlitelike.Connection(str(folder))
        self.inserting = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        asked = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        said = (self.headers.get("X-ClickHouse-User"), self.headers.get("X-ClickHouse-Key"))
        if said != (USER, PASSWORD):
            self._refuse(403, 516, "AUTHENTICATION_FAILED", f"{said[0]}: wrong password")
            return
        try:
            data, summary = self._answer(asked, body)
        except (chdb.ChdbError, RuntimeError) as raised:
            error = parse_error(str(raised))
            self._refuse(500, error.code, error.name, error.message)
            return
        self.send_response(200)
        self.send_header("X-ClickHouse-Summary", orjson.dumps(summary).decode())
        self._send(data)

    def _answer(self, asked: dict[str, str], body: bytes) -> tuple[bytes, dict[str, str]]:
        params = {
            name.removeprefix("param_"): value
            for name, value in asked.items() if name.startswith("param_")
        }
        settings = {
            name: value for name, value in asked.items()
            if name not in OF_THE_INTERFACE and not name.startswith("param_")
        }
        with closing(sqlitelike.Connection(str(self.server.folder))) as connection:
            connection.query(f"USE `{asked.get('database', 'default')}`", "Null")
            connection.query(
                f"SET {settings_text({'max_insert_threads': 1, **settings})}", "Null"
            )
            if "query" in asked:
                return self._insert(connection, asked["query"], body)
            fmt = asked.get("default_format", "TabSeparated")
            result = connection.query(body.decode(), fmt, params=params)
            return bytes(result.bytes()), {
                "read_rows": str(result.storage_rows_read()),
                "read_bytes": str(result.storage_bytes_read()),
                "elapsed_ns": str(int(result.elapsed() * 1e9)),
            }

    def _insert(self, connection: Any, sql: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        head, _, fmt = sql.rpartition(" FORMAT ")
        path = self.server.folder.parent / "rows"
        with self.server.inserting:
            path.write_bytes(body)
            result = connection.query(f"{head} FROM INFILE '{path}' FORMAT {fmt}", "Null")
        return b"", {"written_rows": str(result.rows_written())}

    def _refuse(self, status: int, code: int, name: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-ClickHouse-Exception-Code", str(code))
        self._send(f"Code: {code}. DB::Exception: {message}. ({name}) (version 0.0)".encode())

    def _send(self, data: bytes) -> None:
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Nobody reads it."""


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True)
    server = StandIn(folder, port)
    print("serving", flush=True)
    threading.Thread(target=_end_with_parent, args=(server,), daemon=True).start()
    server.serve_forever()


def _end_with_parent(server: StandIn) -> None:
    """Its standard input ends when the tests do, however they end."""
    sys.stdin.buffer.read()
    server.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main()
