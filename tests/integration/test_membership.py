"""Members that come back: what they read may have changed, and so may what is there to read.

Owns the proof that "ready" means that work is done, for workers and ledgers over a real broker.
Refuses to know what is decided.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewPartitions

from tests.chaos.rawlog import read_topic
from tests.waiting import wait_until
from tidemill.agents import exit_codes
from tidemill.agents.settings import CommonSettings, load
from tidemill.agents.topics import TopicConflict, apply, plan
from tidemill.doctor.finding import Finding
from tidemill.doctor.kafka import as_planned, partitions
from tidemill.doctor.ledger import gaps, owned
from tidemill.doctor.workers import heard
from tidemill.schemas.topics import Topics

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 4
SECONDS = 40.0
SERVED_SECONDS = 2.0  # from "worker is ready" until a job of each of its queues has run

pytestmark = pytest.mark.timeout(180)


class Role:
    """A role's process as the command line starts it; its readiness can be waited for."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.log = folder / f"{words[0]}.log"
        self._log = self.log.open("a")
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tidemill", *words],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )
        self.ready: dict[str, Any] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            if '"role_ready"' in line:
                self.ready = orjson.loads(line)

    def told(self) -> str:
        return self.log.read_text()[-4000:]

    def wait_ready(self) -> dict[str, Any]:
        wait_until(lambda: self.ready or self.popen.poll() is not None, SECONDS, self.told)
        assert self.ready is not None, self.told()
        return self.ready

    def wait_told(self, text: str) -> None:
        wait_until(lambda: text in self.log.read_text(), SECONDS, self.told)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(20)

    def close(self) -> None:
        """Whatever the test has left of it."""
        self.stop(signal.SIGKILL)
        self._reader.join(20)
        self._log.close()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


@pytest.fixture
def start(kafka: str, topic_prefix: str, tmp_path: Path) -> Iterator[Callable[..., Role]]:
    """Starts roles; all are ended after the test."""
    roles: list[Role] = []

    def begin(role: str, *words: str) -> Role:
        common = ["--kafka", kafka, "--partitions", str(PARTITIONS), "--topic-prefix", topic_prefix]
        roles.append(Role(tmp_path, role, *words, *common))
        return roles[-1]

    yield begin
    for role in roles:
        role.close()


def module(folder: Path, *queues: str, before: str = "") -> str:
    """A file with a handler for each queue, and what runs before them."""
    lines = [before, "from tidemill import job", ""]
    for number, queue in enumerate(queues):
        lines += [
            f"@job('t.{queue}', queue={queue!r})",
            f"async def handler_{number}(payload: dict) -> None:",
            "    pass", "",
        ]
    path = folder / f"jobs_{'_'.join(queues).replace('-', '_').replace('.', '_')}.py"
    path.write_text("\n".join(lines))
    return str(path)


class Outcomes:
    """Sends ready packs as a ledger would, and waits for their outcomes."""

    def __init__(self, kafka: str, topics: Topics) -> None:
        self._topics = topics
        self._producer = Producer({"bootstrap.servers": kafka, "linger.ms": 0})
        self._reader = Consumer(
            {"bootstrap.servers": kafka, "group.id": f"{topics.prefix}test",
             "isolation.level": "read_committed"}
        )
        self._reader.assign([TopicPartition(topics.outcomes, 0, 0)])
        self._numbers = itertools.count()
        self._ended: set[str] = set()

    def close(self) -> None:
        self._reader.close()

    def send(self, queue: str, partition: int) -> str:
        """One job to one partition of a queue; its id."""
        job_id = f"{queue}-{next(self._numbers)}"
        job = {
            "user_id": "u", "job_id": job_id, "type": f"t.{queue}", "run": 1, "attempt": 1,
            "max_attempts": 3, "epoch": 1, "timeout_ms": 30_000, "requested_at": 1,
            "dispatched_at": 2, "payload": {},
        }
        pack = {"schema_version": 1, "ledger_partition": 0, "queue": queue, "jobs": [job]}
        self._producer.produce(self._topics.ready(queue), orjson.dumps(pack), partition=partition)
        assert not self._producer.flush(20)
        return job_id

    def wait(self, jobs: set[str], seconds: float, told: Callable[[], str]) -> None:
        def are_done() -> bool:
            while (record := self._reader.poll(0.05)) is not None:
                assert record.error() is None, record.error()
                pack = orjson.loads(record.value() or b"")
                self._ended |= {
                    outcome["job_id"] for outcome in pack["outcomes"]
                    if outcome["kind"] == "succeeded"
                }
            return jobs <= self._ended

        wait_until(are_done, seconds, lambda: f"{sorted(jobs - self._ended)}: {told()}")


