"""R4.2, the door: feeds over real HTTP, whole and broken, near and far.

Owns what comes of a feed. The server is on loopback, so reading it is allowed by setting.
"""

from __future__ import annotations

import gzip
import socket
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from systems.news.doors import checked_client, is_public
from systems.news.feeds import FeedError, Fetched, fetch
from systems.news.settings import Settings
from tests.systems.feed_server import Answer, FeedServer, atom, feed_server, rss

ITEM = ("http://news.example/1#part", "Żółw wins", "The tortoise <b>won</b> &amp; smiled.")


@pytest.fixture
def server() -> Iterator[FeedServer]:
    with feed_server() as running:
        yield running


async def read(
    url: str, *, etag: str | None = None, allow_private: bool = True, **given: Any
) -> Fetched:
    settings = Settings(allow_private=allow_private, **given)
    async with checked_client(allow_private=allow_private, seconds=5) as client:
        return await fetch(client, url, etag, None, settings)


async def told(server: FeedServer, answer: Answer, **given: Any) -> Fetched:
    server.answers["/feed"] = answer
    return await read(server.at("/feed"), **given)


@pytest.mark.parametrize("body", [rss([ITEM]), atom([ITEM])], ids=["rss", "atom"])
async def test_r4_2_an_article_is_its_url_title_and_text(server: FeedServer, body: bytes) -> None:
    fetched = await told(server, Answer(body))
    assert fetched.entries is not None
    (entry,) = fetched.entries
    assert (entry.url, entry.title) == ("http://news.example/1", "Żółw wins")
    assert entry.text == "The tortoise won & smiled."
    assert entry.published_at is not None
    assert entry.published_at.isoformat() == "2026-11-28T10:00:00+00:00"
    assert fetched.problem is None


