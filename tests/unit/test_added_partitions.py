"""A partition that was added to an input: its home reads it, forwards, and keeps its position."""

from __future__ import annotations

import orjson
import pytest

from tests.chaos.rawlog import RawRecord
from tests.unit.core_kit import NOW
from tests.unit.partition_kit import TOPICS, restored
from tidemill.agents.topics import count_problem, too_many
from tidemill.schemas.topics import Topics
from tidemill.streams.partitioner import partition_of
from tidemill.streams.store.position import input_name, input_place

PARTITIONS = 4
HOME = 1
ADDED = 5  # its home is 5 mod 4


def request(offset: int, user_id: str) -> RawRecord:
    value = orjson.dumps({"type": "t", "user_id": user_id, "job_id": f"j{offset}"})
    return RawRecord(TOPICS.requested, ADDED, offset, NOW, None, value)


def user_of(home: int) -> str:
    return next(f"u{n}" for n in range(100) if partition_of(f"u{n}", PARTITIONS) == home)


@pytest.mark.parametrize("home", range(PARTITIONS))
def test_what_lies_in_an_added_partition_comes_home_once(home: int) -> None:
    engine = restored([], NOW, number=HOME, partitions=PARTITIONS)
    rows: dict[bytes | None, bytes | None] = {}
    # The same offsets of our own partition are other records.
    own = RawRecord(TOPICS.requested, HOME, 0, NOW, None, b"{")
    for _ in range(2):
        engine.begin(NOW)
        engine.take_all(TOPICS.requested, HOME, [own])
        engine.take_all(TOPICS.requested, ADDED, [request(0, user_of(home))])
        out = list(engine.seal())
        engine.commit()
        rows |= {one[2]: one[3] for one in out if one[0] == TOPICS.state}
        forwarded = [one for one in out if one[0] == TOPICS.internal]
        if rows.get(b"seen"):
            assert not out  # both were decided before
            break
        rows[b"seen"] = b"1"
        assert [one[1] for one in forwarded] == ([] if home == HOME else [home])
        assert (len(engine.state.jobs) == 1) == (home == HOME)
    applied = orjson.loads(rows[b"p"] or b"")["applied"]
    assert applied == {TOPICS.requested: 0, f"{TOPICS.requested}/{ADDED}": 0}
    # A new owner reads on behind both.
    again = restored(
        [(key, value) for key, value in rows.items() if key and key != b"seen"], NOW,
        number=HOME, partitions=PARTITIONS,
    )
    assert again.state.applied == applied
    assert not again.take(TOPICS.requested, ADDED, request(0, user_of(home)))
    assert again.take(TOPICS.requested, ADDED, request(1, user_of(home)))


@pytest.mark.parametrize("topic", ["jobs.requested", "a.b-c_d.jobs.requested"])
@pytest.mark.parametrize(("partition", "home"), [(3, 3), (7, 3), (64, 0), (0, 0)])
def test_an_input_is_known_by_its_name(topic: str, partition: int, home: int) -> None:
    assert input_place(input_name(topic, partition, home), home) == (topic, partition)


@pytest.mark.parametrize("topic", ["outcomes", "internal", "events", "state", "owners"])
def test_a_topic_whose_partitions_have_a_meaning_may_not_grow(topic: str) -> None:
    topics = Topics("x.")
    name = getattr(topics, topic)
    found = count_problem(topics, PARTITIONS, {name: 6})
    assert found == too_many(name, 6, PARTITIONS)
    assert name in found
    assert "Do not delete" in found
    assert count_problem(topics, PARTITIONS, {name: PARTITIONS}) is None


@pytest.mark.parametrize("topic", ["requested", "commands", "completed", "dead", "retry"])
def test_a_topic_that_anybody_may_grow(topic: str) -> None:
    topics = Topics()
    assert count_problem(topics, PARTITIONS, {getattr(topics, topic): 6}) is None
    found = count_problem(topics, PARTITIONS, {getattr(topics, topic): 1})
    assert found is not None
    assert "topics apply" in found


@pytest.mark.parametrize("topic", ["heartbeats", "control", "definitions"])
def test_a_topic_of_one_partition_has_one(topic: str) -> None:
    topics = Topics()
    assert count_problem(topics, PARTITIONS, {getattr(topics, topic): 2}) is not None
    assert count_problem(topics, PARTITIONS, {getattr(topics, topic): 1}) is None


@pytest.mark.parametrize(("partition", "name"), [(HOME, "{}"), (ADDED, "{}/5")])
@pytest.mark.parametrize("topic", [TOPICS.requested, TOPICS.commands, TOPICS.outcomes])
def test_records_that_are_gone_are_told_on_dead(topic: str, partition: int, name: str) -> None:
    engine = restored([], NOW, number=HOME, partitions=PARTITIONS)
    for _ in range(2):  # decided again after an abort
        engine.begin(NOW)
        engine.note_lost(topic, partition, 40, "offsets 0 to 39 are gone")
        (letter,) = [one for one in engine.seal() if one[0] == TOPICS.dead]
        headers = dict(letter[4] or ())
        engine.rollback()
        assert engine.state.applied == {}
    engine.begin(NOW)
    engine.note_lost(topic, partition, 40, "offsets 0 to 39 are gone")
    engine.seal()
    engine.commit()
    assert engine.state.applied == {name.format(topic): 39}
    assert headers["tidemill.dead.error.code"] == b"RECORDS_LOST"
    assert (headers["tidemill.dead.topic"], headers["tidemill.dead.offset"]) == (
        topic.encode(), b"0",
    )
    # A topic that was made again begins before what was applied.
    engine.begin(NOW + 1)
    engine.note_lost(topic, partition, 0, "made again")
    engine.seal()
    engine.commit()
    assert engine.state.applied == {name.format(topic): -1}
