"""`make demo-news`: real texts as a feed, the whole stack, questions, answers of a real model.

Owns the story and its printing. Refuses to know how any of it works.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

import httpx
import yaml

from systems.demo_processes import ANY_PORTS, addresses, running
from systems.news.settings import Settings
from systems.news.web import create_app
from tidemill import AsyncClient

TOPICS: Final = ("money", "science", "history", "computers")
ARTICLES_PER_FEED: Final = 10  # the model of this machine needs seconds for five summaries
QUESTIONS: Final = ("What is the stock market?", "Who discovered something in physics?")
RUN_SECONDS_MAX: Final = 180.0
POLL_SECONDS: Final = 0.2


def feed(topic: str) -> bytes:
    """RSS of the dialogues of one topic: the first line is the title, the rest is the text."""
    path = files("chatterbot_corpus") / "data" / "english" / f"{topic}.yml"
    dialogues = yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]
    items = "".join(
        f"<item><link>http://news.example/{topic}/{number}</link><title>{escape(str(first))}"
        f"</title><description>{escape(' '.join(map(str, rest)))}</description></item>"
        for number, (first, *rest) in enumerate(dialogues[:ARTICLES_PER_FEED])
    )
    return f'<rss version="2.0"><channel><title>{topic}</title>{items}</channel></rss>'.encode()


@contextmanager
def feeds() -> Iterator[list[str]]:
    """A server of these feeds on loopback; their addresses."""
    bodies = {f"/{topic}": feed(topic) for topic in TOPICS}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies.get(self.path, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield [f"http://127.0.0.1:{server.server_port}{path}" for path in bodies]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def stack(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """`tidemill dev systems.news`; where its Kafka is."""
    dev = ["tidemill", "dev", "systems.news", "--data", str(folder / "data"), *ANY_PORTS]
    with running(dev, "ready kafka=", folder / "dev.log", environment) as line:
        yield addresses(line)["kafka"]


async def story(settings: Settings, kafka: str) -> None:
    """Waits for the first run, and asks."""
    client = AsyncClient(kafka=kafka)
    app = create_app(settings, client)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://news") as web,
    ):
        deadline = time.monotonic() + RUN_SECONDS_MAX
        while not (status := (await web.get("/api/job-status")).json())["stats"]["successfulRuns"]:
            if time.monotonic() > deadline:
                raise SystemExit(f"no run has succeeded: {json.dumps(status, indent=2)}")
            await asyncio.sleep(POLL_SECONDS)
        print(json.dumps(status["lastRun"], indent=2))
        for question in QUESTIONS:
            await ask(app.state.service, question)
    await client.close()


async def ask(service: Any, question: str) -> None:
    """One question, with the time of its first sources and first token."""
    print(f"\n{question}")
    began = time.monotonic()
    first: set[str] = set()
    async for event in service.answer(question):
        name, data = event.strip().removeprefix("event: ").split("\ndata: ")
        if name not in first:
            first.add(name)
            print(f"\n  [{name} after {(time.monotonic() - began) * 1000:.0f} ms]", end=" ")
        told = json.loads(data)
        if name == "token":
            print(told["text"], end="", flush=True)
        elif name == "sources":
            for source in told:
                print(f"\n    {source['distance']:.3f}  {source['title']}", end="")
        else:
            print(told, end="")
    print()


def main() -> None:
    """The whole demo, in a folder that goes away."""
    with tempfile.TemporaryDirectory() as name, feeds() as urls:
        folder = Path(name)
        settings = Settings(
            feeds=",".join(urls), allow_private=True, database=f"sqlite:///{folder}/news.db",
            clickhouse=f"chdb://{folder}/vectors",
        )
        given = {
            "NEWS_FEEDS": settings.feeds, "NEWS_ALLOW_PRIVATE": "1",
            "NEWS_DATABASE": settings.database,
        }
        with stack(folder, given) as kafka:
            asyncio.run(story(settings, kafka))


if __name__ == "__main__":
    main()
