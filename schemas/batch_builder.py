"""Records as Kafka stores them in a batch (format 2), written straight into place.

Owns the bytes of a record and how many fit a batch. Refuses to know topics' meanings, and the head,
the compression and the producer of a batch (`tidemill.agents.runtime.batches_out`).

Most of what the engine writes is made of the same few texts. A value that is made first, as an
object of its own, and then put into a list, a tuple and a batch costs more than deciding on it. So
a record may be begun with its key, its value written into the page, and ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from librt.strings import BytesWriter
from mypy_extensions import i64, u8

Header = tuple[str, bytes | None]
"""The name and the value of a header."""

Record = tuple[bytes | None, bytes | None, list[Header] | None]
"""Key, value (None is a tombstone) and headers, None for none."""

PAGE_BYTES_MAX: Final = 1_000_000
"""Bytes of a page before it is compressed, unless one record has more. Topics take a batch of one
record of 1 MiB, so this fits them all."""

# A value written in place has this many bytes, so that its length and its record's take two.
_PLACED_MIN: Final = 64
_PLACED_MAX: Final = 8_191
_ROOM_FOR_PLACED: Final = 2 * _PLACED_MAX
_BEGIN: Final = b"\0\0\0\0"  # the length in two bytes, filled in later, and what _TWO is
_TWO: Final = b"\0\0"  # attributes, milliseconds since the first record
_ABSENT: Final = 1  # the length -1


def put_number(out: BytesWriter, number: i64) -> None:
    """A number >= 0 as Kafka's signed varint."""
    rest: i64 = number << 1
    while rest > 127:
        out.append(u8((rest & 127) | 128))
        rest >>= 7
    out.append(u8(rest))


def put_bytes(out: BytesWriter, text: bytes) -> None:
    """Bytes with their length before them."""
    put_number(out, len(text))
    out.write(text)


def header_bytes(name: str, value: bytes) -> bytes:
    """A header as it stands in a record, for those that are written often."""
    out = BytesWriter()
    put_bytes(out, name.encode())
    put_bytes(out, value)
    return out.getvalue()


def _size_of_number(number: i64) -> i64:
    rest: i64 = number << 1
    size: i64 = 1
    while rest > 127:
        rest >>= 7
        size += 1
    return size


def _size_of_bytes(text: bytes | None) -> i64:
    if text is None:
        return 1
    length: i64 = len(text)
    return length + _size_of_number(length)


def _put_bytes_or_none(out: BytesWriter, text: bytes | None) -> None:
    if text is None:
        out.append(_ABSENT)
    else:
        put_bytes(out, text)


class RecordPage:
    """The records of one batch: their bytes and their count."""

    __slots__ = ("_begun_at", "_fits", "_is_open", "_out", "_value_at", "count")

    def __init__(self) -> None:
        self.count = 0
        self._out = BytesWriter()
        self._begun_at: i64 = 0
        self._value_at: i64 = 0
        self._fits = True
        self._is_open = False  # a record was begun and not ended

    @property
    def size(self) -> int:
        """Bytes so far."""
        return len(self._out)

    def getvalue(self) -> bytes:
        """All records, one after the other."""
        self._check_closed()
        return self._out.getvalue()

    def _check_closed(self) -> None:
        if self._is_open:
            raise RuntimeError("a record was begun in this page and never ended")

    def append(
        self, key: bytes | None, value: bytes | None, headers: Sequence[Header] | None
    ) -> bool:
        """One more record. False: the page is full, and nothing was written.

        The first record is taken whatever its size.
        """
        self._check_closed()
        count: i64 = self.count
        size: i64 = 2 + _size_of_number(count) + _size_of_bytes(key) + _size_of_bytes(value)
        if headers is None:
            size += 1
        else:
            size += _size_of_number(len(headers))
            for name, text in headers:
                size += _size_of_bytes(name.encode()) + _size_of_bytes(text)
        out = self._out
        if count > 0 and len(out) + size + _size_of_number(size) > PAGE_BYTES_MAX:
            return False
        put_number(out, size)
        out.write(_TWO)
        put_number(out, count)
        _put_bytes_or_none(out, key)
        _put_bytes_or_none(out, value)
        if headers is None:
            out.append(0)
        else:
            put_number(out, len(headers))
            for name, text in headers:
                put_bytes(out, name.encode())
                _put_bytes_or_none(out, text)
        self.count += 1
        return True

    # --- a record written in place: `begin`, the value, `end_value`, its headers, `end` ---

    def begin(self, key: bytes) -> BytesWriter:
        """A record whose value is written into what this returns."""
        self._check_closed()
        self._is_open = True
        out = self._out
        self._begun_at = len(out)
        out.write(_BEGIN)
        put_number(out, self.count)
        put_bytes(out, key)
        self._value_at = len(out)
        out.write(_TWO)
        return out

    def end_value(self, headers: u8 = 0) -> None:
        """The value is complete. `headers`: how many follow, at most 63."""
        out = self._out
        at = self._value_at
        size: i64 = len(out) - at - 2
        self._fits = _PLACED_MIN <= size <= _PLACED_MAX
        if self._fits:
            out[at] = u8(((size << 1) & 127) | 128)
            out[at + 1] = u8(size >> 6)
        out.append(headers << 1)

    def end(self) -> bool:
        """The record is complete. False: it is too small or too large for this way, and it is as
        if it had not been begun."""
        self._is_open = False
        out = self._out
        at = self._begun_at
        size: i64 = len(out) - at - 2
        if not self._fits or size > _PLACED_MAX:
            out.truncate(at)
            return False
        out[at] = u8(((size << 1) & 127) | 128)
        out[at + 1] = u8(size >> 6)
        self.count += 1
        return True


