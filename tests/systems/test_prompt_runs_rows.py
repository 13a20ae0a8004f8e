"""R3's rules that the rows alone decide: each on SQLite and, where it is to be had, Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, delete, func, insert, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from systems.database import open_engine, reading
from systems.prompt_runs import jobs, store
from systems.prompt_runs.data import (
    Base,
    EntityMention,
    ModelRow,
    Prompt,
    PromptJob,
    engine_of,
    utc_now,
)
from systems.prompt_runs.jobs import Day, daily, requests_of
from systems.prompt_runs.store import Batch, Filter
from tidemill import Request, Tick, outbox

DAY = datetime(2026, 11, 28, 0, 0, tzinfo=UTC)
KEY = "2026-11-28"


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        made = engine_of(f"sqlite:///{tmp_path / 'x.db'}")
    else:
        made = engine_of(f"{request.getfixturevalue('postgres')}?application_name={tmp_path.name}")
        Base.metadata.drop_all(made)
        Base.metadata.create_all(made)
    yield made
    made.dispose()


def fill(engine: Engine, *, prompts: int, models: int, runs: int) -> None:
    with Session(engine) as session, session.begin():
        session.add_all([Prompt(id=n + 1, text=f"p{n}", runs=runs) for n in range(prompts)])
        session.add_all(
            [ModelRow(id=n + 1, provider="openai", name=f"m{n}") for n in range(models)]
        )


def waiting_of(engine: Engine) -> list[PromptJob]:
    """The runs of a batch that was made just now."""
    store.make_batch(engine, KEY, DAY)
    return store.waiting(engine, KEY)


def test_r3_1_a_fan_out_makes_each_due_prompt_model_and_run_once(engine: Engine) -> None:
    fill(engine, prompts=100, models=10, runs=5)
    assert store.make_batch(engine, KEY, DAY) == Batch(made=5_000, prompts=100)
    with Session(engine) as session:
        assert {prompt.last_run_at for prompt in session.scalars(select(Prompt))} == {DAY}
    assert store.make_batch(engine, KEY, DAY + timedelta(hours=1)) == Batch(made=0, prompts=0)
    assert len(store.waiting(engine, KEY)) == 5_000
    assert store.counts(engine, Filter(batch_key=KEY))["queued"] == 5_000


def test_r3_1_a_prompt_is_due_again_after_its_days(engine: Engine) -> None:
    fill(engine, prompts=2, models=1, runs=1)
    with Session(engine) as session, session.begin():
        session.get_one(Prompt, 2).every_days = 7
    made = [
        store.make_batch(engine, f"d{day}", DAY + timedelta(days=day)).made for day in range(8)
    ]
    assert made == [2, 1, 1, 1, 1, 1, 1, 2]


async def test_r3_1_the_tick_of_midnight_asks_for_its_day() -> None:
    tick = Tick(name="prompt_runs.daily", at=DAY + timedelta(hours=3), scheduled_for=DAY)
    (asked,) = await daily(tick, None)  # type: ignore[arg-type]
    assert (asked.type, asked.job_id) == ("prompt_runs.fan_out", f"prompt_runs.fan_out@{KEY}")
    assert Day.model_validate(asked.payload) == Day(batch_key=KEY, at=DAY)


def test_r3_2_asking_again_makes_nothing_new_however_late(engine: Engine) -> None:
    fill(engine, prompts=1, models=2, runs=2)
    assert store.make_batch(engine, KEY, DAY).made == 4
    late = store.make_batch(engine, KEY, DAY + timedelta(days=3))
    assert (late.prompts, late.made) == (1, 0)


def test_r3_2_fan_outs_side_by_side_make_each_run_once(engine: Engine) -> None:
    fill(engine, prompts=20, models=5, runs=2)
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda _: store.make_batch(engine, KEY, DAY), range(4)))
    assert sum(batch.made for batch in batches) == 200
    assert store.counts(engine, Filter())["queued"] == 200


def test_r3_3_an_ended_run_is_not_claimed_again(engine: Engine) -> None:
    fill(engine, prompts=1, models=1, runs=1)
    (row,) = waiting_of(engine)
    work = store.claim(engine, row.id)
    assert work is not None
    assert store.find(engine, Filter(), 1)[0].attempt_count == 1
    kept = {"model_name": "m0", "answer": "a", "raw": "{}", "mentions": [("Kraken", "positive")]}
    assert store.succeed(engine, work, **kept, calls=[])  # type: ignore[arg-type]
    assert store.claim(engine, row.id) is None
    # A zombie's answer changes nothing.
    assert not store.succeed(engine, work, **kept, calls=[])  # type: ignore[arg-type]
    with Session(engine) as session:
        (mention,) = session.scalars(select(EntityMention)).all()
        assert (mention.entity, mention.mentions) == ("Kraken", 1)


def test_r3_8_a_prompt_s_priority_is_its_runs_priority(engine: Engine) -> None:
    fill(engine, prompts=2, models=1, runs=1)
    with Session(engine) as session, session.begin():
        session.get_one(Prompt, 2).priority = "high"
    first, second = requests_of(waiting_of(engine))
    assert (first.priority, second.priority) == ("medium", "high")
    assert (first.user_id, first.job_id) == ("prompt:1", f"{KEY}.1.1.0")


def test_r3_3_a_worker_that_was_given_up_changes_nothing_of_the_next_attempt(
    engine: Engine,
) -> None:
    fill(engine, prompts=1, models=1, runs=1)
    (row,) = waiting_of(engine)
    zombie, living = store.claim(engine, row.id), store.claim(engine, row.id)
    assert zombie is not None
    assert living is not None
    store.fail(engine, zombie, "the zombie's error", [], is_final=True)
    (row,) = store.find(engine, Filter(), 1)
    assert (row.status, row.error_message, row.attempt_count) == ("processing", None, 2)
    assert store.succeed(
        engine, living, model_name="m0", answer="a", raw="{}", mentions=[], calls=[]
    )
    assert store.counts(engine, Filter())["succeeded"] == 1


def test_r3_3_a_run_whose_attempt_never_told_its_end_has_failed(engine: Engine) -> None:
    fill(engine, prompts=1, models=1, runs=2)
    lost, waiting = waiting_of(engine)
    assert store.claim(engine, lost.id) is not None
    now = utc_now()
    assert store.give_up(engine, now - timedelta(minutes=1), "lost") == 0
    assert store.give_up(engine, now + timedelta(minutes=1), "lost") == 1
    assert store.find(engine, Filter(job_id=lost.id), 1)[0].error_message == "lost"
    assert store.find(engine, Filter(job_id=waiting.id), 1)[0].status == "queued"


def test_r3_8_asking_again_is_one_transaction_with_its_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the row nor its request is there when one of the two cannot be written."""
    fill(engine, prompts=1, models=1, runs=1)
    (row,) = waiting_of(engine)
    work = store.claim(engine, row.id)
    assert work is not None
    store.fail(engine, work, "no", [], is_final=True)

    def break_down(session: Session, row: PromptJob) -> None:
        outbox.add(session, Request(type="t", user_id="u", job_id=row.job_id))
        session.flush()
        raise OSError("as a process that dies")

    with pytest.raises(OSError, match="dies"):
        store.ask_again(engine, [row.id], break_down)
    assert (asked(engine), store.counts(engine, Filter())["failed"]) == ([], 1)
    monkeypatch.setattr(jobs, "engine", lambda: engine)
    assert jobs.run_again([row.id], "failed") == 1
    assert jobs.run_again([row.id], "failed") == 0
    assert asked(engine) == [f"{KEY}.1.1.0.again1"]
    assert store.counts(engine, Filter())["queued"] == 1


