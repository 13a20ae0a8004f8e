"""R3 on the real parts: Kafka, ledger, worker, the web app, and models with stated behaviours."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import select
from sqlalchemy.orm import Session

from systems.prompt_runs.data import (
    EntityMention,
    ModelCall,
    ModelRow,
    Prompt,
    Response,
    engine,
    utc_now,
)
from systems.prompt_runs.jobs import batch_key_of
from systems.prompt_runs.web import app
from tests.integration.test_dev import started_roles
from tests.systems.protocol_server import Answer, ProtocolServer, protocol_server
from tests.waiting import wait_until
from tidemill import JobHandle, default_client
from tidemill.agents.embedded.ports import free_port

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 90.0
GOOD = '{"answer":"Kraken is safe.","entities":[{"name":"Kraken","sentiment":"positive"}]}'


@dataclass
class System:
    """What a user of the system has: its pages, and models whose behaviour is stated."""

    web: httpx.Client
    models: ProtocolServer
    restart_worker: Callable[[], None]

    def status(self, **wanted: Any) -> Any:
        answer = self.web.get("/api/jobs/status", params=wanted)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ended(self, **wanted: Any) -> Any:
        """The status of these runs once all have ended."""

        def look() -> Any:
            told = self.status(**wanted)
            summary = told["summary"]
            is_over = summary["total"] and not summary["queued"] + summary["processing"]
            return told if is_over else None

        return wait_until(look, SECONDS, lambda: f"not ended: {self.status(**wanted)['summary']}")

    def add(self, text: str, *models: tuple[str, str | None], runs: int = 1, **prompt: Any) -> int:
        """A prompt, asked at these models alone (with their fallbacks): its id."""
        with Session(engine()) as session, session.begin():
            for row in session.scalars(select(ModelRow)):
                row.is_active = False
            for name, fallback in models:
                second = None
                if fallback is not None:
                    second = ModelRow(provider="openai", name=fallback, is_active=False)
                    session.add(second)
                    session.flush()
                session.add(
                    ModelRow(
                        provider="openai", name=name, input_usd=2.0, output_usd=10.0,
                        fallback_id=None if second is None else second.id,
                    )
                )
            made = Prompt(text=text, runs=runs, **prompt)
            session.add(made)
            session.flush()
            return made.id

    def ask(self) -> str:
        """The cron's call; the batch's key."""
        answer = self.web.get("/api/cron")
        assert answer.status_code == 200, answer.text
        return str(answer.json()["batchKey"])


@contextmanager
def served() -> Iterator[str]:
    """The web app on loopback; its address."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", lifespan="on"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started, SECONDS, "the app does not serve")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def system(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("prompt-runs")
    with protocol_server() as models, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": "prompt-runs.",
            "PROMPT_RUNS_DATABASE": f"sqlite:///{folder / 'runs.db'}", "CRON_SECRET": "s3cret",
            "OPENAI_BASE_URL": models.url, "OPENAI_API_KEY": "k", "PYTHONPATH": str(ROOT),
        }.items():
            patch.setenv(name, value)
        default_client().close()  # of another test's Kafka, perhaps
        env = dict(os.environ)
        subprocess.run([sys.executable, "-m", "tidemill", "topics", "apply"], env=env, check=True)
        with (folder / "roles.log").open("a+") as log:
            worker = ("worker", "systems.prompt_runs")
            roles = started_roles(env, folder, log, worker)

            def restart_worker() -> None:
                """Kills the worker, and starts another in its place."""
                roles[1].kill()
                roles[1].wait(30)
                words = [sys.executable, "-m", "tidemill", *worker]
                roles[1] = subprocess.Popen(words, env=env, cwd=folder, stderr=log, stdout=log)

            try:
                secret = {"Authorization": "Bearer s3cret"}
                with (
                    served() as url,
                    httpx.Client(base_url=url, headers=secret, timeout=30, trust_env=False) as web,
                ):
                    yield System(web, models, restart_worker)
            finally:
                default_client().close()
                engine().dispose()
                for role in roles:
                    role.terminate()
                for role in roles:
                    role.wait(30)


