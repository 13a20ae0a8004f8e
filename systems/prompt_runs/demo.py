"""`make demo-prompt-runs`: a day of prompts, on the real engine and the real language model.

Owns the story: it starts `tidemill dev` and the web app, asks twice, and prints what came. Refuses
to know how any of it works.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any, Final

import httpx
from sqlalchemy import select
from sqlalchemy.orm import Session

from systems.demo_processes import ANY_PORTS, addresses, running
from systems.models import LOCAL_MODEL
from systems.prompt_runs.data import EntityMention, ModelRow, Prompt, Response, engine
from systems.prompt_runs.settings import DATABASE_VARIABLE, LOCAL_AT_ONCE, SECRET_VARIABLE

DATA: Final = Path(".tidemill") / "demo-prompt-runs"
PROMPTS: Final = (
    "Which browser is best for privacy?",
    "Which database should a small team choose?",
    "Which city in Europe has the best trains?",
)
RUNS: Final = 2
RUN_SECONDS_MAX: Final = 300.0
LOOK_SECONDS: Final = 0.5


def main() -> None:
    """The whole story."""
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    secret = secrets.token_hex(8)
    os.environ |= {
        DATABASE_VARIABLE: f"sqlite:///{(DATA / 'runs.db').resolve()}", SECRET_VARIABLE: secret,
    }
    with Session(engine()) as session, session.begin():
        session.add(ModelRow(provider="local", name=LOCAL_MODEL))
        session.add_all([Prompt(text=text, runs=RUNS) for text in PROMPTS])
    dev = ["tidemill", "dev", "systems.prompt_runs", "--data", str(DATA / "engine")]
    dev += ["--concurrency", str(LOCAL_AT_ONCE)]
    dev += ANY_PORTS
    print("starting Kafka, ledger, worker, ClickHouse …")
    with running(dev, "ready kafka=", DATA / "dev.log") as line:
        told = addresses(line)
        os.environ["TIDEMILL_KAFKA"] = told["kafka"]
        web = ["uvicorn", "systems.prompt_runs.web:app", "--port", "0"]
        with running(web, "Uvicorn running on ", DATA / "web.log") as line:
            url = line.split("Uvicorn running on ")[1].split()[0]
            headers = {"Authorization": f"Bearer {secret}"}
            with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
                run_the_day(client)
        print(f"\nthe engine's page was {told['http']}")
    report()


def run_the_day(client: httpx.Client) -> None:
    """Asks for today's runs twice, and waits for their end."""
    for _ in range(2):
        print("GET /api/cron", client.get("/api/cron").raise_for_status().json())
    deadline = time.monotonic() + RUN_SECONDS_MAX
    while time.monotonic() < deadline:
        told: dict[str, Any] = client.get("/api/jobs/status").raise_for_status().json()["summary"]
        if told["total"] and not told["queued"] + told["processing"]:
            print("GET /api/jobs/status", told)
            metrics = client.get("/api/metrics").raise_for_status().json()
            print("GET /api/metrics", *metrics["models"], sep="\n  ")
            return
        time.sleep(LOOK_SECONDS)
    raise SystemExit(f"the runs did not end within {RUN_SECONDS_MAX:g} s: {told}")


def report() -> None:
    """What the models said."""
    with Session(engine()) as session:
        for response in session.scalars(select(Response)):
            print(f"  {response.answer}")
        for mention in session.scalars(select(EntityMention)):
            print(f"  {mention.entity}: {mention.sentiment} x {mention.mentions}")


if __name__ == "__main__":
    main()