def asked(engine: Engine) -> list[str]:
    """The jobs in the outbox."""
    with Session(engine) as session:
        return list(session.scalars(select(outbox.table.c.job_id)))


def test_a_reader_waits_for_no_writer_and_a_writer_for_one(tmp_path: Path) -> None:
    """The set-up of SQLite that both systems have."""
    engine = open_engine(f"sqlite:///{tmp_path / 'folder' / 'x.db'}")
    engine.dispose()
    Base.metadata.create_all(engine)
    with engine.begin() as writer:
        writer.execute(insert(Prompt).values(text="p", runs=1, every_days=1, priority="medium",
                                             is_active=True))
        with reading(engine).connect() as reader:
            assert reader.scalar(select(func.count()).select_from(Prompt)) == 0
        impatient = create_engine(engine.url, connect_args={"timeout": 0.0})
        with pytest.raises(OperationalError, match="locked"), impatient.begin() as second:
            second.execute(delete(Prompt))
    with reading(engine).connect() as reader:
        assert reader.scalar(select(func.count()).select_from(Prompt)) == 1


def test_r3_8_a_cancelled_run_stays_cancelled(engine: Engine) -> None:
    fill(engine, prompts=1, models=1, runs=2)
    waiting = waiting_of(engine)
    work = store.claim(engine, waiting[0].id)
    assert work is not None
    assert len(store.skip(engine, [row.id for row in waiting])) == 2
    store.fail(engine, work, "late", [], is_final=True)
    assert store.counts(engine, Filter())["skipped"] == 2
    assert store.claim(engine, waiting[1].id) is None
    assert store.ask_again(engine, [row.id for row in waiting], lambda *_: None) == []
