"""One way to a database for the systems: SQLite without a server, Postgres by its address.

Owns how SQLite is set up, and the difference between reading and writing. Refuses to know tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, create_engine, event, make_url

BUSY_SECONDS: Final = 30.0  # SQLite has one writer; the others wait for their turn this long
_READS: Final = "systems_reads"


def open_engine(address: str) -> Engine:
    """An engine of SQLAlchemy; of a SQLite file the folder is made.

    Its transactions write: of SQLite they take the write lock at their begin, because one that
    begins as a reader and then writes fails at once when another has written meanwhile. What only
    reads uses `reading`.
    """
    url = make_url(address)
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def reading(engine: Engine) -> Engine:
    """The same engine for transactions that write nothing: on SQLite they wait for no writer."""
    return engine.execution_options(**{_READS: True})


def _set_up(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy begins, not the driver
    connection.execute("PRAGMA journal_mode=WAL")  # readers beside the writer
    connection.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Any) -> None:
    is_reader = connection.get_execution_options().get(_READS, False)
    connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")