@pytest.fixture
def outcomes(kafka: str, topic_prefix: str) -> Iterator[Outcomes]:
    topics = Topics(topic_prefix)
    apply(kafka, topics, PARTITIONS, ["default"])
    made = Outcomes(kafka, topics)
    yield made
    made.close()


def assert_served(outcomes: Outcomes, worker: Role, *queues: str) -> None:
    """A job in each partition of each queue runs soon."""
    ready = worker.wait_ready()
    assert ready["queues"] == sorted(queues)
    jobs = {outcomes.send(queue, partition) for queue in queues for partition in range(8)}
    outcomes.wait(jobs, SERVED_SECONDS, worker.told)


@pytest.mark.parametrize(
    ("former", "present"),
    [
        (["default"], ["default", "mail"]),
        (["default"], ["mail"]),
        (["default", "mail"], ["default"]),
        (["a", "b", "c"], ["b", "c.d", "e-f"]),
    ],
    ids=["added", "renamed", "removed", "all at once"],
)
def test_queues_that_change_between_two_starts_of_a_worker(
    start: Callable[..., Role], outcomes: Outcomes, tmp_path: Path, former: list[str],
    present: list[str],
) -> None:
    worker = start("worker", module(tmp_path, *former), "--worker-id", "w")
    assert_served(outcomes, worker, *former)
    worker.stop(signal.SIGKILL)
    again = start("worker", module(tmp_path, *present), "--worker-id", "w")
    assert_served(outcomes, again, *present)
    assert again.popen.poll() is None


# What a loaded process does: Faust asks where reading goes on when the next rebalance has begun,
# and after that the answer comes late.
LATE_PLACES = """
import asyncio
import sys
from tidemill.agents.runtime.transport import ChunkConsumer
begun, asked = asyncio.Event(), asyncio.Event()
seek, revoke = ChunkConsumer.perform_seek, ChunkConsumer.on_partitions_revoked

async def seek_late(self):
    is_first = not asked.is_set()
    await (begun.wait() if is_first else asyncio.sleep(0.5))
    try:
        await seek(self)
    finally:
        asked.set()
    print(f"placed, {is_first = }", file=sys.stderr, flush=True)

async def revoke_late(self, going):
    if going:
        begun.set()
        await asked.wait()
        await asyncio.sleep(0.1)
    await revoke(self, going)

ChunkConsumer.perform_seek, ChunkConsumer.on_partitions_revoked = seek_late, revoke_late
"""


def test_ready_is_told_of_the_assignment_that_stays(
    start: Callable[..., Role], outcomes: Outcomes, tmp_path: Path
) -> None:
    worker = start("worker", module(tmp_path, "default", "mail"), "--worker-id", "w")
    worker.wait_ready()
    worker.stop(signal.SIGKILL)
    late = module(tmp_path, "default", before=LATE_PLACES)
    again = start("worker", late, "--worker-id", "w")
    again.wait_ready()
    told = again.told()
    assert "does not fit" in told
    # Nothing was read of the assignment that was over, and ready means the one after it.
    assert "is_first = True" not in told
    assert "is_first = False" in told
    assert_served(outcomes, again, "default")


