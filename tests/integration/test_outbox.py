"""The outbox over a real Kafka, on SQLite and on Postgres: relays killed between any two steps, two
at once, rows that can never be sent, a broker that is away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from sqlalchemy import Engine, create_engine, insert, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.ext.asyncio.session import AsyncSession
from sqlalchemy.orm import Session

from tests.integration import outbox_relay
from tests.integration.outbox_relay import STEPS
from tests.integration.roles import ledger_and_worker
from tests.postgres_server import postgres_server
from tests.tidy.sources import ROOT
from tests.waiting import wait_until
from tidemill import Client, Request, outbox
from tidemill.agents.embedded.broker import Broker
from tidemill.outbox import delivery
from tidemill.schemas.topics import Topics

pytestmark = pytest.mark.timeout(120)

PARTITIONS: Final = 3
USERS: Final = 4
ROWS: Final = 40
SECONDS: Final = 60.0


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A DSN of a server of the module's own, from Debian's package."""
    with postgres_server() as dsn:
        if dsn is None:
            pytest.skip("no Postgres: `make debian` installs Debian's where it may")
        yield dsn


# Where a transaction is open meanwhile. The steps around the sending are the same on SQLite.
IN_TRANSACTION: Final = ("claimed", "acknowledged", "deleted_not_committed")
KILLS: Final = [
    *(("sqlite", step) for step in STEPS), *(("postgresql", step) for step in IN_TRANSACTION)
]


@pytest.fixture(params=["sqlite", "postgresql"])
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'app.db'}"
    address: str = request.getfixturevalue("postgres")
    return address


@pytest.fixture
def engine(dsn: str) -> Iterator[Engine]:
    made = create_engine(dsn)
    outbox.metadata.drop_all(made)
    outbox.metadata.create_all(made)
    yield made
    made.dispose()


@pytest.fixture
def topic(kafka: str, topic_prefix: str) -> str:
    return make_topic(kafka, Topics(topic_prefix).requested)


def make_topic(kafka: str, name: str) -> str:
    admin = AdminClient({"bootstrap.servers": kafka})
    (made,) = admin.create_topics(
        [NewTopic(name, PARTITIONS, 1)]
    ).values()
    made.result(SECONDS)
    return name


def fill(engine: Engine, rows: int = ROWS) -> None:
    with Session(engine) as session, session.begin():
        for number in range(rows):
            outbox.add(session, Request(
                type="t", user_id=f"u{number % USERS}", job_id=f"{number:05}", payload={"n": number}
            ))