async def test_r4_2_a_feed_that_has_not_changed_is_not_sent_again(server: FeedServer) -> None:
    def answer(headers: Any) -> Answer:
        if headers.get("if-none-match") == '"v1"':
            return Answer(status=304)
        return Answer(rss([ITEM]), headers={"ETag": '"v1"'})

    server.answers["/feed"] = answer
    first = await read(server.at("/feed"))
    again = await read(server.at("/feed"), etag=first.etag)
    assert first.etag == '"v1"'
    assert (again.entries, again.etag) == (None, '"v1"')


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_r4_2_a_packed_feed_is_unpacked(server: FeedServer, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    answer = Answer(pack(rss([ITEM])), headers={"Content-Encoding": encoding})
    fetched = await told(server, answer)
    assert fetched.entries is not None
    assert len(fetched.entries) == 1


async def test_r4_2_redirects_are_followed_and_bounded(server: FeedServer) -> None:
    server.answers["/old"] = Answer(status=301, headers={"Location": "/feed"})
    server.answers["/loop"] = Answer(status=302, headers={"Location": "/loop"})
    server.answers["/file"] = Answer(status=302, headers={"Location": "file:///etc/passwd"})
    server.answers["/feed"] = Answer(rss([ITEM]))
    assert (await read(server.at("/old"))).entries
    with pytest.raises(FeedError, match="more than 5 redirects"):
        await read(server.at("/loop"))
    with pytest.raises(FeedError, match="neither http nor https"):
        await read(server.at("/file"))


async def test_r4_2_broken_xml_gives_what_can_be_read_and_says_so(server: FeedServer) -> None:
    fetched = await told(server, Answer(rss([ITEM]).replace(b"</channel></rss>", b"<item>")))
    assert fetched.entries is not None
    assert [entry.url for entry in fetched.entries] == ["http://news.example/1"]
    assert fetched.problem is not None
    with pytest.raises(FeedError):
        await told(server, Answer(b"<html><body>Welcome</body></html>"))
    with pytest.raises(FeedError):
        await told(server, Answer(b"\x00\x01\x02"))


async def test_r4_2_a_charset_that_is_not_the_feeds_own(server: FeedServer) -> None:
    body = rss([ITEM], "iso-8859-2")
    wrong = Answer(body, headers={"Content-Type": "application/rss+xml; charset=utf-8"})
    fetched = await told(server, wrong)
    assert fetched.entries is not None
    assert fetched.entries[0].title == "Żółw wins"
    assert "utf-8" in str(fetched.problem)


async def test_r4_2_a_feed_that_hangs_is_given_up(server: FeedServer) -> None:
    never = threading.Event()
    with pytest.raises(FeedError, match=r"no whole answer within 0\.2 s"):
        await told(server, Answer(rss([ITEM]), waits_for=never), feed_seconds=0.2)
    never.set()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_r4_2_a_bomb_is_cut(server: FeedServer, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    bomb = Answer(pack(bytes(30_000_000)), headers={"Content-Encoding": encoding})
    with pytest.raises(FeedError, match="unpacks to more than 1000000 bytes"):
        await told(server, bomb, feed_bytes_max=1_000_000)
    with pytest.raises(FeedError, match="has more than 1000 bytes"):
        await told(server, Answer(bytes(5_000)), download_bytes_max=1_000)


async def test_r4_2_entities_of_a_feed_do_not_multiply(server: FeedServer) -> None:
    laughs = "".join(
        f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(10)
    )
    body = rss([("http://news.example/1", "x", "TEXT")]).decode().split("?>", 1)[1]
    body = f"<?xml version='1.0'?><!DOCTYPE rss [{laughs}]>{body.replace('TEXT', '&l9;')}"
    try:
        fetched = await told(server, Answer(body.encode()))
    except FeedError:
        return
    assert sum(len(entry.text) for entry in fetched.entries or []) < 1_000


async def test_r4_2_half_a_packed_feed_is_none(server: FeedServer) -> None:
    half = Answer(gzip.compress(rss([ITEM]))[:-30], headers={"Content-Encoding": "gzip"})
    with pytest.raises(FeedError, match="ends before its end mark"):
        await told(server, half)
    with pytest.raises(FeedError, match="HTTP 500"):
        await told(server, Answer(status=500))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "2130706433", "0.0.0.0", "[::ffff:127.0.0.1]"],
)
async def test_r4_2_private_addresses_are_refused(server: FeedServer, host: str) -> None:
    server.answers["/feed"] = Answer(rss([ITEM]))
    url = server.at("/feed").replace("127.0.0.1", host)
    with pytest.raises(FeedError):
        await read(url, allow_private=False)
    assert server.asked == []


async def test_r4_2_the_address_that_was_checked_is_the_one_connected_to(
    server: FeedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public at its first resolution and loopback at the second gains nothing."""
    import asyncio

    port = int(server.url.rpartition(":")[2])
    answers = ["203.0.113.7", "127.0.0.1"]  # of documentation: not global either, hence allowed
    asked: list[str] = []

    async def changing(*_: Any, **__: Any) -> list[Any]:
        asked.append(answers[min(len(asked), 1)])
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (asked[-1], port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", changing, raising=False)
    server.answers["/feed"] = Answer(rss([ITEM]))
    with pytest.raises(FeedError, match=r"203\.0\.113\.7, which is no public address"):
        await read(f"http://moving.example:{port}/feed", allow_private=False)
    with pytest.raises(FeedError, match=r"127\.0\.0\.1, which is no public address"):
        await read(f"http://moving.example:{port}/feed", allow_private=False)
    assert asked == answers
    assert server.asked == []


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "::1", "fe80::1",
     "fc00::1", "::ffff:10.0.0.1", "2002:a00:1::", "64:ff9b::a00:1", "224.0.0.1", "0.0.0.0"],
)
def test_r4_2_what_is_not_public(address: str) -> None:
    assert not is_public(address)
    assert is_public("1.1.1.1")
    assert is_public("2606:4700:4700::1111")
