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
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from agents.topics import apply
from schemas.topics import Topics
from tests.waiting import wait_until

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
        threading.Thread(target=self._read, daemon=True).start()

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
        code = self.popen.wait(20)
        self._log.close()
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        return code


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
        if role.popen.poll() is None:
            role.stop(signal.SIGKILL)


def module(folder: Path, *queues: str) -> str:
    """A file with a handler for each queue."""
    lines = ["from tidemill import job", ""]
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


def test_a_worker_of_several_changes_its_queues_and_the_others_stay(
    start: Callable[..., Role], outcomes: Outcomes, tmp_path: Path
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