class BatchBuilder:
    """The records of one partition, in as many pages as they need."""

    __slots__ = ("_full", "page", "partition", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.page = RecordPage()  # the last one
        self._full: list[RecordPage] = []

    def add(
        self, key: bytes | None, value: bytes | None, headers: Sequence[Header] | None = None
    ) -> None:
        """One more record."""
        if not self.page.append(key, value, headers):
            self._turn()
            self.page.append(key, value, headers)

    def place(self) -> RecordPage:
        """The page for a record that is written in place."""
        if self.page.size > PAGE_BYTES_MAX - _ROOM_FOR_PLACED:
            self._turn()
        return self.page

    def pages(self) -> list[RecordPage]:
        """Those with records, in order."""
        return [page for page in (*self._full, self.page) if page.count > 0]

    def __len__(self) -> int:
        """How many records."""
        total = self.page.count
        for page in self._full:
            total += page.count
        return total

    def records(self) -> Iterator[Record]:
        """What was written, read again."""
        for page in self.pages():
            yield from read_page(page.getvalue())

    def _turn(self) -> None:
        self._full.append(self.page)
        self.page = RecordPage()


OutRecord = tuple[str, int, bytes | None, bytes | None, list[Header] | None]
"""(topic, partition, key, value, headers)"""


class OutGroup:
    """The records of one transaction, or what one partition adds to it."""

    __slots__ = ("loose", "pages")

    def __init__(self, loose: Iterable[OutRecord] = ()) -> None:
        self.pages: list[BatchBuilder] = []
        """Of topics to whose partition nobody else writes in the same transaction."""
        self.loose = list(loose)
        """To partitions that others may write to as well."""

    def extend(self, other: OutGroup) -> None:
        """Adds what another partition writes."""
        self.pages += other.pages
        self.loose += other.loose

    def __len__(self) -> int:
        """How many records."""
        total = len(self.loose)
        for pages in self.pages:
            total += len(pages)
        return total

    def __iter__(self) -> Iterator[OutRecord]:
        """What was written, read again: for those who look at it."""
        yield from self.loose
        for pages in self.pages:
            for key, value, headers in pages.records():
                yield pages.topic, pages.partition, key, value, headers


def read_page(data: bytes) -> Iterator[Record]:
    """The records of a page. Slow: for those who look at what was written."""
    at = 0
    while at < len(data):
        _, at = _read_number(data, at)
        at += 2
        _, at = _read_number(data, at)
        key, at = _read_bytes(data, at)
        value, at = _read_bytes(data, at)
        count, at = _read_number(data, at)
        headers: list[Header] = []
        for _ in range(count):
            name, at = _read_bytes(data, at)
            text, at = _read_bytes(data, at)
            headers.append(((name or b"").decode(), text))
        yield key, value, headers or None


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return (number >> 1) ^ -(number & 1), at


def _read_bytes(data: bytes, at: int) -> tuple[bytes | None, int]:
    length, at = _read_number(data, at)
    if length < 0:
        return None, at
    return data[at : at + length], at + length