def test_r3_1_and_r3_4_the_cron_runs_each_prompt_and_keeps_answers_and_mentions(
    system: System,
) -> None:
    system.models.says("a", Answer(GOOD))
    system.models.says("b", Answer(GOOD))
    prompt = system.add("Which exchange?", ("a", None), ("b", None), runs=2)
    batch = system.ask()
    assert batch == batch_key_of(utc_now())
    told = system.ended(promptId=prompt)
    assert told["summary"] == {
        "total": 4, "queued": 0, "processing": 0, "succeeded": 4, "failed": 0, "skipped": 0,
    }
    with Session(engine()) as session:
        assert session.get_one(Prompt, prompt).last_run_at is not None
        mention = session.get_one(EntityMention, (prompt, "Kraken", "positive"))
        assert mention.mentions == 4
        calls = session.scalars(select(ModelCall)).all()
        assert {(call.input_tokens, call.output_tokens) for call in calls} == {(10, 5)}
        assert sum(call.cost_usd or 0 for call in calls) == pytest.approx(4 * 70e-6)
    # Asked again: nothing new.
    system.ask()
    system.web.post("/api/jobs/process", json={"jobId": told["jobs"][0]["id"]})
    assert system.ended(promptId=prompt)["summary"]["total"] == 4
    assert system.models.asked["a"] + system.models.asked["b"] == 4


def test_r3_3_triggers_again_and_again_run_a_job_once(system: System) -> None:
    system.models.says("slow", Answer(GOOD, delay_seconds=0.5))
    prompt = system.add("Slow?", ("slow", None))
    system.ask()
    told = wait_until(lambda: system.status(promptId=prompt)["jobs"], SECONDS, "no row")
    for _ in range(10):
        answer = system.web.post("/api/jobs/process", json={"jobId": told[0]["id"]})
        assert answer.status_code == 202
    assert system.ended(promptId=prompt)["summary"]["succeeded"] == 1
    assert system.models.asked["slow"] == 1


def test_r3_3_a_run_whose_worker_is_killed_is_run_again_and_kept_once(system: System) -> None:
    system.models.says("long", Answer(GOOD, delay_seconds=30.0), Answer(GOOD))
    prompt = system.add("Long?", ("long", None))
    system.ask()
    wait_until(lambda: system.models.asked["long"], SECONDS, "never asked")
    system.restart_worker()
    (job,) = system.ended(promptId=prompt)["jobs"]
    assert (job["status"], job["attemptCount"]) == ("succeeded", 2)
    with Session(engine()) as session:
        assert session.get_one(EntityMention, (prompt, "Kraken", "positive")).mentions == 1


def test_r3_3_a_run_that_the_engine_has_given_up_runs_when_it_is_asked_for(
    system: System,
) -> None:
    """While a run's job lives, one that is asked for beside it ends as a duplicate. Once it was
    cancelled at the engine, of which the row knows nothing, the next one runs."""
    system.models.says("gone", Answer(status=429, headers={"Retry-After": "3600"}), Answer(GOOD))
    prompt = system.add("Gone?", ("gone", None))
    system.ask()

    def waiting() -> Any:
        jobs = system.status(promptId=prompt, status="queued")["jobs"]
        return [job for job in jobs if job["attemptCount"] == 1]

    (job,) = wait_until(waiting, SECONDS, lambda: str(system.status(promptId=prompt)))
    assert job["errorMessage"].startswith("ModelRateLimited")
    first = job_of(job, "")
    assert system.web.post("/api/jobs/process", json={"jobId": job["id"]}).status_code == 202
    beside = default_client().wait(job_of(job, ".again1"), SECONDS)
    assert (beside.status, beside.reason) == ("skipped", "duplicate")
    default_client().answer(default_client().cancel(first.user_id, first.job_id), SECONDS)
    system.web.post("/api/jobs/process", json={"jobId": job["id"]})
    assert system.ended(promptId=prompt)["summary"]["succeeded"] == 1
    assert system.models.asked["gone"] == 2


def job_of(row: dict[str, Any], again: str) -> JobHandle:
    """The job of a row as it was asked for at first, or again."""
    key = f"{row['batchKey']}.{row['promptId']}.{row['modelId']}.{row['runIndex']}"
    now_ms = time.time_ns() // 1_000_000
    return JobHandle(
        f"{key}{again}", f"prompt:{row['promptId']}", "prompt_runs.run", "", now_ms - 60_000
    )


def test_r3_4_output_that_breaks_the_schema_is_the_fallback_s(system: System) -> None:
    system.models.says("loose", Answer("Sure! Kraken."))
    system.models.says("strict", Answer(GOOD))
    prompt = system.add("Loose?", ("loose", "strict"))
    system.ask()
    (job,) = system.ended(promptId=prompt)["jobs"]
    assert (job["status"], job["attemptCount"]) == ("succeeded", 1)
    with Session(engine()) as session:
        assert session.get_one(Response, job["id"]).model_name == "strict"


