"""The table `tidemill_outbox`: one row is one request that Kafka does not have yet.

Owns the columns, and the ways in which the table comes into a database. Refuses to know who writes
rows and who takes them.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_mock_engine,
)
from sqlalchemy.orm import registry
from sqlalchemy.schema import CreateTable

from tidemill.schemas.requests import ID_LENGTH_MAX

TABLE_NAME: Final = "tidemill_outbox"
DIALECTS: Final = ("postgresql", "sqlite")

metadata: Final = MetaData()
"""Holds the outbox alone: `metadata.create_all(engine)` makes it and nothing else."""

table: Final = Table(
    TABLE_NAME,
    metadata,
    # The order of a user's jobs. SQLite counts up only in a column of this very type.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("user_id", String(ID_LENGTH_MAX), nullable=False),
    Column("job_id", String(ID_LENGTH_MAX), nullable=False),
    Column("created_at", BigInteger, nullable=False),  # epoch ms, by the clock of the program
    Column("value", LargeBinary, nullable=False),  # of the record on `jobs.requested`
    Column("problem", Text),  # why it can never be sent; null: it waits
    sqlite_autoincrement=True,
)
"""The outbox. `attach` puts a copy of it into another metadata."""


class OutboxRow:
    """A row as sessions know it."""

    id: int
    user_id: str
    job_id: str
    created_at: int
    value: bytes
    problem: str | None

    def __init__(self, *, user_id: str, job_id: str, created_at: int, value: bytes) -> None:
        self.user_id = user_id
        self.job_id = job_id
        self.created_at = created_at
        self.value = value


registry(metadata=metadata).map_imperatively(OutboxRow, table)


def attach(to: MetaData) -> Table:
    """Make the outbox a table of `to`: its `create_all` and its migrations know it from now on."""
    return to.tables[TABLE_NAME] if TABLE_NAME in to.tables else table.to_metadata(to)


def ddl(dialect: str) -> str:
    """The statement that creates the table, for people who write their migrations by hand.

    `dialect`: postgresql or sqlite. Raises ValueError for another one.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"dialect {dialect!r}: the outbox knows {' and '.join(DIALECTS)}")
    engine = create_mock_engine(f"{dialect}://", lambda *_: None)
    return f"{str(CreateTable(table).compile(dialect=engine.dialect)).strip()};\n"