def test_a_worker_of_several_changes_its_queues_and_the_others_stay(
    kafka: str, topic_prefix: str, start: Callable[..., Role], outcomes: Outcomes, tmp_path: Path
) -> None:
    first = start("worker", module(tmp_path, "default", "old"), "--worker-id", "w-0")
    first.wait_ready()
    second = start("worker", module(tmp_path, "default"), "--worker-id", "w-1")
    second.wait_ready()
    # Whoever leads the group knows nothing of the new queue.
    first.stop()
    again = start("worker", module(tmp_path, "new", "default"), "--worker-id", "w-0")
    again.wait_ready()
    jobs = {outcomes.send(queue, number) for queue in ("default", "new") for number in range(8)}
    outcomes.wait(jobs, SERVED_SECONDS, again.told)
    # Unchanged, a return asks for no rebalance: it is as quick as it was.
    again.stop(signal.SIGKILL)
    once_more = start("worker", module(tmp_path, "new", "default"), "--worker-id", "w-0")
    once_more.wait_ready()
    jobs = {outcomes.send(queue, number) for queue in ("default", "new") for number in range(8)}
    outcomes.wait(jobs, SERVED_SECONDS, once_more.told)
    assert first.log.read_text().count("does not fit") == 1
    assert second.popen.poll() is None
    settings = settings_of(kafka, topic_prefix)
    wait_until(lambda: heard(settings).verdict == "ok", SECONDS, lambda: heard(settings).found)
    # One that is not understood.
    producer = Producer({"bootstrap.servers": kafka})
    producer.produce(Topics(topic_prefix).heartbeats, b'{"worker_id": 7}', b"from-later")
    assert producer.flush(20) == 0
    assert "from-later" in heard(settings).found


def settings_of(kafka: str, topic_prefix: str) -> CommonSettings:
    return load(CommonSettings, kafka=kafka, topic_prefix=topic_prefix, partitions=PARTITIONS)


# --- ledgers: topics that come late, partitions that are added ------------------------------------


def ask(kafka: str, topic: str, counts: dict[int, int], stem: str, **fields: str) -> set[str]:
    """That many records in each partition, all acknowledged; the job ids."""
    failures: list[str] = []
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 5, "acks": "all"})
    jobs = set()
    for partition, count in counts.items():
        for number in range(count):
            job_id = f"{stem}-{partition}-{number}"
            jobs.add(job_id)
            body = {"user_id": f"u-{number % 7}", "job_id": job_id} | fields
            producer.produce(
                topic, orjson.dumps(body), partition=partition,
                on_delivery=lambda error, _: failures.append(str(error)) if error else None,
            )
    assert producer.flush(20) == 0
    assert not failures
    return jobs


def told_of(kafka: str, topic: str) -> list[dict[str, Any]]:
    return [orjson.loads(record.value or b"{}") for record in read_topic(kafka, topic)]


def accepted(kafka: str, topics: Topics) -> list[str]:
    """The job ids of all that were accepted, each time that one was."""
    return [event["job_id"] for event in told_of(kafka, topics.events)
            if event["event"] == "requested"]


def grow(kafka: str, topic: str, partitions: int) -> None:
    """Somebody adds partitions, and sees them."""
    admin = AdminClient({"bootstrap.servers": kafka})
    for made in admin.create_partitions([NewPartitions(topic, partitions)]).values():
        made.result(20)
    wait_until(
        lambda: len(admin.list_topics(topic, timeout=20).topics[topic].partitions) == partitions,
        SECONDS, f"{topic} has not grown",
    )


def test_a_ledger_that_comes_before_its_topics_waits_and_serves(
    kafka: str, topic_prefix: str, start: Callable[..., Role], tmp_path: Path
) -> None:
    topics = Topics(topic_prefix)
    ledger = start("ledger", "--instance-id", "l-0")
    ledger.wait_told("waiting: topic")
    worker = start("worker", module(tmp_path, "default"), "--worker-id", "w")
    worker.wait_told("waiting: topic")
    assert (ledger.ready, worker.ready) == (None, None)
    apply(kafka, topics, PARTITIONS)
    assert ledger.wait_ready()["partitions"] == [0, 1, 2, 3]
    worker.wait_ready()
    jobs = ask(kafka, topics.requested, {0: 5, 3: 5}, "early", type="t.default")
    wait_until(
        lambda: jobs <= {body["job_id"] for body in told_of(kafka, topics.completed)},
        SERVED_SECONDS + 1, lambda: ledger.told() + worker.told(),  # 1: reading the whole topic
    )
    settings = settings_of(kafka, topic_prefix)
    assert owned(settings) == Finding("ledger inputs", "ok", "all 16 read")
    standby = start("ledger", "--instance-id", "l-1")
    more = [start("ledger", "--instance-id", f"l-{n}") for n in (2, 3, 4)]
    for one in (standby, *more):
        one.wait_ready()
    wait_until(
        lambda: "standby: other processes own all 4 partitions" in ledger.log.read_text(),
        SECONDS, ledger.told,
    )
    wait_until(
        lambda: owned(settings).found == "all 16 read, 1 on standby", SECONDS, standby.told
    )