def kill_relay(step: str, dsn: str, kafka: str, topic_prefix: str) -> None:
    """A relay that gets as far as that step."""
    script = Path(outbox_relay.__file__)
    done = subprocess.run(
        [sys.executable, str(script), step, dsn, kafka, topic_prefix],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=SECONDS, check=False,
        capture_output=True, text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def records(kafka: str, topic: str) -> list[tuple[str, bytes]]:
    """All keys and values, in the order of their partitions."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "none",
                         "enable.auto.commit": False})
    found = []
    try:
        for partition in range(PARTITIONS):
            low, high = consumer.get_watermark_offsets(
                TopicPartition(topic, partition), timeout=SECONDS
            )
            consumer.assign([TopicPartition(topic, partition, low)])
            for _ in range(high - low):
                message = consumer.poll(SECONDS)
                assert message is not None
                found.append(((message.key() or b"").decode(), message.value() or b""))
    finally:
        consumer.close()
    return found


def assert_all_there(found: list[tuple[str, bytes]], rows: int = ROWS) -> int:
    """Each job, each user in order by its first copy, copies byte for byte; how many copies."""
    first: dict[str, list[bytes]] = defaultdict(list)
    copies = 0
    for user, value in found:
        if value in first[user]:
            copies += 1
        else:
            first[user].append(value)
    assert sum(len(values) for values in first.values()) == rows
    for user, values in first.items():
        wanted = [f'"job_id":"{n:05}"' for n in range(rows) if f"u{n % USERS}" == user]
        assert len(values) == len(wanted)
        assert all(
            job.encode() in value for job, value in zip(wanted, values, strict=True)
        ), values
    return copies


@pytest.mark.parametrize(("dsn", "step"), KILLS, indirect=["dsn"])
def test_a_relay_killed_between_two_steps_loses_and_changes_nothing(
    engine: Engine, dsn: str, kafka: str, topic_prefix: str, topic: str, step: str
) -> None:
    fill(engine)
    kill_relay(step, dsn, kafka, topic_prefix)
    before = records(kafka, topic)
    gone = ROWS - outbox.Relay(engine).lag().waiting
    assert gone == (ROWS if step == "committed" else 0)
    assert gone <= len(before)
    with outbox.Relay(engine, kafka=kafka, topic_prefix=topic_prefix) as successor:
        wait_until(lambda: not successor.lag().waiting, SECONDS, "rows wait")
    assert successor.error is None
    copies = assert_all_there(records(kafka, topic))
    assert copies == (0 if step == "committed" else len(before))


def test_two_relays_at_once(
    engine: Engine, dsn: str, kafka: str, topic_prefix: str, topic: str
) -> None:
    with (
        outbox.Relay(dsn, kafka=kafka, topic_prefix=topic_prefix, idle_seconds=0.01) as one,
        outbox.Relay(dsn, kafka=kafka, topic_prefix=topic_prefix, idle_seconds=0.01) as two,
    ):
        fill(engine, 2_000)
        wait_until(lambda: not outbox.Relay(engine).lag().waiting, SECONDS, "rows wait")
    assert (one.error, two.error) == (None, None)
    copies = assert_all_there(records(kafka, topic), 2_000)
    if engine.dialect.name == "postgresql":
        assert copies == 0


def test_a_claim_on_postgres_leaves_other_users_to_the_next_relay(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_engine(postgres)
    outbox.metadata.drop_all(engine)
    outbox.metadata.create_all(engine)
    fill(engine)
    monkeypatch.setattr("tidemill.outbox.store.CLAIM_USERS", 2)
    stores = [outbox.Relay(engine).store for _ in range(3)]
    with stores[0].claimed() as first, stores[1].claimed() as second, stores[2].claimed() as third:
        assert {row.user_id for row in first.rows} == {"u0", "u1"}
        assert {row.user_id for row in second.rows} == {"u2", "u3"}
        assert list(third.rows) == []
        assert len(first.rows) == len(second.rows) == ROWS // 2
    engine.dispose()


async def test_an_async_session_and_an_async_connection(postgres: str) -> None:
    engine = create_async_engine(postgres)
    async with engine.begin() as connection:
        await connection.run_sync(outbox.metadata.drop_all)
        await connection.run_sync(outbox.metadata.create_all)
        request = Request(type="t", user_id="u", job_id="1")
        with pytest.raises(TypeError, match="run_sync"):
            outbox.add(connection, request)  # type: ignore[call-overload]
        await connection.run_sync(outbox.add, request)
    async with AsyncSession(engine) as session, session.begin():
        outbox.add(session, Request(type="t", user_id="u", job_id="2"))
    async with AsyncSession(engine) as session:
        outbox.add(session, Request(type="t", user_id="u", job_id="3"))
        await session.flush()
        await session.rollback()
    async with engine.connect() as connection:
        found = await connection.execute(text("select job_id from tidemill_outbox order by id"))
        assert list(found.scalars()) == ["1", "2"]
    await engine.dispose()


def test_rows_that_can_never_be_sent_hold_up_no_other_and_say_why(
    engine: Engine, kafka: str, topic_prefix: str, topic: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with engine.begin() as connection:
        connection.execute(insert(outbox.table).values(
            user_id="u0", job_id="bad", created_at=0, value=b'{"type": "t"}'
        ))
    fill(engine)
    with outbox.Relay(engine, kafka=kafka, topic_prefix=topic_prefix) as relay:
        wait_until(lambda: not relay.lag().waiting, SECONDS, "rows wait")
    assert_all_there(records(kafka, topic))
    assert relay.lag().refused == 1
    (refused,) = relay.store.refused(9)
    assert "user_id" in refused["problem"]
    assert "job bad) can never be sent" in caplog.text


@pytest.mark.parametrize("dsn", ["sqlite"], indirect=True)
def test_a_row_that_the_broker_refuses_holds_up_no_other(
    engine: Engine, kafka: str, topic_prefix: str
) -> None:
    name = Topics(topic_prefix).requested
    admin = AdminClient({"bootstrap.servers": kafka})
    (made,) = admin.create_topics(
        [NewTopic(name, PARTITIONS, 1, config={"max.message.bytes": "2000"})]
    ).values()
    made.result(SECONDS)
    with Session(engine) as session, session.begin():
        outbox.add(session, Request(
            type="t", user_id="u0", job_id="large", payload={"text": "x" * 5_000}
        ))
    fill(engine)
    with outbox.Relay(engine, kafka=kafka, topic_prefix=topic_prefix) as relay:
        wait_until(lambda: not relay.lag().waiting, SECONDS, "rows wait")
    assert_all_there(records(kafka, name))
    (refused,) = relay.store.refused(9)
    assert refused["job_id"] == "large"
    assert "too large" in refused["problem"].lower()


def test_rows_wait_for_a_broker_that_is_away_and_for_a_topic_that_is_not_there(
    tmp_path: Path, own_broker: Broker, topic_prefix: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(delivery, "ACK_SECONDS", 1.0)
    monkeypatch.setattr("tidemill.outbox.relay.PAUSE_SECONDS_MAX", 0.5)
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    outbox.metadata.create_all(engine)
    fill(engine)
    with outbox.Relay(engine, own_broker.bootstrap, topic_prefix) as relay:
        wait_until(lambda: "row(s) wait" in caplog.text, SECONDS, "it says nothing")
        assert relay.lag().waiting == ROWS
        own_broker.start()
        name = make_topic(own_broker.bootstrap, Topics(topic_prefix).requested)
        wait_until(lambda: not relay.lag().waiting, SECONDS, lambda: caplog.text)
    assert relay.error is None
    assert_all_there(records(own_broker.bootstrap, name))
    engine.dispose()


@pytest.mark.parametrize("dsn", ["postgresql"], indirect=True)
def test_the_command_relays_until_it_is_stopped(
    engine: Engine, dsn: str, kafka: str, topic_prefix: str, topic: str
) -> None:
    fill(engine)
    words = [sys.executable, "-m", "tidemill", "outbox"]
    with subprocess.Popen(
        [*words, "relay", "--kafka", kafka, "--topic-prefix", topic_prefix],
        env={**os.environ, "TIDEMILL_OUTBOX_DATABASE": dsn}, cwd=ROOT,
        stderr=subprocess.PIPE, text=True,
    ) as running:
        wait_until(lambda: not outbox.Relay(engine).lag().waiting, SECONDS, "rows wait")
        running.terminate()
        _, told = running.communicate(timeout=SECONDS)
    assert running.returncode == 0, told
    assert_all_there(records(kafka, topic))
    shown = subprocess.run(
        [*words, "status", "--database", dsn, "--json"], cwd=ROOT, capture_output=True, text=True,
        check=True, timeout=SECONDS,
    )
    assert '"waiting": 0' in shown.stdout


MODULE = '''
from pathlib import Path
from tidemill import job


@job("once")
async def once(payload: dict) -> int:
    with Path(payload["file"]).open("a") as file:
        file.write(f"{payload['n']}\\n")
    return payload["n"]
'''


@pytest.mark.parametrize("dsn", ["sqlite"], indirect=True)
def test_jobs_of_rows_that_were_sent_twice_run_once(
    engine: Engine, dsn: str, kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "once.py").write_text(MODULE)
    with ledger_and_worker(kafka, topic_prefix, tmp_path, "once.py", seconds=SECONDS):
        with Session(engine) as session, session.begin():
            handles = [
                outbox.add(session, Request(
                    type="once", user_id="u", payload={"n": n, "file": str(tmp_path / "runs")}
                ))
                for n in range(5)
            ]
        kill_relay("acknowledged", dsn, kafka, topic_prefix)
        with Client(kafka=kafka, topic_prefix=topic_prefix) as client:
            with outbox.Relay(engine, kafka=kafka, topic_prefix=topic_prefix) as relay:
                wait_until(lambda: not relay.lag().waiting, SECONDS, "rows wait")
            ends = [client.wait(handle, timeout=SECONDS) for handle in handles]
    assert [end.result for end in ends] == list(range(5))
    assert (tmp_path / "runs").read_text().split() == [str(n) for n in range(5)]
