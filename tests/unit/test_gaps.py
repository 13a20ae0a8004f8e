"""Gaps in an input: what is one, what is not, and what is committed so that it can be told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from faust.types import TP

from tests.unit.test_sink_records import Fake
from tidemill.agents.clickhouse.engine import Engine
from tidemill.agents.runtime.inputs import Gap, InputPartition, InputPolicy
from tidemill.agents.sink.feeds import events_of, refused_of
from tidemill.agents.sink.gaps import Gaps
from tidemill.schemas.topics import Topics

HERE = TP("jobs.events", 2)
TOPICS = Topics()


def partition(**policy: Any) -> InputPartition:
    return InputPartition(HERE, InputPolicy(is_gap_fatal=False, **policy), asyncio.Queue())


async def test_a_position_behind_markers_is_committed_where_that_is_allowed() -> None:
    may = [True]
    here = partition(may_pass=lambda _: may[0])
    assert here.committable(None) is None
    run = here.tracker.deliver([Fake(0, b"")])
    run.ack()
    assert here.committable(None) == 1  # something else is out
    here.tracker.on_committed(1)
    may[0] = False
    assert here.committable(2) is None
    may[0] = True
    assert here.committable(2) == 2
    here.tracker.on_committed(2)
    assert here.committable(2) is None


async def test_others_commit_what_is_acked_alone() -> None:
    here = partition()
    here.tracker.deliver([Fake(0, b"")]).ack()
    assert here.committable(7) == 1


class Answers:
    """An engine that has some rows and takes those of gaps."""

    def __init__(self, rows: int, last: int) -> None:
        self.row = {"rows": rows, "last": last}
        self.inserted: list[bytes] = []

    def query(self, *_: object) -> list[dict[str, int]]:
        return [self.row]

    def insert_bytes(self, _table: str, data: bytes, **_: object) -> int:
        self.inserted.append(data)
        return len(data)


@pytest.mark.parametrize(
    ("is_events", "rows", "last", "first"),
    [
        (True, 0, 0, 0),  # history that was gone before the first start
        (False, 0, 0, None),  # the topic is read since this version only
        (True, 5, 9, 10), (False, 5, 9, 10),
        (True, 5, 18, None),  # what is left is the marker of the last row's transaction
        (True, 5, 19, None), (True, 5, 30, None),
    ],
)
def test_rows_say_what_kafka_has_forgotten(
    *, is_events: bool, rows: int, last: int, first: int | None
) -> None:
    answers = Answers(rows, last)
    engine: Any = answers
    gaps = Gaps(events_of(TOPICS) if is_events else refused_of(TOPICS))
    gaps.note(Gap("jobs.events", 2, 0, 20, 30))
    assert gaps
    told: Engine = engine
    gaps.tell(told)
    assert not gaps
    if first is None:
        assert not answers.inserted
    else:
        (row,) = answers.inserted
        assert b'"first_offset":%d,"last_offset":19' % first in row


@pytest.mark.parametrize(
    ("wanted", "start", "row"),
    [
        (5, 20, b'"first_offset":5,"last_offset":19'), (5, 6, b'"first_offset":5,"last_offset":5'),
        (99, 20, None),  # the topic was made again: nothing of it is missing
    ],
)
def test_a_gap_is_a_row(wanted: int, start: int, row: bytes | None) -> None:
    answers = Answers(1, 1)
    engine: Any = answers
    gaps = Gaps(events_of(TOPICS))
    gaps.note(Gap("jobs.events", 2, wanted, start, 30))
    gaps.tell(engine)
    assert [row in found for found in answers.inserted if row] == ([True] if row else [])
