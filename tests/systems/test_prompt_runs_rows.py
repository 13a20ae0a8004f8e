"""R3's rules that the rows alone decide: each on SQLite and, where it is to be had, Postgres."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from systems.prompt_runs import store
from systems.prompt_runs.data import Base, EntityMention, ModelRow, Prompt, engine_of
from systems.prompt_runs.jobs import Day, daily, requests_of
from systems.prompt_runs.store import Filter
from tidemill import Tick
from tidemill.agents.embedded.ports import free_port

DAY = datetime(2026, 11, 28, 0, 0, tzinfo=UTC)
KEY = "2026-11-28"
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not POSTGRES:
        pytest.skip("no Postgres server: install postgresql")
    bin_folder, folder = POSTGRES[-1].parent, tmp_path_factory.mktemp("postgres")
    data, port = folder / "data", free_port()
    # The server refuses root.
    user = ["runuser", "-u", "postgres", "--"] if shutil.which("runuser") and _is_root() else []
    if user:
        for path in (folder, *list(folder.parents)[:3]):
            if path.stat().st_uid == 0 and path != Path("/tmp"):
                path.chmod(path.stat().st_mode | 0o011)
        shutil.chown(folder, "postgres")
    make = [*user, str(bin_folder / "initdb"), "-D", str(data), "-U", "t", "-A", "trust"]
    subprocess.run(make, check=True, capture_output=True, cwd="/")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*user, str(bin_folder / "pg_ctl"), "-D", str(data), "-w"]
    begin = [*control, "-l", str(folder / "log"), "-o", options, "start"]
    subprocess.run(begin, check=True, cwd="/", stdout=subprocess.DEVNULL)
    yield f"postgresql+psycopg://t@127.0.0.1:{port}/postgres"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/")


def _is_root() -> bool:
    return Path("/proc/self").exists() and Path("/proc/self").stat().st_uid == 0


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


def test_r3_1_a_fan_out_makes_each_due_prompt_model_and_run_once(engine: Engine) -> None:
    fill(engine, prompts=100, models=10, runs=5)
    first = store.make_batch(engine, KEY, DAY)
    assert (first.prompts, first.made, len(first.waiting)) == (100, 5_000, 5_000)
    with Session(engine) as session:
        assert {prompt.last_run_at for prompt in session.scalars(select(Prompt))} == {DAY}
    again = store.make_batch(engine, KEY, DAY + timedelta(hours=1))
    assert (again.prompts, again.made, len(again.waiting)) == (0, 0, 5_000)
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
    (row,) = store.make_batch(engine, KEY, DAY).waiting
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
    first, second = requests_of(store.make_batch(engine, KEY, DAY).waiting)
    assert (first.priority, second.priority) == ("medium", "high")
    assert (first.user_id, first.job_id) == ("prompt:1", f"{KEY}.1.1.0")


def test_r3_8_a_cancelled_run_stays_cancelled(engine: Engine) -> None:
    fill(engine, prompts=1, models=1, runs=2)
    waiting = store.make_batch(engine, KEY, DAY).waiting
    work = store.claim(engine, waiting[0].id)
    assert work is not None
    assert len(store.skip(engine, [row.id for row in waiting])) == 2
    store.fail(engine, work.row_id, "late", [], is_final=True)
    assert store.counts(engine, Filter())["skipped"] == 2
    assert store.claim(engine, waiting[1].id) is None
    assert store.requeue(engine, [row.id for row in waiting]) == []
