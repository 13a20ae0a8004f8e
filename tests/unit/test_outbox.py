"""The outbox without Kafka: rows in the caller's own transaction, and which rows a relay takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, MetaData, create_engine, insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from typer.testing import CliRunner

from tidemill import InvalidRequest, Request, job, outbox
from tidemill.agents.worker.handlers import REGISTRY
from tidemill.cli.app import app
from tidemill.outbox import relay, store
from tidemill.outbox.store import Claim, Row, Store


class Base(DeclarativeBase):
    """The user's own tables."""


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


class Charge(BaseModel):
    order: int


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    outbox.metadata.create_all(made)
    Base.metadata.create_all(made)
    yield made
    made.dispose()


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Handlers that a test defines are gone after it."""
    known = dict(REGISTRY._handlers)
    yield
    REGISTRY._handlers.clear()
    REGISTRY._handlers.update(known)


def rows(engine: Engine) -> list[Row]:
    with Store(engine).claimed() as claim:
        return list(claim.rows)


def request(user: str = "u1", job_id: str | None = None, **more: object) -> Request:
    return Request(type="t", user_id=user, job_id=job_id, **more)  # type: ignore[arg-type]


def test_a_row_is_there_when_its_transaction_is_committed_and_not_before(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Order(id=1))
        handle = outbox.add(session, request(payload={"a": 1}))
        session.flush()
        session.rollback()
    assert rows(engine) == []
    with Session(engine) as session, session.begin():
        session.add(Order(id=1))
        handle = outbox.add(session, request(payload={"a": 1}))
    (row,) = rows(engine)
    assert (row.user_id, row.job_id) == ("u1", handle.job_id)
    body = orjson.loads(row.value)
    assert body == {"type": "t", "user_id": "u1", "job_id": handle.job_id, "payload": {"a": 1}}


def test_sessions_and_connections_write_the_same_row(engine: Engine) -> None:
    with engine.begin() as connection:
        outbox.add(connection, request(job_id="a"))
    with sessionmaker(engine).begin() as session:
        outbox.add(session, request(job_id="a"))
    first, second = rows(engine)
    assert (first.user_id, first.job_id, first.value) == (
        second.user_id, second.job_id, second.value
    )


def test_a_typed_call_is_checked_by_its_handler(engine: Engine) -> None:
    @job("outbox.charge")
    async def charge(payload: Charge) -> int:
        return payload.order

    with Session(engine) as session, session.begin():
        handle = outbox.add(session, charge, Charge(order=7), user_id="u1", priority="high")
        with pytest.raises(InvalidRequest, match=r"payload\.order"):
            outbox.add(session, charge, {"order": "x"}, user_id="u1")  # type: ignore[misc]
    (row,) = rows(engine)
    assert orjson.loads(row.value)["payload"] == {"order": 7}
    assert handle.job_id == row.job_id
    assert handle.type == "outbox.charge"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (request("", "a"), "user_id"),
        (request("u1", "a\n"), "job_id"),
        (request(max_attempts=0), "max_attempts"),
        (request(payload={"a": float("nan")}), "payload"),
        (request(payload={"a": "x" * 1_100_000}), "payload"),
    ],
)
def test_what_the_engine_would_refuse_becomes_no_row(
    engine: Engine, wrong: Request, field: str
) -> None:
    with Session(engine) as session, session.begin():
        with pytest.raises(InvalidRequest, match=field):
            outbox.add(session, wrong)
        session.add(Order(id=1))  # the transaction goes on
    assert rows(engine) == []


def test_what_is_no_transaction_is_told_so(engine: Engine) -> None:
    with pytest.raises(TypeError, match="has no transaction"):
        outbox.add(engine, request())  # type: ignore[call-overload]
    with Session(engine) as session, pytest.raises(TypeError, match="is no request"):
        outbox.add(session, {"type": "t"})  # type: ignore[call-overload]
    with Session(engine) as session, pytest.raises(TypeError, match="give it alone"):
        outbox.add(session, request(), user_id="u")  # type: ignore[call-overload]


def test_the_users_metadata_creates_the_table_and_so_does_the_printed_ddl() -> None:
    own = MetaData()
    table = outbox.attach(own)
    assert outbox.attach(own) is table
    by_metadata, by_ddl = create_engine("sqlite://"), create_engine("sqlite://")
    own.create_all(by_metadata)
    with by_ddl.begin() as connection:
        connection.execute(text(CliRunner().invoke(app, ["outbox", "ddl", "sqlite"]).stdout))
    schema = text("select sql from sqlite_master where name = 'tidemill_outbox'")
    found = []
    for each in (by_metadata, by_ddl):
        with each.begin() as connection:
            outbox.add(connection, request(job_id="a"))
            found.append("".join(str(connection.execute(schema).scalar()).split()))
        assert [row.job_id for row in rows(each)] == ["a"]
        each.dispose()
    assert found[0] == found[1]
    assert "BIGSERIAL" in outbox.ddl("postgresql")
    with pytest.raises(ValueError, match="postgresql and sqlite"):
        outbox.ddl("oracle")


def test_rows_of_one_flush_keep_the_order_of_their_calls(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        for number in range(300):
            outbox.add(session, request(job_id=str(number)))
    assert [row.job_id for row in rows(engine)] == [str(number) for number in range(300)]


def test_a_batch_is_bounded_in_rows_and_bytes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as connection:
        for number in range(6):
            outbox.add(connection, request(job_id=str(number), payload={"a": "x" * 1_000}))
    monkeypatch.setattr(store, "BATCH_ROWS", 4)
    assert len(rows(engine)) == 4
    monkeypatch.setattr(store, "BATCH_BYTES", 2_500)
    assert len(rows(engine)) == 2
    monkeypatch.setattr(store, "BATCH_BYTES", 1)
    assert len(rows(engine)) == 1


def test_what_a_claim_says_is_written_and_a_failed_one_writes_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        for name in "abc":
            outbox.add(connection, request(job_id=name))
    found = Store(engine)
    failing = found.claimed()
    claim = failing.__enter__()
    claim.sent = {row.id for row in claim.rows}
    gone = OSError("gone")
    assert not failing.__exit__(OSError, gone, None)
    assert found.lag().waiting == 3
    with found.claimed() as claim:
        claim.sent = {claim.rows[0].id}
        claim.refused = {claim.rows[1].id: "no"}
    lag = found.lag()
    assert (lag.waiting, lag.refused) == (1, 1)
    assert lag.oldest_at is not None
    assert [row.job_id for row in rows(engine)] == ["c"]
    assert [(one["job_id"], one["problem"]) for one in found.refused(9)] == [("b", "no")]


def test_a_row_that_a_stranger_wrote_is_refused_and_holds_up_no_other(engine: Engine) -> None:
    with engine.begin() as connection:
        for user, value in (("u1", b"{"), ("u1", b'{"type": "t", "user_id": "u2"}')):
            connection.execute(insert(outbox.table).values(
                user_id=user, job_id="x", created_at=0, value=value
            ))
        outbox.add(connection, request(job_id="good"))
    claim = Claim(rows(engine))
    assert [row.job_id for row in relay._sound_rows(claim)] == ["good"]
    broken, foreign = claim.refused.values()
    assert "JSON" in broken
    assert "write rows with outbox.add" in foreign


@pytest.mark.parametrize(
    ("dsn", "told"),
    [
        ("nonsense", "write a DSN of SQLAlchemy"),
        ("oracle2://x", "write a DSN of SQLAlchemy"),
        ("sqlite://", "tidemill outbox ddl"),
    ],
)
def test_a_database_that_cannot_be_used_ends_the_relay(dsn: str, told: str) -> None:
    result = CliRunner().invoke(app, ["outbox", "status", "--database", dsn])
    assert isinstance(result.exception, outbox.RelayError)
    assert told in str(result.exception)
    assert result.exception.exit_code == 78


def test_an_empty_outbox_asks_kafka_for_nothing(engine: Engine) -> None:
    assert outbox.Relay(engine, kafka="127.0.0.1:1").send_once() == 0