def test_added_partitions_are_read_and_forwarded_home(
    kafka: str, topic_prefix: str, start: Callable[..., Role]
) -> None:
    topics = Topics(topic_prefix)
    apply(kafka, topics, PARTITIONS)
    ledger = start("ledger", "--instance-id", "l")
    ledger.wait_ready()
    run_at = (datetime.now(tz=UTC) + timedelta(days=1)).isoformat()
    ask_for = partial(ask, kafka, topics.requested, type="t", run_at=run_at)
    jobs = ask_for(dict.fromkeys(range(4), 5), "before")
    # 1. While it runs.
    grow(kafka, topics.requested, 6)
    grow(kafka, topics.commands, 7)
    jobs |= ask_for(dict.fromkeys(range(6), 10), "while")
    ask(kafka, topics.commands, {6: 1}, "before-0", command="cancel", job_id="before-0-0")

    def are_accepted() -> bool:
        return jobs <= set(accepted(kafka, topics))

    wait_until(are_accepted, SECONDS, ledger.told)
    wait_until(
        lambda: [body["job_id"] for body in told_of(kafka, topics.completed)] == ["before-0-0"],
        SECONDS, ledger.told,
    )
    # 2. After a restart, with what came meanwhile; nothing is decided twice.
    ledger.stop(signal.SIGKILL)
    jobs |= ask_for(dict.fromkeys(range(6), 3), "after")
    again = start("ledger", "--instance-id", "l")
    again.wait_ready()
    wait_until(are_accepted, SECONDS, again.told)
    assert sorted(accepted(kafka, topics)) == sorted(jobs)
    assert not [one for one in told_of(kafka, topics.events) if one["event"] == "duplicate_ignored"]
    assert plan(kafka, topics, PARTITIONS) == []
    settings = settings_of(kafka, topic_prefix)
    assert (as_planned(settings).verdict, owned(settings).verdict) == ("ok", "ok")
    assert f"{topics.requested} has 6" in partitions(settings).found
    # 3. An input in which a partition has a meaning ends it for good, with the reason.
    grow(kafka, topics.outcomes, 5)
    code = wait_until(again.popen.poll, SECONDS, again.told)
    assert code == exit_codes.CONFLICT, again.told()
    assert f"topic {topics.outcomes} has 5 partitions and needs 4" in again.told()
    once_more = start("ledger", "--instance-id", "l")
    assert wait_until(once_more.popen.poll, SECONDS, once_more.told) == exit_codes.CONFLICT
    assert partitions(settings).verdict == "failed"
    for told in (as_planned(settings), partitions(settings)):
        assert f"topic {topics.outcomes} has 5 partitions" in told.found
        assert "Do not delete the topic" in told.found
    with pytest.raises(TopicConflict, match="Do not delete the topic"):
        apply(kafka, topics, PARTITIONS)


