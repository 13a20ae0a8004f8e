"""A real HTTP server on loopback that feeds are read from, good ones and bad ones.

Owns what goes over the wire. Refuses to know who reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from xml.sax.saxutils import escape

SECONDS = 30.0


@dataclass(frozen=True)
class Answer:
    """What a path answers. `waits_for`: nothing is sent before that event."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    waits_for: threading.Event | None = None


class FeedServer:
    """`answers` by path; a callable is asked with the request's headers, in lower case."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.answers: dict[str, Answer | Callable[[Mapping[str, str]], Answer]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    def at(self, path: str) -> str:
        return f"{self.url}{path}"


@contextmanager
def feed_server() -> Iterator[FeedServer]:
    class Handler(BaseHTTPRequestHandler):
        feeds: ClassVar[FeedServer]

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.feeds.asked.append((self.path, headers))
            found = self.feeds.answers.get(self.path, Answer(status=404))
            answer = found if isinstance(found, Answer) else found(headers)
            if answer.waits_for is not None:
                answer.waits_for.wait(SECONDS)
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)
            except OSError:
                pass  # the reader has gone: that is what some tests are about

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Handler.feeds = FeedServer(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Handler.feeds
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def rss(items: Sequence[tuple[str, str, str]], encoding: str = "utf-8") -> bytes:
    """RSS 2.0 of (link, title, text)."""
    told = "".join(
        f"<item><link>{escape(link)}</link><title>{escape(title)}</title>"
        f"<description>{escape(text)}</description>"
        "<pubDate>Sat, 28 Nov 2026 10:00:00 GMT</pubDate></item>"
        for link, title, text in items
    )
    return (
        f'<?xml version="1.0" encoding="{encoding}"?><rss version="2.0"><channel>'
        f"<title>News</title>{told}</channel></rss>"
    ).encode(encoding)


def atom(items: Sequence[tuple[str, str, str]]) -> bytes:
    """Atom 1.0 of (link, title, text)."""
    told = "".join(
        f'<entry><id>{escape(link)}</id><link href="{escape(link)}"/><title>{escape(title)}</title>'
        f"<updated>2026-11-28T10:00:00Z</updated>"
        f'<content type="html">{escape(text)}</content></entry>'
        for link, title, text in items
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?><feed xmlns="http://www.w3.org/2005/Atom">'
        f"<title>News</title>{told}</feed>"
    ).encode()
