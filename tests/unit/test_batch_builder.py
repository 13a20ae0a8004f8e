"""Pages of records hold what Kafka's own format says, however a record was written."""

from __future__ import annotations

import random

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from tidemill.agents.runtime.batches_out import OutBatch
from tidemill.schemas.batch_builder import (
    PAGE_BYTES_MAX,
    BatchBuilder,
    Header,
    OutGroup,
    Record,
    RecordPage,
    header_bytes,
    put_bytes,
    read_page,
)
from tidemill.schemas.event_writer import Event, EventWriter
from tidemill.schemas.instants import InstantCache
from tidemill.schemas.words import EventKind, State

AT_MS = 1_790_000_000_000
SIZES = (0, 1, 63, 64, 127, 128, 8_190, 8_191, 8_192, 70_000)


def some_bytes(chance: random.Random) -> bytes | None:
    size = chance.choice((None, *SIZES))
    return None if size is None else chance.randbytes(size)


def some_record(chance: random.Random) -> Record:
    headers: list[Header] | None = None
    if chance.random() < 0.4:
        headers = [
            (chance.choice(("h", "ce_id", "n\u00e4me", "x" * 70)), some_bytes(chance))
            for _ in range(chance.randrange(1, 90))
        ]
    return some_bytes(chance), some_bytes(chance), headers


def test_a_batch_is_the_one_that_another_client_makes() -> None:
    chance = random.Random(3)
    for _ in range(20):
        page, builder = RecordPage(), DefaultRecordBatchBuilder(2, 0, 1, 7, 3, 100, 1 << 40)
        count = chance.choice((1, 2, 70))
        for number in range(count):
            key, value, headers = some_record(chance)
            if not page.append(key, value, headers):
                break
            builder.append(number, AT_MS, key, value, headers or [])
        batch = OutBatch(("t", 0), page, AT_MS, is_transactional=True, codec=0)
        batch.seal(7, 3, 100)
        assert bytes(batch.data) == bytes(builder.build())


def test_what_is_written_is_read_again() -> None:
    chance = random.Random(4)
    records = [some_record(chance) for _ in range(300)]
    pages = BatchBuilder("t", 1)
    for record in records:
        pages.add(*record)
    assert len(pages.pages()) > 1
    assert all(page.count == 1 or page.size <= PAGE_BYTES_MAX for page in pages.pages())
    assert list(pages.records()) == records
    assert len(pages) == len(records)


@pytest.mark.parametrize("size", SIZES)
def test_a_record_in_place_is_the_appended_one_or_none(size: int) -> None:
    """Its lengths have two bytes: what needs other ones is taken back."""
    placed, appended = RecordPage(), RecordPage()
    headers: list[Header] = [("a", b"1"), ("b", b"")]
    value = b"v" * size
    for page in (placed, appended):
        assert page.append(b"k", b"first", None)
    out = placed.begin(b"key")
    out.write(value)
    placed.end_value(len(headers))
    for name, text in headers:
        out.write(header_bytes(name, text or b""))
    if placed.end():
        assert appended.append(b"key", value, headers)
    else:
        assert not 64 <= size < 8_191 - 100
    assert placed.count == appended.count
    assert placed.getvalue() == appended.getvalue()
    assert placed.append(None, b"last", None)
    assert [record[1] for record in read_page(placed.getvalue())][-1] == b"last"


def test_half_a_record_is_never_passed_on() -> None:
    page = RecordPage()
    page.begin(b"k").write(b"half")
    for use in (lambda: page.begin(b"k"), lambda: page.append(None, b"1", None), page.getvalue):
        with pytest.raises(RuntimeError, match="never ended"):
            use()


def test_long_keys_and_headers_count_for_a_record_in_place() -> None:
    page = RecordPage()
    page.begin(b"k" * 9_000).write(b"v" * 100)
    page.end_value()
    assert not page.end()
    out = page.begin(b"k")
    out.write(b"v" * 100)
    page.end_value(1)
    put_bytes(out, b"name")
    put_bytes(out, b"t" * 9_000)
    assert not page.end()
    assert (page.count, page.size) == (0, 0)


@pytest.mark.parametrize("length", [0, 10, 7_500, 8_100, 9_000, 1_000_000])
def test_events_of_all_sizes_are_whole(length: int) -> None:
    """Small ones are written in place, large ones beside it; the records around them stay."""
    writer = EventWriter(InstantCache())
    made = Event(
        EventKind.SUCCEEDED, "u", "j", "t", "q", "low", AT_MS, 1, 4, 1, 1, AT_MS, State.RUNNING,
        State.SUCCEEDED, data={"result": "x" * length},
    )
    events, completed = BatchBuilder("events", 0), BatchBuilder("completed", 0)
    for _ in range(3):
        writer.add_event(events, made)
        writer.add_completed(completed, made, AT_MS, None)
    assert list(events.records()) == [(b"u", writer.write(made), None)] * 3
    found = list(completed.records())
    assert [record[:2] for record in found] == [(b"u", writer.completed(made, AT_MS, None))] * 3
    assert [name for name, _ in found[0][2] or ()] == [
        "ce_id", "ce_specversion", "ce_source", "ce_type", "content-type", "ce_time", "ce_subject",
    ]
    assert found[0] == found[1] == found[2]


def test_a_group_is_what_all_partitions_add() -> None:
    group, other = OutGroup([("a", 0, None, b"1", None)]), OutGroup([("b", 1, b"k", None, None)])
    pages = BatchBuilder("c", 2)
    pages.add(b"k", b"2", [("h", None)])
    other.pages.append(pages)
    group.extend(other)
    assert len(group) == 3
    assert list(group) == [
        ("a", 0, None, b"1", None), ("b", 1, b"k", None, None),
        ("c", 2, b"k", b"2", [("h", None)]),
    ]