def test_a_record_that_its_sender_dates_back_is_kept_by_the_broker_s_clock(
    kafka: str, topic_prefix: str
) -> None:
    topics = Topics(topic_prefix)
    apply(kafka, topics, PARTITIONS, ["default"])
    # As an installation of a former version has it.
    resource = ConfigResource(
        ResourceType.TOPIC, topics.requested,
        incremental_configs=[
            ConfigEntry("message.timestamp.type", "CreateTime",
                        incremental_operation=AlterConfigOpType.SET)
        ],
    )
    admin = AdminClient({"bootstrap.servers": kafka})
    for changed in admin.incremental_alter_configs([resource]).values():
        changed.result(20)
    (change,) = wait_until(lambda: plan(kafka, topics, PARTITIONS), SECONDS, "no difference")
    assert (change.topic, change.action) == (topics.requested, "configure")
    assert "message.timestamp.type CreateTime -> LogAppendTime" in change.detail
    apply(kafka, topics, PARTITIONS)
    week_ago = int((datetime.now(tz=UTC) - timedelta(days=8)).timestamp() * 1000)
    hour_ahead = int((datetime.now(tz=UTC) + timedelta(hours=2)).timestamp() * 1000)
    producer = Producer({"bootstrap.servers": kafka})
    failures: list[object] = []
    written = [topics.requested, topics.commands, topics.outcomes, topics.internal, topics.events,
               topics.ready("default"), topics.heartbeats]
    for topic in written:
        for at_ms in (week_ago, hour_ahead):
            producer.produce(topic, b"{}", partition=0, timestamp=at_ms,
                             on_delivery=lambda error, _: failures.append(error) if error else None)
    assert producer.flush(20) == 0
    assert not failures
    for topic in written:
        at = [record.timestamp for record in read_topic(kafka, topic)]
        assert len(at) == 2
        assert all(week_ago + 3_600_000 < one < hour_ahead - 3_600_000 for one in at), topic


def test_a_gap_in_an_input_ends_the_ledger_until_it_is_accepted(
    kafka: str, topic_prefix: str, start: Callable[..., Role], monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = Topics(topic_prefix)
    apply(kafka, topics, PARTITIONS)
    run_at = (datetime.now(tz=UTC) + timedelta(days=1)).isoformat()
    ask_for = partial(ask, kafka, topics.requested, type="t", run_at=run_at)
    first = start("ledger", "--instance-id", "l")
    first.wait_ready()
    # Nobody has read from partition 3 when its records go; of partition 2 a part was decided.
    jobs = ask_for({2: 3}, "decided")
    wait_until(lambda: jobs <= set(accepted(kafka, topics)), SECONDS, first.told)
    first.stop()
    lost = ask_for({2: 4, 3: 2}, "lost")
    admin = AdminClient({"bootstrap.servers": kafka})
    places = [TopicPartition(topics.requested, 2, 7), TopicPartition(topics.requested, 3, 2)]
    for deleted in admin.delete_records(places).values():
        deleted.result(20)
    found = gaps(settings_of(kafka, topic_prefix))
    assert found.verdict == "failed"
    assert f"{topics.requested} 2: 3 to 6; {topics.requested} 3: 0 to 1" in found.found
    again = start("ledger", "--instance-id", "l")
    assert wait_until(again.popen.poll, SECONDS, again.told) == exit_codes.GAP, again.told()
    assert "offsets were deleted before they were read" in again.told()
    monkeypatch.setenv("TIDEMILL_ACCEPT_GAPS", "true")
    accepting = start("ledger", "--instance-id", "l")
    accepting.wait_ready()
    after = ask_for({2: 2, 3: 2}, "after")
    wait_until(lambda: jobs | after <= set(accepted(kafka, topics)), SECONDS, accepting.told)
    assert not lost & set(accepted(kafka, topics))
    letters = {
        (head["tidemill.dead.partition"], head["tidemill.dead.offset"])
        for head in (dict(record.headers) for record in read_topic(kafka, topics.dead))
        if head["tidemill.dead.error.code"] == b"RECORDS_LOST"
    }
    assert letters == {(b"2", b"3"), (b"3", b"0")}
    accepting.stop()
    monkeypatch.delenv("TIDEMILL_ACCEPT_GAPS")
    # It was told once, and is no gap any more.
    last = start("ledger", "--instance-id", "l")
    last.wait_ready()
    wait_until(
        lambda: gaps(settings_of(kafka, topic_prefix)).verdict == "ok", SECONDS, last.told
    )