def test_r3_5_status_by_each_key_with_prompt_and_model(system: System) -> None:
    system.models.says("many", Answer(GOOD))
    prompt = system.add("Many?", ("many", None), runs=103)
    batch = system.ask()
    told = system.ended(promptId=prompt)
    assert (told["summary"]["succeeded"], len(told["jobs"])) == (103, 100)
    numbers = [job["id"] for job in told["jobs"]]
    assert numbers == sorted(numbers, reverse=True)
    first = told["jobs"][0]
    assert (first["prompt"]["text"], first["model"]["name"]) == ("Many?", "many")
    assert system.status(jobId=first["id"])["jobs"] == [first]
    wanted = {"batchKey": batch, "status": "succeeded", "promptId": prompt}
    assert system.status(**wanted)["summary"]["total"] == 103
    assert system.status(batchKey="1999-01-01")["jobs"] == []
    assert system.web.get("/api/jobs/status", params={"status": "odd"}).status_code == 422
    assert system.web.post("/api/jobs/process", json={"jobId": 10**9}).status_code == 404


def test_r3_5_the_old_path_works_and_is_marked_deprecated(system: System) -> None:
    system.models.says("old", Answer(GOOD))
    prompt = system.add("Old?", ("old", None), is_active=True)
    answer = system.web.post("/api/process-prompt", json={"promptId": prompt})
    assert (answer.status_code, answer.headers["Deprecation"]) == (200, "true")
    assert system.ended(promptId=prompt)["summary"]["succeeded"] == 1
    assert system.web.post("/api/process-prompt", json={"promptId": 10**6}).status_code == 404
    described = system.web.get("/openapi.json").json()["paths"]
    assert described["/api/process-prompt"]["post"]["deprecated"] is True


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("s3cret", 200), ("Bearer s3cret", 200), ("bearer s3cret", 200), ("Bearer wrong", 401),
        ("", 401), ("Bearer", 401), ("Basic s3cret", 401), (None, 401),
    ],
)
def test_r3_6_the_secret_comes_bare_or_as_bearer(
    system: System, given: str | None, status: int
) -> None:
    headers = {} if given is None else {"Authorization": given}
    with httpx.Client(base_url=system.web.base_url, headers=headers, trust_env=False) as stranger:
        assert stranger.get("/api/jobs/status").status_code == status
        if status == 401:
            assert stranger.get("/api/cron").status_code == 401
            assert stranger.post("/api/jobs/process", json={"jobId": 1}).status_code == 401


def test_r3_7_one_failing_model_stops_no_other_and_r3_8_a_failed_run_can_run_again(
    system: System,
) -> None:
    system.models.says("well", Answer(GOOD))
    system.models.says("ill", Answer("bad key", status=401))
    system.models.says(
        "busy", Answer(status=429, headers={"Retry-After": "1"}), Answer(GOOD)
    )
    prompt = system.add("Ill?", ("well", None), ("ill", None), ("busy", None))
    system.ask()
    told = {job["model"]["name"]: job for job in system.ended(promptId=prompt)["jobs"]}
    assert {name: job["status"] for name, job in told.items()} == {
        "well": "succeeded", "ill": "failed", "busy": "succeeded",
    }
    assert told["busy"]["attemptCount"] == 2
    assert told["ill"]["attemptCount"] == 1
    assert told["ill"]["errorMessage"] == "ModelRefused: ill: HTTP 401: bad key"
    system.models.says("ill", Answer(GOOD))
    batch = told["ill"]["batchKey"]
    answer = system.web.post(f"/api/batches/{batch}", json={"action": "retry"})
    assert answer.json()["changed"] == 1
    assert system.ended(promptId=prompt)["summary"]["succeeded"] == 3
    models = {
        (row["model"], row["outcome"]) for row in system.web.get("/api/metrics").json()["models"]
    }
    assert {("ill", "MODEL_REFUSED"), ("ill", "ok"), ("busy", "MODEL_RATE_LIMITED")} <= models
    page = system.web.get("/metrics")
    assert "<td>MODEL_REFUSED</td>" in page.text


def test_r3_8_a_run_can_be_cancelled(system: System) -> None:
    system.models.says("endless", Answer(GOOD, delay_seconds=50.0))
    prompt = system.add("Endless?", ("endless", None))
    system.ask()
    wait_until(lambda: system.models.asked["endless"], SECONDS, "never asked")
    (job,) = system.status(promptId=prompt)["jobs"]
    assert system.web.delete(f"/api/jobs/{job['id']}").json()["cancelled"] == 1
    assert system.ended(promptId=prompt)["summary"]["skipped"] == 1


def test_r3_9_openai_and_openrouter_are_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    from systems.models import provider

    monkeypatch.setenv("OPENROUTER_API_KEY", "k-r")
    monkeypatch.setenv("OPENAI_API_KEY", "k-o")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert provider("openai", os.environ).address() == "https://api.openai.com/v1"
    assert provider("openrouter", os.environ).address() == "https://openrouter.ai/api/v1"
