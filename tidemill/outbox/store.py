"""The database side of a relay: which rows it takes, and what becomes of them.

Owns the order of rows, the claim on users and the figures of what waits. Refuses to know Kafka.

Order: rows of one user are taken by `id`, from the first that waits, without a gap. So whatever a
relay sends of a user is a run of that user's rows behind all that were sent before; when two relays
send the same rows, the first copies are still in order, and the ledger drops the second ones.

Postgres: a claim locks the first row of each of its users (SKIP LOCKED), so two relays have
different users. SQLite locks no rows: two relays send the same rows twice, which is harmless and
wasteful.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, delete, func, inspect, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from tidemill.agents import exit_codes
from tidemill.outbox.errors import RelayError
from tidemill.outbox.table import DIALECTS, TABLE_NAME, table

WINDOW_ROWS: Final = 2_000  # looked at in one go, without their values
BATCH_ROWS: Final = 500  # sent together; a dead relay's successor repeats at most so many
BATCH_BYTES: Final = 16 * 1_048_576  # of their values; one row has at most 1 MiB
CLAIM_USERS: Final = 100  # of one claim; the others are free for the next relay
PROBLEM_LENGTH_MAX: Final = 2_000  # characters

_T: Final = table.c


@dataclass(frozen=True, slots=True)
class Row:
    """A request that waits."""

    id: int
    user_id: str
    job_id: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Lag:
    """What has not reached Kafka."""

    waiting: int
    """Rows that a relay will send."""
    oldest_at: datetime | None
    """When the first of them was written, by the clock of its program; None: none waits."""
    refused: int
    """Rows that can never be sent; their column `problem` says why."""


@dataclass(slots=True)
class Claim:
    """Rows to send, and what became of them: filled by the relay, written when the claim ends."""

    rows: Sequence[Row]
    sent: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)


def open_engine(database: str) -> Engine:
    """An engine for a DSN. Raises RelayError that says what is wrong with it."""
    try:
        url = make_url(database)
        engine = create_engine(url, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        # The DSN may hold a password: it is not repeated.
        raise RelayError(
            f"database: {_first_line(error, database)}; write a DSN of SQLAlchemy, such as "
            "postgresql+psycopg://USER:PASSWORD@HOST/NAME or sqlite:///FILE"
        ) from None
    except ModuleNotFoundError as error:
        raise RelayError(
            f"database: {error}; install the driver of {url.drivername}, such as: "
            "pip install 'psycopg[binary]' for postgresql+psycopg://…"
        ) from None
    return engine


def _first_line(error: Exception, secret: str) -> str:
    return str(error).splitlines()[0].replace(secret, "…")


class Store:
    """The outbox of one database."""

    def __init__(self, engine: Engine) -> None:
        if engine.dialect.is_async:
            raise RelayError(
                f"database: {engine.dialect.driver} is a driver for event loops; give the relay "
                "another one for the same database, such as postgresql+psycopg://… or sqlite:///…"
            )
        if engine.dialect.name not in DIALECTS:
            raise RelayError(
                f"database: {engine.dialect.name} is not one of {', '.join(DIALECTS)}"
            )
        self.engine = engine
        self._locks_rows = engine.dialect.name == "postgresql"

    def check(self) -> None:
        """Raise RelayError when the database does not answer or has no outbox."""
        try:
            has_table = inspect(self.engine).has_table(TABLE_NAME)
        except OperationalError as error:
            raise RelayError(
                f"database: {str(error.orig).strip()}; is it up, and is the DSN right?",
                exit_codes.UNREACHABLE,
            ) from None
        if not has_table:
            raise RelayError(
                f"database: it has no table {TABLE_NAME}; create it with outbox.attach(metadata) "
                "before create_all, or with what `tidemill outbox ddl` prints"
            )

    @contextmanager
    def claimed(self) -> Iterator[Claim]:
        """The next rows. What the claim says of them at the end is written in one transaction;
        after an error nothing is."""
        if not self._locks_rows:
            with self.engine.connect() as connection:
                claim = Claim(_taken(connection, _window(connection, BATCH_ROWS)))
            # No transaction is open while Kafka is asked: the program may write meanwhile.
            yield claim
            if claim.sent or claim.refused:
                with self.engine.begin() as connection:
                    _settle(connection, claim)
            return
        with self.engine.begin() as connection:
            window = _window(connection, WINDOW_ROWS)
            users = _locked(connection, window)
            claim = Claim(_taken(connection, [one for one in window if one[1] in users]))
            yield claim
            _settle(connection, claim)

    def lag(self) -> Lag:
        """Counts all rows: for people and probes, not for each batch."""
        waits = _T.problem.is_(None)
        asked = select(
            func.count().filter(waits), func.min(_T.created_at).filter(waits),
            func.count().filter(~waits),
        ).select_from(table)
        with self.engine.connect() as connection:
            waiting, oldest, refused = connection.execute(asked).one()
        at = None if oldest is None else datetime.fromtimestamp(oldest / 1000, tz=UTC)
        return Lag(waiting, at, refused)

    def refused(self, most: int) -> list[dict[str, Any]]:
        """The first rows that can never be sent, with the reason."""
        asked = (
            select(_T.id, _T.user_id, _T.job_id, _T.created_at, _T.problem)
            .where(_T.problem.is_not(None)).order_by(_T.id).limit(most)
        )
        with self.engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(asked)]


Seen = tuple[int, str, int]
"""Id, user and size of a row."""


def _window(connection: Connection, most: int) -> list[Seen]:
    """The first rows that wait."""
    asked = (
        select(_T.id, _T.user_id, func.length(_T.value))
        .where(_T.problem.is_(None)).order_by(_T.id).limit(most)
    )
    return [(row[0], row[1], row[2]) for row in connection.execute(asked)]


def _locked(connection: Connection, window: Sequence[Seen]) -> set[str]:
    """The users whose first row is ours now."""
    heads: dict[str, int] = {}
    for row_id, user_id, _ in window:
        heads.setdefault(user_id, row_id)
    asked = (
        select(_T.user_id)
        .where(_T.id.in_(list(heads.values())), _T.problem.is_(None))
        .order_by(_T.id).limit(CLAIM_USERS)
        .with_for_update(skip_locked=True)
    )
    return set(connection.execute(asked).scalars())


def _taken(connection: Connection, seen: Sequence[Seen]) -> list[Row]:
    """As many as make one batch, with their values."""
    ids: list[int] = []
    size = 0
    for row_id, _, length in seen[:BATCH_ROWS]:
        size += length
        if ids and size > BATCH_BYTES:
            break
        ids.append(row_id)
    if not ids:
        return []
    asked = (
        select(_T.id, _T.user_id, _T.job_id, _T.value)
        .where(_T.id.in_(ids), _T.problem.is_(None)).order_by(_T.id)
    )
    return [Row(row[0], row[1], row[2], bytes(row[3])) for row in connection.execute(asked)]


def _settle(connection: Connection, claim: Claim) -> None:
    if claim.sent:
        connection.execute(delete(table).where(_T.id.in_(claim.sent)))
    refused: Mapping[int, str] = claim.refused
    for row_id, problem in refused.items():
        told = problem[:PROBLEM_LENGTH_MAX]
        connection.execute(update(table).where(_T.id == row_id).values(problem=told))
