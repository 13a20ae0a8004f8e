"""Feeds: fetched with conditions and bounds, and read into entries.

Owns conditional requests, redirects, the bounds of download and decompression, and what of a broken
feed counts. Refuses to know where a connection may go (`doors`), and what is stored.
"""

from __future__ import annotations

import asyncio
import calendar
import html
import re
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urldefrag, urljoin, urlsplit

import feedparser
import httpcore
import httpx

from systems.news.doors import AddressRefused
from systems.news.settings import REDIRECTS_MAX, Settings

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
URL_LENGTH_MAX: Final = 2_000
TITLE_LENGTH_MAX: Final = 1_000

_TAGS_WITH_TEXT_OF_THEIR_OWN: Final = re.compile(
    r"<(script|style)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE
)
_TAG: Final = re.compile(r"<[^>]*>")


class FeedError(Exception):
    """This feed could not be read now; the text says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One article of a feed. `url` has no fragment and is the article's identity."""

    url: str
    title: str
    text: str
    published_at: datetime | None


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch brought. `entries` is None when the feed has not changed (304)."""

    entries: list[Entry] | None
    etag: str | None
    last_modified: str | None
    problem: str | None = None
    """What was wrong with a feed that could be read all the same."""


async def fetch(
    client: httpx.AsyncClient, url: str, etag: str | None, last_modified: str | None,
    settings: Settings,
) -> Fetched:
    """Raises FeedError for all that can go wrong with a feed."""
    headers = {}
    if etag:
        headers["If-None-Match"] = etag
    if last_modified:
        headers["If-Modified-Since"] = last_modified
    try:
        async with asyncio.timeout(settings.feed_seconds):
            return await _fetch(client, url, headers, settings)
    except (TimeoutError, httpx.TimeoutException, httpcore.TimeoutException) as error:
        raise FeedError(f"{url}: no whole answer within {settings.feed_seconds:g} s") from error
    except AddressRefused as error:
        raise FeedError(f"{url}: {error}") from error
    except (httpx.HTTPError, httpx.InvalidURL, httpcore.NetworkError,
            httpcore.ProtocolError, httpcore.UnsupportedProtocol, OSError) as error:
        raise FeedError(f"{url}: {type(error).__name__}: {error}") from error


async def _fetch(
    client: httpx.AsyncClient, url: str, headers: dict[str, str], settings: Settings
) -> Fetched:
    at = url
    for _ in range(REDIRECTS_MAX + 1):
        if urlsplit(at).scheme not in ("http", "https"):
            raise FeedError(f"{url}: leads to {at[:200]}, which is neither http nor https")
        async with client.stream("GET", at, headers=headers) as response:
            if response.status_code in REDIRECTS and "location" in response.headers:
                at = urljoin(at, response.headers["location"])
                continue
            if response.status_code == 304:
                return Fetched(None, headers.get("If-None-Match"), headers.get("If-Modified-Since"))
            if response.status_code != 200:
                raise FeedError(f"{url}: HTTP {response.status_code}")
            data = await _read(response, url, settings)
        entries, problem = await asyncio.to_thread(
            read_entries, data, response.headers.get("content-type", ""), at
        )
        if problem is not None and not entries:
            raise FeedError(f"{url}: {problem}")
        return Fetched(
            entries, response.headers.get("etag"), response.headers.get("last-modified"), problem
        )
    raise FeedError(f"{url}: more than {REDIRECTS_MAX} redirects")


async def _read(response: httpx.Response, url: str, settings: Settings) -> bytes:
    """The body, decompressed here: a library would unpack a bomb before anyone counts."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise FeedError(f"{url}: content-encoding {encoding[:50]!r} was not asked for")
    unpacker = None if encoding in ("identity", "") else zlib.decompressobj(zlib.MAX_WBITS | 32)
    body, taken = bytearray(), 0
    async for part in response.aiter_raw():
        taken += len(part)
        if taken > settings.download_bytes_max:
            raise FeedError(f"{url}: has more than {settings.download_bytes_max} bytes")
        room = settings.feed_bytes_max - len(body) + 1
        try:
            body += part[:room] if unpacker is None else unpacker.decompress(part, room)
        except zlib.error as error:
            raise FeedError(f"{url}: is no {encoding}: {error}") from error
        if len(body) > settings.feed_bytes_max:
            raise FeedError(f"{url}: unpacks to more than {settings.feed_bytes_max} bytes")
    if unpacker is not None and not unpacker.eof:
        raise FeedError(f"{url}: {encoding} ends before its end mark")
    return bytes(body)


def read_entries(data: bytes, content_type: str, base: str) -> tuple[list[Entry], str | None]:
    """The feed's entries, each URL once, and what was wrong with it."""
    parsed = feedparser.parse(
        data, response_headers={"content-type": content_type, "content-location": base}
    )
    problem = None
    fault = parsed.get("bozo_exception")
    # Many servers call a feed text/html or give no type: the feed itself says what it is.
    if parsed.get("bozo") and not isinstance(fault, feedparser.NonXMLContentType):
        problem = f"{type(fault).__name__}: {fault}"[:300]
    elif not parsed.get("version"):
        problem = "is neither RSS nor Atom"
    found: dict[str, Entry] = {}
    for raw in parsed.get("entries", []):
        entry = _entry(raw, base)
        if entry is not None:
            found.setdefault(entry.url, entry)
    return list(found.values()), problem


def _entry(raw: Any, base: str) -> Entry | None:
    link = str(raw.get("link") or "").strip()
    if not link:
        return None
    url = urldefrag(urljoin(base, link))[0]
    if urlsplit(url).scheme not in ("http", "https") or len(url) > URL_LENGTH_MAX:
        return None
    contents = [str(each.get("value") or "") for each in raw.get("content") or []]
    text = max([plain(each) for each in (*contents, str(raw.get("summary") or ""))], key=len)
    title = plain(str(raw.get("title") or ""))[:TITLE_LENGTH_MAX]
    moment = raw.get("published_parsed") or raw.get("updated_parsed")
    published = None
    if moment is not None:
        try:
            published = datetime.fromtimestamp(calendar.timegm(moment), UTC)
        except (ValueError, OverflowError):
            published = None  # a date that no calendar has
    return Entry(url, title or url, text or title, published)


def plain(markup: str) -> str:
    """The text of HTML, in one line."""
    text = _TAG.sub(" ", _TAGS_WITH_TEXT_OF_THEIR_OWN.sub(" ", markup))
    return " ".join(html.unescape(text).replace("\0", " ").split())
