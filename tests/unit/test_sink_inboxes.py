"""Which insert comes next: joint ones, those begun before, and what is missing for them."""

from __future__ import annotations

import pytest

from tests.unit.test_sink_batches import Partition
from tidemill.agents.runtime.chunk import Chunk
from tidemill.agents.sink.batches import BatchLimits, Insert, InsertIntent
from tidemill.agents.sink.inboxes import CREDIT_RECORDS, WAITING_BYTES_MAX, Inboxes

LIMITS = BatchLimits(rows_max=10, seconds_max=1.0, bytes_max=10_000)


class Scene:
    """Inboxes over some partitions, all of which this process has and knows."""

    def __init__(self, partitions: int, *, is_joint: bool = True) -> None:
        self.parts = [Partition(number) for number in range(partitions)]
        self.passed: dict[int, int] = {}
        self.inboxes = Inboxes(LIMITS, is_joint=is_joint, passed_to=self.passed.get)
        self.inboxes.know(dict.fromkeys(range(partitions)))

    def add(self, number: int, *offsets: int, now: float = 0.0, size: int = 10) -> Chunk:
        chunk = self.parts[number].chunk(*offsets, size=size, timestamp=1_000)
        self.inboxes.add(chunk, now, 2_000.0)
        return chunk

    def next(self, now: float) -> dict[int, tuple[int, int]] | None:
        """Partition -> first and last offset of the next insert, which then goes in."""
        insert = self.begin(now)
        if insert is None:
            return None
        self.inboxes.finish(insert)
        return spans(insert)

    def begin(self, now: float) -> Insert | None:
        insert = self.inboxes.next_insert(now)
        if insert is not None:
            self.inboxes.begin(insert)
        return insert

    def committable(self) -> list[int | None]:
        return [part.tracker.committable() for part in self.parts]


def cut_short(*numbers: int) -> Insert:
    """An insert of records 0 and 1 of these partitions, within which its process was killed."""
    scene = Scene(max(numbers) + 1)
    for number in numbers:
        scene.add(number, 0, 1)
    insert = scene.begin(1.0)
    assert insert is not None
    return insert


def heir_of(insert: Insert, partitions: int, *, is_joint: bool = True) -> Scene:
    """Another process, which has all partitions and knows what the notes tell."""
    heir = Scene(partitions, is_joint=is_joint)
    known: dict[int, InsertIntent | None] = dict.fromkeys(range(partitions))
    heir.inboxes.know({**known, **{b.partition: insert.begun(b) for b in insert.batches}})
    return heir


def spans(insert: Insert) -> dict[int, tuple[int, int]]:
    return {batch.partition: (batch.first, batch.last) for batch in insert.batches}


def test_one_insert_takes_what_waits_in_every_partition() -> None:
    scene = Scene(3)
    scene.add(0, 0, 1, now=5.0)
    scene.add(2, 7, now=5.9)
    assert scene.next(5.9) is None
    assert scene.inboxes.pause_seconds(5.9) == pytest.approx(0.1)
    assert scene.next(6.0) == {0: (0, 1), 2: (7, 7)}
    assert scene.committable() == [2, None, 8]
    assert scene.inboxes.is_empty
    assert scene.inboxes.pause_seconds(6.0) is None


def test_over_a_server_each_partition_has_its_own() -> None:
    scene = Scene(2, is_joint=False)
    scene.add(0, 0, 1, now=5.5)
    scene.add(1, 7, now=5.0)
    assert scene.next(6.0) == {1: (7, 7)}
    assert scene.next(6.0) is None
    assert scene.next(6.5) == {0: (0, 1)}


def test_rows_of_all_partitions_count_and_the_rest_comes_next() -> None:
    scene = Scene(3)
    scene.add(1, *range(6), now=5.0)
    scene.add(0, *range(6), now=5.1)
    scene.add(2, *range(6), now=5.2)
    assert scene.next(5.2) == {1: (0, 5), 0: (0, 3)}
    assert scene.next(5.2) is None
    # What was cut in two is the oldest that waits.
    assert scene.next(6.1) == {0: (4, 5), 2: (0, 5)}
    large = Scene(2)
    large.add(0, 0, size=9_000)
    large.add(1, 0, size=9_000)
    assert large.next(0.0) == {0: (0, 0), 1: (0, 0)}


def test_an_insert_that_was_begun_is_made_again_as_it_was() -> None:
    begun = cut_short(0, 1, 2)
    heir = heir_of(begun, 3)
    heir.add(0, *range(9), now=2.0)
    heir.add(1, *range(9), now=2.0)
    assert heir.next(99.0) is None  # partition 2 has not come yet
    heir.add(2, 0, 1, now=2.0)
    again = heir.begin(99.0)
    assert again is not None
    assert (again.token, spans(again)) == (begun.token, spans(begun))
    assert again.begun(again.batches[0]) == begun.begun(begun.batches[0])
    heir.inboxes.finish(again)
    assert heir.next(99.0) == {0: (2, 8), 1: (2, 4)}


