"""Load and failure of the systems of `systems/`, against servers with stated delays.

    python -m benchmarks.systems prompt_runs|news plain|model_down|worker_killed

Owns the scenarios, what is counted at their end and how it is printed. Refuses to judge: it prints
what it saw, and ends with an error only when something was lost or doubled. The servers are those
of the tests; the stack is `tidemill dev` and the system's own web application.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import sqlalchemy as sa
from sqlalchemy.orm import Session

from systems.demo_processes import ANY_PORTS, addresses, running
from systems.news import tables as news
from systems.prompt_runs import data as prompts
from tests.systems.feed_server import Answer as FeedAnswer
from tests.systems.feed_server import feed_server, rss
from tests.systems.protocol_server import Answer, protocol_server
from tests.systems.real_texts import articles

PROMPTS, MODELS, RUNS = 100, 10, 5
RUN_ANSWER_SECONDS: Final = 0.02  # of one prompt run's model call
FEEDS, ARTICLES_PER_FEED = 50, 40
FEED_SECONDS: Final = 0.2
SUMMARY_SECONDS: Final = 0.2  # of one call for five summaries
DOWN_SECONDS: Final = 60.0
END_SECONDS_MAX: Final = 900.0
LOOK_SECONDS: Final = 0.25
GOOD: Final = '{"answer":"Kraken.","entities":[{"name":"Kraken","sentiment":"positive"}]}'
NUMBERED: Final = re.compile(r"^Article \d+: ", re.MULTILINE)


class Fault:
    """The model's down-time: from `begin` on, for a while, it answers 503."""

    def __init__(self) -> None:
        self._until = 0.0

    def begin(self) -> None:
        self._until = time.monotonic() + DOWN_SECONDS

    def is_on(self) -> bool:
        return time.monotonic() < self._until


@contextmanager
def stack(module: str, folder: Path, *more: str) -> Iterator[tuple[dict[str, str], int]]:
    """`tidemill dev MODULE`: its addresses, and the number of its process."""
    words = ["tidemill", "dev", module, "--data", str(folder / "data"), *ANY_PORTS, *more]
    with running(words, "ready kafka=", folder / "dev.log") as line:
        (dev,) = [each for each in psutil.Process().children() if "dev" in each.cmdline()]
        yield addresses(line), dev.pid


def kill_worker(dev: int) -> None:
    """SIGKILL to the worker; `dev` starts another."""
    for child in psutil.Process(dev).children(recursive=True):
        if "--worker-id" in child.cmdline():
            child.kill()
            return
    raise SystemExit("no worker was found")


def until(is_so: Callable[[], Any], what: str) -> Any:
    """Waits; what it waited for. Raises SystemExit when it does not come."""
    deadline = time.monotonic() + END_SECONDS_MAX
    while time.monotonic() < deadline:
        if found := is_so():
            return found
        time.sleep(LOOK_SECONDS)
    raise SystemExit(f"after {END_SECONDS_MAX:g} s still not: {what}")


def disturb(scenario: str, fault: Fault, dev: int) -> None:
    if scenario == "model_down":
        fault.begin()
    elif scenario == "worker_killed":
        kill_worker(dev)


# -- prompt runs -----------------------------------------------------------------------------------


