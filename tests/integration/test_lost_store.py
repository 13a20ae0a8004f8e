"""A store that is not the one that the committed offsets tell of: its rows come back from the log,
each once, whatever happens meanwhile; what the log no longer has is told.

Over chDB, and over a server or what stands in for one, as the tests of the sink.
"""

from __future__ import annotations

import random
import shutil
import signal

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.integration.sink_kit import DEADLINE_SECONDS, PARTITIONS, Log, Place, SinkProcess
from tests.waiting import wait_until
from tidemill.agents import exit_codes
from tidemill.agents.clickhouse.engine import open_engine
from tidemill.agents.crash import CRASH_EXIT_CODE
from tidemill.agents.settings import CommonSettings
from tidemill.doctor.clickhouse import gaps as gaps_check

# What does not depend on the engine is tried over one.
embedded = pytest.mark.parametrize("place", ["chdb"], indirect=True)
server = pytest.mark.parametrize("place", ["server"], indirect=True)
# Where the sink is ended, one start after the other, and at which insert of that start.
STEPS = (
    "before_intents:1", "after_intents_before_insert:2", "after_insert_before_commit:3",
    "after_intents_before_insert:1", "after_insert_before_commit:1",
)
TOLD = "is not the store that the committed offsets tell of"


def filled(log: Log, place: Place) -> None:
    """A store that has everything, whose sink has ended in order."""
    log.produce(2_000)
    log.produce_refused(20)
    sink = place.start()
    sink.wait_ready()
    place.check(log)
    place.check_refused(log)
    place.wait_committed(log)
    assert sink.end() == 0


def check_whole(log: Log, place: Place) -> None:
    place.check(log)
    place.check_refused(log)
    assert not place.query("SELECT * FROM log_gaps")


def told(sink: SinkProcess) -> list[str]:
    return [line for line in sink.lines if TOLD in line]


@pytest.mark.parametrize(
    ("place", "what"), [("chdb", ""), ("chdb", "store"), ("server", "")], indirect=["place"]
)
def test_the_rows_of_a_lost_store_come_back_once(log: Log, place: Place, what: str) -> None:
    filled(log, place)
    place.lose(what)
    sink = place.start()
    sink.wait_ready()
    log.produce(300)
    check_whole(log, place)
    assert 1 <= len(told(sink)) <= 2  # a line a topic
    place.wait_committed(log)
    assert sink.end() == 0
    # From now on its offsets are those of this store.
    again = place.start()
    again.wait_ready()
    log.produce(100)
    check_whole(log, place)
    assert not told(again)


def test_a_crash_at_each_step_while_rows_come_back_leaves_each_once(
    log: Log, place: Place
) -> None:
    filled(log, place)
    place.lose()
    for step in STEPS:
        crashed = place.start(crash_at=f"sink.{step}", batch_rows=150)
        assert crashed.popen.wait(DEADLINE_SECONDS) == CRASH_EXIT_CODE
    log.produce(200)
    place.start(batch_rows=3_000, batch_seconds=0.5).wait_ready()
    check_whole(log, place)


@embedded
def test_kills_and_a_second_loss_while_rows_come_back_leave_each_once(
    log: Log, place: Place
) -> None:
    rng = random.Random(14)
    filled(log, place)
    for number in range(4):
        if number % 2 == 0:
            place.lose()
        sink = place.start(batch_rows=rng.choice([50, 300, 2_000]), batch_seconds=0.05)
        sink.wait_ready()
        log.produce(300)
        place.wait_count(int(rng.uniform(0.1, 0.9) * len(log.events)))
        sink.end(signal.SIGKILL)
    place.start().wait_ready()
    check_whole(log, place)


@embedded
def test_an_insert_that_was_cut_before_a_view_is_made_again(log: Log, place: Place) -> None:
    """The rows of the table alone do not tell that those of a view are missing."""
    filled(log, place)
    place.lose()
    crashed = place.start(crash_at="sink.after_insert_before_commit:2", batch_rows=150)
    assert crashed.popen.wait(DEADLINE_SECONDS) == CRASH_EXIT_CODE
    # The engine is ended between two tables only now and then; here it loses what came last.
    engine = open_engine(f"chdb://{place.folder}")
    try:
        part = engine.query(
            "SELECT name FROM system.parts WHERE active AND table = 'job_minutes'"
            " ORDER BY max_block_number DESC LIMIT 1"
        )[0]["name"]
        engine.command(f"ALTER TABLE job_minutes DROP PART '{part}'")
    finally:
        engine.close()
    place.start().wait_ready()
    check_whole(log, place)


