"""Which committed offsets hold for a store, decided by its marks and rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from faust.types import TP

from tests.unit.test_sink_records import Fake
from tidemill.agents.clickhouse.engine import EngineUnavailable
from tidemill.agents.runtime.producer import CallThread
from tidemill.agents.sink import store as store_
from tidemill.agents.sink.batches import InsertIntent
from tidemill.agents.sink.feeds import refused_of
from tidemill.agents.sink.notes import note_of, place_note
from tidemill.agents.sink.store import Store
from tidemill.schemas.topics import Topics

FEED = refused_of(Topics())
ALONE = note_of(InsertIntent(14, "x", (1,)), "a1")
JOINT = note_of(InsertIntent(14, "x", (0, 1)), "a1")
OLD = "tidemill-sink/2 last=9 of=0 insert=x"


class Tables:
    """A store with marks and with the last offset of each partition; away for some calls first."""

    def __init__(self, marks: set[str], last: dict[int, int], away: int = 0) -> None:
        self.dsn = "chdb:///x"
        self.marks = marks
        self.last = last
        self.away = away

    def query(self, sql: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        if self.away:
            self.away -= 1
            raise EngineUnavailable("away")
        if "sink_marks" in sql:
            return [{"mark": mark} for mark in params["marks"] if mark in self.marks]
        if "max(" in sql:
            return [
                {"kafka_partition": number, "last": str(self.last[number])}
                for number in params["partitions"] if number in self.last
            ]
        return [{"source_topic": "", "source_partition": None, "source_offset": None,
                 "value_bytes": 3}]

    def insert_bytes(self, _table: str, data: bytes, **_: Any) -> int:
        self.marks.add(data.decode().split('"')[3])
        return 1


@pytest.fixture
def thread() -> Iterator[CallThread]:
    made = CallThread("test")
    yield made
    made.close()


def tp(partition: int) -> TP:
    return TP(FEED.topic, partition)


CASES: dict[str, tuple[dict[int, tuple[int, str]], dict[int, int], dict[int, int]]] = {
    "a first start": ({}, {}, {}),
    "the same store": ({0: (7, place_note("a1")), 1: (3, place_note("a1"))}, {0: 6}, {}),
    "a new store": ({0: (7, place_note("b2")), 1: (3, place_note("b2"))}, {}, {0: 0, 1: 0}),
    "an older copy": ({0: (7, place_note("b2"))}, {0: 4}, {0: 5}),
    # The second note may have been written after the copy, under a mark that the copy has.
    "an older copy, an older mark": (
        {0: (7, place_note("b2")), 1: (9, place_note("a1"))}, {0: 4, 1: 5}, {0: 5, 1: 6}
    ),
    "a batch that was begun elsewhere": (
        {0: (7, f"{place_note('b2')} last=9 of=0 insert=x")}, {}, {0: 0}
    ),
    # The rows of a table may be there, and those of its views not yet.
    "an insert that was begun here since": (
        {0: (7, place_note("b2")), 1: (10, ALONE)}, {1: 14}, {0: 0}
    ),
    "an insert of which nothing is in": (
        {0: (7, place_note("b2")), 1: (10, ALONE)}, {1: 9}, {0: 0}
    ),
    "an insert of which a month is in": (
        {0: (7, place_note("b2")), 1: (10, ALONE)}, {1: 12}, {0: 0}
    ),
    "an insert, and an older copy": (
        {0: (7, place_note("b2")), 1: (10, ALONE)}, {1: 8}, {0: 0, 1: 9}
    ),
    "an insert, and rows behind it": (
        {0: (7, place_note("b2")), 1: (10, ALONE)}, {1: 15}, {0: 0, 1: 16}
    ),
    "an insert of two partitions": (
        {0: (7, JOINT), 1: (10, JOINT), 2: (1, place_note("b2"))}, {0: 14, 1: 14}, {}
    ),
    "an insert of two partitions, and an older copy": (
        {0: (7, JOINT), 1: (10, JOINT), 2: (1, place_note("b2"))}, {0: 6, 1: 4}, {0: 7, 1: 5}
    ),
    "an insert of two partitions, one of them further on": (
        {0: (15, place_note("a1")), 1: (10, JOINT), 2: (1, place_note("b2"))}, {0: 14, 1: 14},
        {0: 15}
    ),
    "an earlier version's notes": ({0: (7, OLD), 1: (7, "")}, {0: 6, 1: 4}, {}),
    "an earlier version's notes, no rows": ({0: (7, OLD), 1: (7, "")}, {1: 4}, {0: 0}),
    "forgotten offsets": ({0: (7, place_note("a1"))}, {0: 6, 1: 4}, {1: 5}),
    "nothing was read yet": ({0: (0, place_note("b2"))}, {}, {}),
}


@pytest.mark.parametrize("name", CASES)
async def test_marks_and_rows_say_where_reading_goes_on(
    name: str, thread: CallThread, caplog: pytest.LogCaptureFixture
) -> None:
    committed, last, places = CASES[name]
    tables: Any = Tables({"a1"}, last)
    store = Store(tables, [FEED], thread, lambda *_: Fake(0, b"abc"))
    notes = {tp(number): found for number, found in committed.items()}
    wanted = [tp(0), tp(1)]
    found = await store.places(notes, wanted)
    assert found == {tp(number): place for number, place in places.items()}
    for place, (_, note) in notes.items():
        assert store.holds(place, note) is (place not in found)
        # What is committed from now on is of this store.
        assert store.holds(place, place_note(store.mark))
    assert store.mark in tables.marks
    is_told = bool(places.keys() & committed.keys())
    assert len([r for r in caplog.records if "not the store" in r.message]) == is_told


async def test_markers_before_an_insert_are_no_rows_that_are_missing(thread: CallThread) -> None:
    tables: Any = Tables({"a1"}, {1: 7})
    store = Store(
        tables, [FEED], thread, lambda _topic, _part, at: Fake(0, b"abc") if at < 8 else None
    )
    notes = {tp(0): (7, place_note("b2")), tp(1): (10, ALONE)}
    assert await store.places(notes, [tp(0), tp(1)]) == {tp(0): 0}


async def test_a_row_of_another_log_says_nothing(thread: CallThread) -> None:
    tables: Any = Tables(set(), {0: 4, 1: 4})
    store = Store(tables, [FEED], thread, lambda *_: Fake(0, b"another"))
    assert await store.places({tp(1): (9, place_note("b2"))}, [tp(0), tp(1)]) == {tp(1): 0}
    # What the log no longer has cannot be compared, and is believed.
    store = Store(tables, [FEED], thread, lambda *_: None)
    assert await store.places({}, [tp(0)]) == {tp(0): 5}


async def test_clickhouse_is_waited_for(
    thread: CallThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_, "RETRY_SECONDS", 0.0)
    tables: Any = Tables(set(), {}, away=3)
    store = Store(tables, [FEED], thread, lambda *_: None)
    assert await store.places({tp(0): (7, place_note("b2"))}, [tp(0)]) == {tp(0): 0}
    assert store.has_lost(tp(0))
    assert not store.has_lost(tp(1))


async def test_a_store_that_was_replaced_under_the_sink_ends_it(
    thread: CallThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[str] = []
    monkeypatch.setattr(store_, "fail_stop", ends.append)
    tables: Any = Tables(set(), {})
    store = Store(tables, [FEED], thread, lambda *_: None)
    store.verify()  # before the first mark there is nothing to look for
    await store.places({}, [tp(0)])
    store.verify()
    assert not ends
    tables.marks.clear()
    store.verify()
    assert len(ends) == 1
