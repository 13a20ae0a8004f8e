"""ClickHouse's engine inside this process, over one folder: the chDB adapter of `Engine`.

Owns the folder's lock, the engine's bounds on memory and background threads, and a connection per
call. It refuses to know SQL. One process holds a folder, and one process holds one folder only.

A connection per call costs 0.15 ms and buys three things: settings that hold for that call alone;
reads and inserts side by side; and no leftovers, since a connection whose query failed midway hands
the rows already written to the next query's answer.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode

from tidemill.agents.clickhouse.engine import (
    CHDB_SCHEME,
    EngineError,
    EngineUnavailable,
    QueryOutput,
    parse_error,
    quoted_name,
    rows_of,
    settings_text,
    text_params,
)
from tidemill.agents.private_files import make_private

LOCK_FILE = "tidemill.lock"
INSERT_PREFIX = "insert-"
"""Of files that hold the rows of an insert while it lasts; a killed process leaves them."""
IS_LINUX = hasattr(os, "memfd_create")
CLOSE_TIMEOUT_SECONDS = 30.0
"""How long `close` waits for calls in flight; longer than any query that the port lets run."""

# What the engine may take of a laptop; the rest belongs to the broker, the ledger and the workers.
SERVER_OPTIONS: Mapping[str, int] = {
    "max_server_memory_usage": 2_000_000_000,  # bytes, of all queries, merges and caches together
    "background_pool_size": 1,  # merge threads; parts of tens of thousands of rows merge quickly
    "background_schedule_pool_size": 1,
    "max_thread_pool_size": 64,  # threads at most, of everything
    "mark_cache_size": 67_108_864,  # bytes
    "uncompressed_cache_size": 0,  # bytes; the page cache of the system does this already
}
CALL_SETTINGS: Mapping[str, int] = {
    # One thread per query: this engine shares two cores with everything else, and a query of ours
    # reads thousands of rows, not billions.
    "max_threads": 1,
    "max_insert_threads": 1,
    "input_format_parallel_parsing": 0,
    "implicit_select": 0,  # chDB takes `1 + 1` for a query; a server does not
    "allow_python_table_function": 0,  # chDB's own: it would look at variables of this process
}

_open_lock = threading.Lock()
_open_engines: dict[Path, ChdbEngine] = {}


class ChdbEngine:
    """An open folder; `open` gives the same one to every caller in this process."""

    def __init__(self, folder: Path, address: str, lock_file: IO[str], base: Any):
        self._folder = folder
        self._address = address
        self._lock_file = lock_file
        self._base = base
        self._state = threading.Condition()
        self._calls_in_flight = 0
        self._owners = 1
        self._is_closed = False

    @classmethod
    def open(cls, dsn: str) -> ChdbEngine:
        folder = _folder_of(dsn)
        with _open_lock:
            if (known := _open_engines.get(folder)) is not None:
                known._owners += 1
                return known
            if _open_engines:
                raise EngineError(
                    f"chDB folder {folder}: this process already holds "
                    f"{next(iter(_open_engines))}, and chDB serves one folder per process; close "
                    "that one first"
                )
            lock_file = _locked(folder)
            for left_over in folder.glob(f"{INSERT_PREFIX}*"):
                left_over.unlink(missing_ok=True)
            address = _engine_address(folder)
            try:
                first = _first_connection(folder, address)
                engine = cls(folder, address, lock_file, first)
            except BaseException:
                lock_file.close()
                raise
            _open_engines[folder] = engine
            return engine

    @property
    def dsn(self) -> str:
        return f"{CHDB_SCHEME}{self._folder}"

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
        with self._connection(settings) as connection, _translated_errors():
            answer = connection.query(sql, fmt, params=dict(text_params or {}))
            return QueryOutput(
                data=bytes(answer.bytes()),
                rows_read=answer.storage_rows_read(),
                bytes_read=answer.storage_bytes_read(),
                elapsed_seconds=answer.elapsed(),
            )

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
        with (
            self._insert_file(data) as path,
            self._connection(settings) as connection,
            _translated_errors(),
        ):
            # Not chDB's `send_insert`: its `finish` reports success when the rows were parsed and
            # then could not be written (a constraint, a full disk), and they would be lost.
            sql = f"INSERT INTO {quoted_name(table)}{names} FROM INFILE '{path}' FORMAT {fmt}"
            return int(connection.query(sql, "Null").rows_written())

    @contextlib.contextmanager
    def _insert_file(self, data: bytes) -> Iterator[str]:
        """A path under which the engine reads `data`, of no file on the disk where that can be.

        Files that come and go make the next ones dearer on some file systems (decision 0024).
        """
        try:
            with _scratch(self._folder) as file:
                file.write(data)
                file.flush()
                is_nameless = isinstance(file.name, int)
                yield f"/proc/self/fd/{file.fileno()}" if is_nameless else file.name
        except OSError as error:
            raise EngineUnavailable(f"chDB folder {self._folder}: {error}") from error

    def close(self) -> None:
        with _open_lock:
            self._owners -= 1
            if self._owners > 0 or self._is_closed:
                return
            with self._state:
                self._is_closed = True
                is_idle = self._state.wait_for(self._is_idle, timeout=CLOSE_TIMEOUT_SECONDS)
            _open_engines.pop(self._folder, None)
            if not is_idle:
                raise EngineError(
                    f"chDB folder {self._folder}: calls still ran {CLOSE_TIMEOUT_SECONDS:.0f} s "
                    "after close; the folder stays locked until this process ends"
                )
            self._base.close()
            self._lock_file.close()

    def _is_idle(self) -> bool:
        return self._calls_in_flight == 0

    @contextlib.contextmanager
    def _connection(self, settings: Mapping[str, object] | None) -> Iterator[Any]:
        with self._state:
            if self._is_closed:
                raise EngineError(f"chDB folder {self._folder}: the engine is closed")
            self._calls_in_flight += 1
        try:
            connected = _connect(self._address, {})
            with _translated_errors(), contextlib.closing(connected) as connection:
                connection.query(f"SET {settings_text(_ordered(settings))}", "Null")
                yield connection
        finally:
            with self._state:
                self._calls_in_flight -= 1
                self._state.notify_all()


def _scratch(folder: Path) -> IO[bytes]:
    """A file that is gone once it is closed; on Linux one without a name, in memory."""
    if IS_LINUX:
        return open(os.memfd_create(INSERT_PREFIX), "w+b")
    return tempfile.NamedTemporaryFile(prefix=INSERT_PREFIX, dir=folder)  # the caller closes it


def _ordered(settings: Mapping[str, object] | None) -> dict[str, object]:
    """All settings of a call, `readonly` last: it would forbid the ones after it."""
    merged: dict[str, object] = {**CALL_SETTINGS, **(settings or {})}
    if "readonly" in merged:
        merged["readonly"] = merged.pop("readonly")
    return merged


@contextlib.contextmanager
def _translated_errors() -> Iterator[None]:
    import chdb

    try:
        yield
    except (chdb.ChdbError, RuntimeError) as error:
        raise parse_error(str(error)) from error


def _connect(address: str, options: Mapping[str, int]) -> Any:
    from chdb.state import sqlitelike

    with _translated_errors():
        return sqlitelike.Connection(f"{address}?{urlencode(options)}" if options else address)


def _first_connection(folder: Path, address: str) -> Any:
    """The one that loads the folder. What stands in its way is in its files, and stays."""
    from tidemill.agents.clickhouse.soundness import DamagedStore, unreadable, way_out

    try:
        with _nowhere():
            return _connect(address, SERVER_OPTIONS)
    except EngineError as error:
        if error.is_retryable:
            raise
        if (path := unreadable(folder)) is not None:
            raise EngineError(
                f"chDB folder {folder} cannot be opened: {path} may not be read and written by "
                "this user; give the folder to its user (chown -R), or choose another with --data"
            ) from error
        # Of an error of C++ the engine adds its stack, which would push out what to do.
        said = error.message.partition(", Stack trace")[0].partition("\n")[0].rstrip(": ")
        raise DamagedStore(
            f"chDB folder {folder} cannot be opened ({said}): its files are damaged, or a newer "
            f"version wrote them; {way_out(f'{CHDB_SCHEME}{folder}')}"
        ) from error


def _engine_address(folder: Path) -> str:
    """The folder as chDB is told of it. On Linux by a descriptor, which stays open.

    So every name will do, and what the engine tells of its files (`system.parts.path`) tells
    nothing of the machine. It is not closed: threads of the engine may outlive the last connection.
    """
    if not IS_LINUX:
        return str(folder)
    return f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_DIRECTORY)}"


@contextlib.contextmanager
def _nowhere() -> Iterator[None]:
    """Work in an empty folder that is gone afterwards, while chDB makes its database.

    To chDB a name that is no table is a file of the folder in which its first connection was made:
    `SELECT * FROM users` would read a file `users` of the project. There is none in this folder.
    """
    before = os.open(".", os.O_RDONLY)
    try:
        with tempfile.TemporaryDirectory(prefix=INSERT_PREFIX) as empty:
            os.chdir(empty)
            try:
                yield
            finally:
                os.fchdir(before)
    finally:
        os.close(before)


def _folder_of(dsn: str) -> Path:
    folder = dsn.removeprefix(CHDB_SCHEME)
    if not folder.startswith("/"):
        raise EngineError(
            f"clickhouse DSN {dsn!r}: the folder must be absolute, as in chdb:///data/ch"
        )
    if "\0" in folder:
        raise EngineError(f"clickhouse DSN {dsn!r}: no path holds a zero byte")
    if "?" in folder and not IS_LINUX:
        raise EngineError(
            f"clickhouse DSN {dsn!r}: chDB takes what follows ? for options; choose a folder "
            "without it"
        )
    return Path(folder).resolve()


def _locked(folder: Path) -> IO[str]:
    """The folder's lock file, held until it is closed or the process ends, with our pid in it."""
    make_private(folder, marks=(LOCK_FILE,))
    lock_file = (folder / LOCK_FILE).open("a+", encoding="ascii")
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock_file.seek(0)
        holder = lock_file.read().strip() or "unknown"
        lock_file.close()
        raise EngineUnavailable(
            f"chDB folder {folder} is held by another process (pid {holder}); one process may hold "
            "it: ask that process over its ClickHouse port (http://...), or stop it first"
        ) from None
    lock_file.seek(0)
    lock_file.truncate()
    lock_file.write(f"{os.getpid()}\n")
    lock_file.flush()
    return lock_file