@embedded
def test_what_the_log_no_longer_has_of_a_lost_store_is_told(log: Log, place: Place) -> None:
    filled(log, place)
    log.delete_before(log.ends())
    kept = log.starts()
    place.lose()
    log.events.clear()
    log.produce(200)
    place.start().wait_ready()
    place.check(log)
    rows = place.query(
        "SELECT kafka_partition, first_offset, last_offset FROM log_gaps FINAL"
        f" WHERE topic = '{log.topics.events}' ORDER BY kafka_partition"
    )
    found = [[int(value) for value in row.values()] for row in rows]
    assert found == [[number, 0, kept[number] - 1] for number in range(PARTITIONS)]
    assert gaps_check(CommonSettings(clickhouse=place.url)).verdict == "failed"


@embedded
def test_a_copy_that_is_older_than_the_offsets_gets_what_it_lacks(log: Log, place: Place) -> None:
    filled(log, place)
    copy = place.folder.with_name("copy")
    shutil.copytree(place.folder, copy, symlinks=True)
    for _ in range(2):
        sink = place.start()
        sink.wait_ready()
        log.produce(700)
        log.produce_refused(7)
        place.check(log)
        place.check_refused(log)
        assert sink.end() == 0
    place.lose()
    shutil.copytree(copy, place.folder, symlinks=True)
    crashed = place.start(crash_at="sink.after_insert_before_commit:2", batch_rows=100)
    assert crashed.popen.wait(DEADLINE_SECONDS) == CRASH_EXIT_CODE
    assert told(crashed)
    place.start().wait_ready()
    check_whole(log, place)


@server
def test_sinks_that_share_a_server_fill_a_new_store_once(log: Log, place: Place) -> None:
    filled(log, place)
    place.lose()
    first = place.start(instance_id="sink-0", batch_rows=100)
    first.wait_ready()
    place.wait_count(200)
    second = place.start(instance_id="sink-1", batch_rows=100)
    second.wait_ready()
    log.produce(500)
    first.end(signal.SIGKILL)
    check_whole(log, place)


@server
def test_a_server_that_comes_back_without_its_tables_is_filled_anew(
    log: Log, place: Place
) -> None:
    filled(log, place)
    sink = place.start(fault="away:1:2")
    sink.wait_ready()
    log.produce(200)
    sink.wait_for("fault: away")
    place.lose()
    assert sink.popen.wait(DEADLINE_SECONDS) == exit_codes.FAIL_STOP
    place.start().wait_ready()
    check_whole(log, place)


def group_of(log: Log) -> str:
    return f"{log.topics.prefix}tidemill-sink"


@server
def test_offsets_that_kafka_has_forgotten_double_no_row(
    log: Log, place: Place, kafka: str
) -> None:
    """As after a sink that was off for longer than `offsets.retention.minutes`."""
    filled(log, place)
    admin = AdminClient({"bootstrap.servers": kafka})

    def is_gone() -> bool:
        (future,) = admin.delete_consumer_groups([group_of(log)]).values()
        return future.exception(DEADLINE_SECONDS) is None

    # A member with an id of its own is kept for its session.
    wait_until(is_gone, DEADLINE_SECONDS, "the group is not deleted")
    log.produce(200)
    place.start().wait_ready()
    check_whole(log, place)


@embedded
@pytest.mark.parametrize("is_lost", [True, False])
def test_notes_of_an_earlier_version_hold_where_rows_are(
    log: Log, place: Place, kafka: str, *, is_lost: bool
) -> None:
    filled(log, place)
    admin = AdminClient({"bootstrap.servers": kafka})
    places = [
        TopicPartition(log.topics.events, number, offset)
        for number, offset in enumerate(log.ends())
    ]

    def is_written() -> bool:
        asked = ConsumerGroupTopicPartitions(group_of(log), places)
        (future,) = admin.alter_consumer_group_offsets([asked]).values()
        return future.exception(DEADLINE_SECONDS) is None

    wait_until(is_written, DEADLINE_SECONDS, "the notes are not written")
    if is_lost:
        place.lose()
    sink = place.start()
    sink.wait_ready()
    log.produce(200)
    check_whole(log, place)
    assert bool(told(sink)) is is_lost


@server
def test_a_log_that_was_made_again_is_read_from_its_start(
    log: Log, place: Place, kafka: str
) -> None:
    """Its offsets are those of other records: rows behind them say nothing of it."""
    log.produce(300)
    sink = place.start()
    sink.wait_ready()
    place.check(log)
    assert sink.end() == 0
    admin = AdminClient({"bootstrap.servers": kafka})
    (future,) = admin.delete_topics([log.topics.events]).values()
    future.result(DEADLINE_SECONDS)
    wait_until(
        lambda: log.topics.events not in admin.list_topics(timeout=DEADLINE_SECONDS).topics,
        DEADLINE_SECONDS, "the topic is still there",
    )
    again = Log(kafka, log.topics.prefix)
    again.skip(5_000)
    again.produce(1_500)
    place.start().wait_ready()
    wanted = len(log.events) + len(again.events)
    place.wait_count(wanted)


    assert place.count() == wanted