def prompt_runs(scenario: str, folder: Path) -> dict[str, Any]:
    """5,000 runs, asked for twice; a third of the way through something happens."""
    fault, total = Fault(), PROMPTS * MODELS * RUNS
    with ExitStack() as open_:
        server = open_.enter_context(protocol_server())

        def said(_: Any) -> Answer:
            if fault.is_on():
                return Answer("down", status=503)
            return Answer(GOOD, delay_seconds=RUN_ANSWER_SECONDS)

        names = [f"m{number}" for number in range(MODELS)]
        server.scripts |= dict.fromkeys(names, said)
        os.environ |= {
            "PROMPT_RUNS_DATABASE": f"sqlite:///{folder / 'runs.db'}", "CRON_SECRET": "s",
            "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "k",
        }
        engine = prompts.engine()
        with Session(engine) as session, session.begin():
            session.add_all([prompts.ModelRow(provider="openai", name=name) for name in names])
            session.add_all([prompts.Prompt(text=f"p{n}?", runs=RUNS) for n in range(PROMPTS)])
        told, dev = open_.enter_context(stack("systems.prompt_runs", folder))
        os.environ["TIDEMILL_KAFKA"] = told["kafka"]
        web = ["uvicorn", "systems.prompt_runs.web:app", "--port", "0"]
        line = open_.enter_context(running(web, "Uvicorn running on ", folder / "web.log"))
        client = open_.enter_context(httpx.Client(
            base_url=line.split("Uvicorn running on ")[1].split()[0], trust_env=False,
            headers={"Authorization": "s"}, timeout=60,
        ))

        def summary() -> dict[str, int]:
            found: dict[str, int] = client.get("/api/jobs/status").json()["summary"]
            return found

        began = time.monotonic()
        for _ in range(2):
            client.get("/api/cron").raise_for_status()
        if scenario != "plain":
            until(lambda: summary()["succeeded"] >= total // 3, "a third has ended")
            disturb(scenario, fault, dev)
        until(
            lambda: (told := summary())["total"] and not told["queued"] + told["processing"],
            "all runs have ended",
        )
        took = time.monotonic() - began
        end = summary()
        with Session(engine) as session:
            answers = session.scalar(sa.select(sa.func.count()).select_from(prompts.Response))
            mentions = session.scalar(sa.select(sa.func.sum(prompts.EntityMention.mentions)))
    if (end["total"], end["succeeded"], answers, mentions) != (total, total, total, total):
        raise SystemExit(f"lost or doubled: {end}, {answers} answers, {mentions} mentions")
    return {
        **end, "answers": answers, "mentions": mentions,
        "model_calls": sum(server.asked.values()), "seconds": round(took, 1),
    }


# -- news ------------------------------------------------------------------------------------------


def feed_answers() -> dict[str, Any]:
    """50 feeds of 40 articles, real texts in turn, each with an ETag and the stated delay."""
    texts = articles()

    def answers(number: int) -> Callable[[Any], FeedAnswer]:
        items = [
            (f"http://news.example/{number}/{at}", *texts[(number * 40 + at) % len(texts)])
            for at in range(ARTICLES_PER_FEED)
        ]
        whole = FeedAnswer(rss(items), headers={"ETag": f'"{number}"'})
        same = FeedAnswer(status=304)

        def answer(headers: Any) -> FeedAnswer:
            time.sleep(FEED_SECONDS)
            return same if headers.get("if-none-match") else whole

        return answer

    return {f"/{number}": answers(number) for number in range(FEEDS)}


def news_runs(scenario: str, folder: Path) -> dict[str, Any]:
    """2,000 articles in 50 feeds, while ticks of two seconds overlap."""
    fault, total = Fault(), FEEDS * ARTICLES_PER_FEED
    with ExitStack() as open_:
        server = open_.enter_context(protocol_server())
        feeds = open_.enter_context(feed_server())
        feeds.answers |= feed_answers()

        def said(body: Any) -> Answer:
            if fault.is_on():
                return Answer("down", status=503)
            count = len(NUMBERED.findall(body["messages"][-1]["content"]))
            text = json.dumps({"summaries": ["A summary."] * count})
            return Answer(text, delay_seconds=SUMMARY_SECONDS)

        server.scripts["m"] = said
        os.environ |= {
            "NEWS_DATABASE": f"sqlite:///{folder / 'news.db'}", "NEWS_EVERY": "2s",
            "NEWS_FEEDS": ",".join(map(feeds.at, feeds.answers)), "NEWS_ALLOW_PRIVATE": "1",
            "NEWS_PROVIDER": "openai", "NEWS_MODEL": "m", "OPENAI_BASE_URL": server.url,
            "OPENAI_API_KEY": "k",
        }
        database = news.News(os.environ["NEWS_DATABASE"])
        told, dev = open_.enter_context(stack("systems.news", folder))

        def saved() -> int:
            with database.reads() as session:
                return session.scalar(sa.select(sa.func.count()).select_from(news.Article)) or 0

        if scenario != "plain":
            until(lambda: saved() >= total // 3, "a third is saved")
            disturb(scenario, fault, dev)
        runs = until(
            lambda: saved() >= total
            and (found := [r for r in database.last_runs(500) if r.status == news.SUCCESS])
            and any(not run.articles for run in found) and found,
            "all articles are saved, and a run found nothing new",
        )
        found = news_figures(database)
        sql = "SELECT count() FROM jobs WHERE type = 'news.ingest' AND reason = 'overlap'"
        skipped = int(httpx.get(told["clickhouse"], params={"query": sql}).text)
        calls = {each["outcome"]: each["calls"] for each in database.spending()}
        database.close()
    if found["articles"] != total or found["urls"] != total or found["without_chunks"]:
        raise SystemExit(f"lost or doubled: {found}")
    return {
        **found, "ticks_skipped": skipped, "model_calls": calls,
        "nothing_new_ms": min(run.duration_ms for run in runs if not run.articles),
    }


def news_figures(database: news.News) -> dict[str, Any]:
    """What is there, and the first runs: what they brought and how long they took."""
    count = sa.func.count
    with database.reads() as session:
        kept = session.execute(sa.select(
            count(news.Article.id), count(sa.distinct(news.Article.url)),
            count().filter(news.Article.summary_by == "lead"),
            count().filter(~sa.exists().where(news.Chunk.article_id == news.Article.id)),
        )).one()
        chunks = session.scalar(sa.select(count()).select_from(news.Chunk))
        first = session.scalars(
            sa.select(news.Run).order_by(news.Run.started_at).limit(3)
        ).all()
    begun = [run.started_at for run in first]
    return {
        "articles": kept[0], "urls": kept[1], "first_sentence_for_summary": kept[2],
        "without_chunks": kept[3], "chunks": chunks,
        "runs": [
            {
                "after_s": round((run.started_at - begun[0]).total_seconds(), 1),
                "status": run.status, "articles": run.articles, "duration_ms": run.duration_ms,
                "error": run.error and run.error.strip().splitlines()[-1],
            }
            for run in first
        ],
    }


SYSTEMS: Final = {"prompt_runs": prompt_runs, "news": news_runs}
SCENARIOS: Final = ("plain", "model_down", "worker_killed")


def main(words: list[str]) -> None:
    """One scenario of one system; one line of JSON."""
    if len(words) != 2 or words[0] not in SYSTEMS or words[1] not in SCENARIOS:
        raise SystemExit(f"usage: {' | '.join(SYSTEMS)}, then {' | '.join(SCENARIOS)}")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="systems-", ignore_cleanup_errors=True) as name:
        found = SYSTEMS[words[0]](words[1], Path(name))
    print(json.dumps({
        "system": words[0], "scenario": words[1], **found, "processors": os.cpu_count(),
        "load_before": round(load_before, 1), "load_after": round(os.getloadavg()[0], 1),
    }))


if __name__ == "__main__":
    main(sys.argv[1:])