def test_what_was_begun_comes_although_there_is_no_room_and_no_more() -> None:
    begun = cut_short(0, 1)
    heir = heir_of(begun, 3)
    heir.add(2, 0, size=WAITING_BYTES_MAX)
    assert [heir.inboxes.credit(number, 0.0) for number in range(3)] == [CREDIT_RECORDS] * 2 + [0]
    heir.add(0, 0, 1, size=WAITING_BYTES_MAX)
    assert heir.inboxes.credit(0, 0.0) == 0


def test_a_partition_whose_rows_are_on_their_way_has_the_same_bounds_as_others() -> None:
    scene = Scene(2)
    scene.add(0, 0)
    assert scene.begin(1.0) is not None
    assert scene.inboxes.credit(0, 1.0) == CREDIT_RECORDS
    scene.add(0, 1, size=WAITING_BYTES_MAX)
    assert [scene.inboxes.credit(number, 1.0) for number in range(2)] == [0, 0]


def test_what_waits_for_another_sink_takes_no_room_from_others() -> None:
    begun = cut_short(0, 1)
    heir = Scene(3)
    heir.inboxes.know({0: begun.begun(begun.batches[0]), 2: None})
    heir.add(0, 0, 1, size=WAITING_BYTES_MAX)
    assert heir.next(99.0) is None
    assert heir.inboxes.credit(2, 99.0) == CREDIT_RECORDS
    heir.add(2, 5, now=98.0)
    assert heir.next(99.0) == {2: (5, 5)}


def test_a_part_that_has_gone_on_shows_that_the_insert_is_in() -> None:
    """The commit behind it is of each partition; the token keeps the others' rows from coming
    twice."""
    begun = cut_short(0, 1)
    heir = Scene(2)
    heir.inboxes.know({0: begun.begun(begun.batches[0]), 1: InsertIntent(9, "another", (1,))})
    heir.add(0, 0, 1)
    again = heir.begin(1.0)
    assert again is not None
    assert (again.token, spans(again)) == (begun.token, {0: (0, 1)})


def test_an_insert_waits_for_partitions_that_another_sink_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A part of it under its token would keep the other part out for ever."""
    begun = cut_short(0, 1)
    heir = Scene(2)
    heir.inboxes.know({0: begun.begun(begun.batches[0])})
    heir.add(0, 0, 1)
    for now in (50.0, 59.9):  # a rebalance may give us the others
        assert heir.next(now) is None
    assert not caplog.records
    for now in (60.0, 69.9):
        assert heir.next(now) is None
    assert len(caplog.records) == 1
    assert "[1], which another sink has" in caplog.text
    heir.inboxes.forget()
    heir.inboxes.know({batch.partition: begun.begun(batch) for batch in begun.batches})
    heir.add(1, 0, 1)
    assert heir.next(99.0) == {0: (0, 1), 1: (0, 1)}


def test_over_a_server_a_joint_insert_of_a_folder_is_taken_apart() -> None:
    begun = cut_short(0, 1)
    heir = heir_of(begun, 2, is_joint=False)
    heir.add(1, *range(5))
    again = heir.begin(0.0)
    assert again is not None
    assert spans(again) == {1: (0, 1)}
    assert again.partitions == (1,)
    assert again.token == f"{begun.token}/1"


def test_what_the_log_no_longer_has_holds_nothing_up() -> None:
    begun = cut_short(0, 1, 2)
    heir = heir_of(begun, 3)
    heir.add(0, 0, 1)
    heir.add(1, 7, 8)  # the next ones that are there
    assert heir.next(0.5) is None
    assert heir.inboxes.pause_seconds(0.5) is not None  # it is looked again, without an arrival
    heir.passed[2] = 7  # nothing is there
    assert heir.next(0.5) == {0: (0, 1)}
    assert heir.next(1.0) == {1: (7, 8)}


def test_a_partition_that_lost_its_place_takes_no_rows_of_others_along() -> None:
    """Retention has passed its position while the insert was tried again and again."""
    scene = Scene(2)
    scene.add(0, 0, 1)
    scene.add(1, 0, 1)
    insert = scene.begin(1.0)
    assert insert is not None
    scene.parts[1].tracker.clear()
    assert not insert.is_stale
    scene.inboxes.finish(insert)
    assert scene.committable() == [2, None]
    scene.add(1, 7)  # from where the log begins now
    assert scene.next(1.0) == {1: (7, 7)}


def test_a_partition_of_which_nothing_is_known_makes_no_insert() -> None:
    scene = Scene(2)
    scene.inboxes.forget()
    scene.inboxes.know({1: None})
    scene.add(0, 0)
    assert scene.next(99.0) is None
    assert not scene.inboxes.is_known


def test_what_lacks_something_is_looked_at_again_beside_what_is_due() -> None:
    begun = cut_short(0)
    heir = heir_of(begun, 2)
    heir.inboxes.know({0: begun.begun(begun.batches[0]), 1: None})
    heir.add(0, 0)
    heir.add(1, 0, now=60.0)
    assert heir.inboxes.pause_seconds(0.0) == 1.0


def test_after_a_rebalance_nothing_is_known() -> None:
    scene = Scene(2)
    scene.add(0, 0, 1)
    insert = scene.begin(1.0)
    assert insert is not None
    scene.parts[0].tracker.clear()
    scene.inboxes.forget()
    assert not scene.inboxes.is_known
    assert insert.is_stale
    scene.inboxes.finish(insert)
    assert scene.committable() == [None, None]
