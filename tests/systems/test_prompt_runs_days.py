"""R3's days on a virtual clock: midnight, a day that was missed, and asking again days later.

Everything is the system's own, over `tidemill.testing.Engine` and models whose behaviour is stated.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from systems.prompt_runs import store
from systems.prompt_runs.data import ModelRow, Prompt, Response, engine
from systems.prompt_runs.jobs import FAN_OUT_USER, Day, fan_out, requests_of
from systems.prompt_runs.store import Filter
from tests.systems.protocol_server import Answer, ProtocolServer, protocol_server
from tidemill.testing import Engine, EngineJob

GOOD = '{"answer":"Kraken is safe.","entities":[{"name":"Kraken","sentiment":"positive"}]}'
EVENING = datetime(2026, 11, 27, 22, 0, tzinfo=UTC)
DAY = "2026-11-28"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProtocolServer]:
    with protocol_server() as models:
        monkeypatch.setenv("PROMPT_RUNS_DATABASE", f"sqlite:///{tmp_path / 'runs.db'}")
        monkeypatch.setenv("OPENAI_BASE_URL", models.url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        for name in ("a", "b"):
            models.says(name, Answer(GOOD))
        with Session(engine()) as session, session.begin():
            session.add_all([ModelRow(provider="openai", name=name) for name in ("a", "b")])
            session.add_all([Prompt(text=f"p{n}?", runs=2) for n in range(3)])
        yield models
        engine().dispose()


@pytest.fixture
def tidemill() -> Iterator[Engine]:
    with Engine(start=EVENING) as running:
        yield running


def runs_of(engine: Engine) -> list[EngineJob]:
    return [job for job in engine.jobs if job.user_id.startswith("prompt:")]


def test_r3_1_midnight_runs_each_due_prompt_at_each_model_and_sets_its_last_run(
    models: ProtocolServer, tidemill: Engine
) -> None:
    tidemill.announce_schedules("prompt_runs.daily")
    tidemill.advance("119min")
    assert sum(models.asked.values()) == 0
    tidemill.advance("2min")
    assert store.counts(engine(), Filter(batch_key=DAY)) == {
        "queued": 0, "processing": 0, "succeeded": 12, "failed": 0, "skipped": 0,
    }
    assert models.asked == {"a": 6, "b": 6}
    with Session(engine()) as session:
        last = {prompt.last_run_at for prompt in session.query(Prompt)}
        assert last == {datetime(2026, 11, 28, tzinfo=UTC)}
        assert session.query(Response).count() == 12
    tidemill.advance("1d")  # and the next one
    assert store.counts(engine(), Filter(batch_key="2026-11-29"))["succeeded"] == 12


def test_r3_7_a_run_whose_end_no_handler_tells_has_failed_when_the_day_has_ended(
    models: ProtocolServer, tidemill: Engine
) -> None:
    """One is cancelled at the engine; the others run, and the day's job ends well."""
    models.says("a", Answer(status=429, headers={"Retry-After": "3600"}), Answer(GOOD))
    day = tidemill.enqueue(
        fan_out, Day(batch_key=DAY, at=datetime(2026, 11, 28, tzinfo=UTC)), user_id=FAN_OUT_USER
    )
    tidemill.run()
    (row,) = store.find(engine(), Filter(status="queued"), 100)
    assert day.status == "awaiting"
    tidemill.cancel((row.user_id, row.job_id))
    tidemill.advance("1min")
    assert (day.status, day.result["asked"], day.result["succeeded"], day.result["told"]) == (
        "succeeded", 12, 11, 1,
    )
    (row,) = store.find(engine(), Filter(status="failed"), 100)
    assert row.error_message is not None
    assert row.error_message.startswith("cancelled")


def test_r3_2_asking_again_the_same_day_and_after_the_engine_has_forgotten_makes_nothing_new(
    models: ProtocolServer, tidemill: Engine
) -> None:
    """The engine forgets an ended job's id after 24 hours: then the row's own state decides."""
    midnight = Day(batch_key=DAY, at=datetime(2026, 11, 28, tzinfo=UTC))
    for _ in range(2):
        tidemill.enqueue(fan_out, midnight, user_id=FAN_OUT_USER)
        tidemill.run()
    rows = store.find(engine(), Filter(batch_key=DAY), 100)
    assert (len(rows), len(runs_of(tidemill)), sum(models.asked.values())) == (12, 12, 12)
    tidemill.advance("25h")
    late = Day(batch_key=DAY, at=datetime(2026, 11, 30, tzinfo=UTC))
    again = tidemill.enqueue(fan_out, late, user_id=FAN_OUT_USER)
    tidemill.run()
    assert again.result == {
        "batch_key": DAY, "prompts": 3, "made": 0, "asked": 0, "succeeded": 0, "told": 0,
    }
    # And whoever asks for the very jobs once more: each ends as skipped, no model is asked.
    tidemill.client.enqueue_many(requests_of(rows))
    tidemill.run()
    ended = runs_of(tidemill)
    assert {(job.status, job.reason) for job in ended} == {("skipped", "already_ended")}
    assert (len(ended), sum(models.asked.values())) == (12, 12)
    assert store.counts(engine(), Filter())["succeeded"] == 12


def test_r3_4_an_answer_is_paid_for_once_although_it_could_not_be_kept(
    models: ProtocolServer, tidemill: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database fails at the commit; the next attempt has the answer from its step."""
    keep = store.succeed
    failed: list[bool] = []

    def keep_later(*args: object, **named: object) -> bool:
        if not failed:
            failed.append(True)
            raise OSError("the disk is full")
        return keep(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "succeed", keep_later)
    tidemill.announce_schedules("prompt_runs.daily")
    tidemill.advance("125min")
    assert failed
    assert store.counts(engine(), Filter())["succeeded"] == 12
    assert sum(models.asked.values()) == 12
    assert sorted({row.attempt_count for row in store.find(engine(), Filter(), 100)}) == [1, 2]
    assert sum(row["calls"] for row in store.spending(engine())) == 12
