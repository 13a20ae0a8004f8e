"""The worker's process against a real broker; the test plays the ledger.

Owns the proof that outcomes, offsets and give-backs are right through time-outs, kills and stops.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from tests.waiting import wait_until
from tidemill.agents.embedded.broker import Broker
from tidemill.agents.topics import apply
from tidemill.agents.worker.loading import load_modules
from tidemill.agents.worker.start import definition_value, publish_definitions
from tidemill.schemas.topics import READY_PARTITIONS, Topics

ROOT = Path(__file__).resolve().parents[2]
JOBS = Path(__file__).with_name("worker_jobs.py")
PARTITIONS = 4
SECONDS = 40.0
# What a reader is told while a broker is away.
AWAY = (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT)
RUN = (
    "import sys; from tidemill.agents.settings import WorkerSettings, load; "
    "from tidemill.agents.worker.main import run_worker; import json; "
    "sys.exit(run_worker(load(WorkerSettings, **json.loads(sys.argv[1])), sys.argv[2:]))"
)

pytestmark = pytest.mark.timeout(180)


class WorkerProcess:
    """A worker whose stdout can be waited for."""

    def __init__(
        self, kafka: str, prefix: str, log: Path, jobs: Path = JOBS, **settings: Any
    ) -> None:
        given = {"kafka": kafka, "topic_prefix": prefix, "worker_id": "w-0", "processes": 2}
        self._log = log.open("a")
        self.log = log
        self.popen = subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps(given | settings), str(jobs)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )
        self.is_ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            if '"role_ready"' in line:
                self.is_ready.set()

    def wait_ready(self) -> WorkerProcess:
        wait_until(
            lambda: self.is_ready.is_set() or self.popen.poll() is not None, SECONDS, self.told
        )
        assert self.is_ready.is_set(), self.told()
        return self

    def told(self) -> str:
        return "worker: " + self.log.read_text()[-4000:]

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        code = self.popen.wait(20)
        self._log.close()
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        return code


class Ledger:
    """Writes ready packs and reads outcomes, as a ledger would."""

    def __init__(self, kafka: str, topics: Topics) -> None:
        self.topics = topics
        self._producer = Producer({"bootstrap.servers": kafka, "linger.ms": 0})
        self._consumer = Consumer(
            {
                "bootstrap.servers": kafka, "group.id": f"{topics.prefix}ledger",
                "enable.auto.commit": False, "isolation.level": "read_committed",
            }
        )
        self._consumer.assign(
            [TopicPartition(topics.outcomes, number, 0) for number in range(PARTITIONS)]
        )
        self.outcomes: list[dict[str, Any]] = []
        self._numbers = iter(range(1_000_000))

    def close(self) -> None:
        self._consumer.close()

    def dispatch(
        self, *jobs: tuple[str, dict[str, Any]], queue: str = "default", partition: int = 0,
        timeout_ms: int = 30_000, epoch: int = 1,
    ) -> list[str]:
        """One ready record with these (type, payload); the job ids."""
        bodies = [
            {
                "user_id": "u-1", "job_id": f"j-{next(self._numbers)}", "type": type_name, "run": 1,
                "attempt": 1, "max_attempts": 3, "epoch": epoch, "timeout_ms": timeout_ms,
                "requested_at": 1, "dispatched_at": 2, "payload": payload,
            }
            for type_name, payload in jobs
        ]
        self.send(self.topics.ready(queue), partition, {
            "schema_version": 1, "ledger_partition": 2, "queue": queue, "jobs": bodies,
        })
        return [str(body["job_id"]) for body in bodies]

    def send(self, topic: str, partition: int, value: dict[str, Any]) -> None:
        self._producer.produce(topic, orjson.dumps(value), partition=partition)
        assert not self._producer.flush(20)

    def cancel(self, job_id: str) -> None:
        self.send(self.topics.control, 0, {
            "schema_version": 1, "word": "cancel", "user_id": "u-1", "job_id": job_id,
            "run": 1, "epoch": 1,
        })

    def read(self) -> None:
        """Take what there is."""
        while (record := self._consumer.poll(0.05)) is not None:
            if (problem := record.error()) is not None:
                assert problem.retriable() or problem.code() in AWAY, problem
                return
            assert record.partition() == 2
            assert record.key() is None
            pack = orjson.loads(record.value() or b"")
            self.outcomes.extend(pack["outcomes"])

    def of(self, job_id: str) -> list[dict[str, Any]]:
        return [outcome for outcome in self.outcomes if outcome["job_id"] == job_id]

    def read_of(self, job_id: str) -> list[dict[str, Any]]:
        """What is said of a job by now."""
        self.read()
        return self.of(job_id)

    def last(self, job_id: str, message: Callable[[], str]) -> dict[str, Any]:
        """The outcome that ended the attempt."""

        def ended() -> dict[str, Any] | None:
            self.read()
            last = [o for o in self.of(job_id) if o["kind"] not in ("started", "progressed")]
            return last[0] if last else None

        found = wait_until(ended, SECONDS, message)
        assert found is not None
        return found


@pytest.fixture
def topics(kafka: str, topic_prefix: str) -> Topics:
    topics = Topics(topic_prefix)
    apply(kafka, topics, PARTITIONS, ["default", "heavy"])
    return topics


@pytest.fixture
def ledger(kafka: str, topics: Topics) -> Iterator[Ledger]:
    ledger = Ledger(kafka, topics)
    yield ledger
    ledger.close()


Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(kafka: str, topics: Topics, tmp_path: Path) -> Iterator[Start]:
    started: list[WorkerProcess] = []

    def start_one(**settings: Any) -> WorkerProcess:
        log = tmp_path / f"worker-{len(started)}.log"
        process = WorkerProcess(kafka, topics.prefix, log, **settings)
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.stop(signal.SIGKILL)


def committed(kafka: str, topics: Topics, queue: str, partition: int) -> int:
    """The committed offset of the workers' group; -1 when there is none."""
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": f"{topics.prefix}tidemill-worker"}
    )
    try:
        place = TopicPartition(topics.ready(queue), partition)
        offset: int = consumer.committed([place], timeout=10)[0].offset
        return max(offset, -1)
    finally:
        consumer.close()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_all_kinds_and_all_ends(kafka: str, topics: Topics, ledger: Ledger, start: Start) -> None:
    worker = start().wait_ready()
    ids = ledger.dispatch(
        ("greet", {"name": "Ada"}), ("greet.thread", {"name": "Bob"}), ("raw", {"a": [1]}),
        ("greet", {"nam": "Ada"}), ("steer", {"how": "retry"}), ("steer", {"how": "give_up"}),
        ("steer", {"how": "skip"}), ("steer", {"how": "exit"}), ("steer", {"how": "large"}),
        ("steer", {"how": "odd"}), ("steer", {"how": "fault"}), ("nobody.knows", {}),
    )
    [in_process] = ledger.dispatch(("greet.process", {"name": "Cy"}), queue="heavy")
    ends = [ledger.last(job_id, worker.told) for job_id in ids]
    assert ends[0]["result"] == {"hello": "Ada", "key": f"u-1/{ids[0]}"}
    assert ends[0]["started_at"] <= ends[0]["finished_at"]
    assert ends[1]["result"] == {"hello": "Bob"}
    assert ends[2]["result"] == {"a": [1]}
    assert ends[3]["error"]["code"] == "INVALID_PAYLOAD"
    assert "payload.name" in ends[3]["error"]["message"]
    assert (ends[4]["error"]["retryable"], ends[4]["retry_after_ms"]) == (True, 7000)
    assert "no such card" in ends[5]["error"].pop("trace")
    assert ends[5]["error"] == {
        "code": "CARD_UNKNOWN", "message": "no such card", "retryable": False
    }
    assert (ends[6]["kind"], ends[6]["reason"]) == ("skipped", "nothing new")
    assert ends[7]["error"]["message"] == "SystemExit: 3"
    assert ends[8]["error"]["code"] == "RESULT_TOO_LARGE"
    assert ends[9]["error"]["code"] == "RESULT_NOT_JSON"
    assert ends[10]["error"]["code"] == "HANDLER_ERROR"
    assert "a fault of the handler" in ends[10]["error"]["trace"]
    assert "a fault of the handler" in worker.log.read_text()
    assert (ends[11]["kind"], ends[11]["reason"]) == ("returned", "type_not_run")
    end = ledger.last(in_process, worker.told)
    assert end["kind"] == "succeeded"
    assert end["result"]["pid"] != worker.popen.pid
    assert end["children"][0]["parent_job_id"] == in_process
    # A quick job writes its outcome and nothing else.
    assert [outcome["kind"] for outcome in ledger.of(ids[0])] == ["succeeded"]
    wait_until(lambda: committed(kafka, topics, "default", 0) == 1, SECONDS, worker.told)
    assert worker.stop() == 0


def test_process_handler_ends_truly_at_its_time_out(
    ledger: Ledger, start: Start, tmp_path: Path
) -> None:
    worker = start().wait_ready()
    for type_name, word in (("sleep.process", "unwound"), ("stubborn.process", "refused")):
        payload = {"folder": str(tmp_path), "seconds": 300}
        [job_id] = ledger.dispatch((type_name, payload), queue="heavy", timeout_ms=700)
        end = ledger.last(job_id, worker.told)
        assert end["error"]["code"] == "TIMEOUT", end
        assert end["error"]["retryable"]
        assert ledger.of(job_id)[0]["kind"] == "started"
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        # When the outcome is there, the process is gone, and all that it had started.
        assert [pid for pid in pids if is_alive(pid)] == []
        assert (tmp_path / word).exists()
    # The slots came back.
    ids = [ledger.dispatch(("greet.process", {"name": "x"}), queue="heavy")[0] for _ in range(2)]
    for job_id in ids:
        assert ledger.last(job_id, worker.told)["kind"] in ("succeeded", "returned")
    assert worker.stop() == 0


def test_a_copy_of_a_child_says_nothing_and_hides_no_death(ledger: Ledger, start: Start) -> None:
    worker = start(processes=1).wait_ready()
    # Each job gets its own end, and no other's.
    for word in ("one", "two", "three"):
        [job_id] = ledger.dispatch(("fork.process", {"folder": word}), queue="heavy")
        end = ledger.last(job_id, worker.told)
        assert end.get("result", end) == word
    # A copy ends when its own parent says so.
    [pool] = ledger.dispatch(("pool.process", {}), queue="heavy")
    assert ledger.last(pool, worker.told)["result"] == -signal.SIGTERM
    [left] = ledger.dispatch(("leave.process", {"folder": "x"}), queue="heavy")
    assert ledger.last(left, worker.told)["error"]["code"] == "PROCESS_DIED"
    assert worker.stop() == 0


def test_a_child_that_dies_is_a_failed_attempt(ledger: Ledger, start: Start) -> None:
    worker = start(processes=1).wait_ready()
    [dead] = ledger.dispatch(("die.process", {}), queue="heavy")
    end = ledger.last(dead, worker.told)
    assert end["error"]["code"] == "PROCESS_DIED"
    assert "exit code 9" in end["error"]["message"]
    assert end["error"]["retryable"]
    assert worker.stop() == 0


def test_time_outs_on_loop_and_thread_and_cancel(
    ledger: Ledger, start: Start, tmp_path: Path
) -> None:
    worker = start().wait_ready()
    payload = {"folder": str(tmp_path), "seconds": 300}
    in_time = ledger.dispatch(("sleep", payload), ("sleep.thread", payload), timeout_ms=600)
    for job_id in in_time:
        assert ledger.last(job_id, worker.told)["error"]["code"] == "TIMEOUT"
    to_cancel = ledger.dispatch(("sleep", payload), ("sleep.thread", payload))
    to_cancel += ledger.dispatch(("sleep.process", payload), queue="heavy")

    def all_started() -> bool:
        ledger.read()
        return all(ledger.of(job_id) for job_id in to_cancel)

    wait_until(all_started, SECONDS, worker.told)
    for job_id in to_cancel:
        ledger.cancel(job_id)
    for job_id in to_cancel:
        end = ledger.last(job_id, worker.told)
        assert (end["error"]["code"], end["error"]["retryable"]) == ("CANCELLED", False), end
    told = [o for o in ledger.of(to_cancel[1]) if o["kind"] == "progressed"]
    assert all(o["progress"] == {"percent": 50.0, "stage": "sleeping"} for o in told)
    assert worker.stop() == 0


def test_a_killed_worker_leaves_its_records_to_the_next(
    kafka: str, topics: Topics, ledger: Ledger, start: Start, tmp_path: Path
) -> None:
    first = start(concurrency=1).wait_ready()
    payload = {"folder": str(tmp_path), "seconds": 300}
    # One slot: the first job says that it started, so its record is settled; what waits behind it
    # in the next record is not, and must come again.
    [long] = ledger.dispatch(("sleep", payload))
    wait_until(lambda: ledger.read_of(long), SECONDS, first.told)
    wait_until(lambda: committed(kafka, topics, "default", 0) == 1, SECONDS, first.told)
    quick = ledger.dispatch(("greet", {"name": "a"}), ("greet", {"name": "b"}))
    first.stop(signal.SIGKILL)
    second = start().wait_ready()
    for job_id in quick:
        ends = ledger.last(job_id, second.told)
        if ends["kind"] == "returned":
            # It had been handed back before the kill: that settles it too.
            continue
        assert ends["kind"] == "succeeded"
    wait_until(lambda: committed(kafka, topics, "default", 0) == 2, SECONDS, second.told)
    # The record of the long job was committed: the ledger rescues it, the log does not repeat it.
    assert (tmp_path / "began").read_text().count("\n") == 1
    assert second.stop() == 0


def test_only_the_contiguous_prefix_is_committed(
    kafka: str, topics: Topics, ledger: Ledger, start: Start, tmp_path: Path
) -> None:
    worker = start(concurrency=1, stop_grace_seconds=0).wait_ready()
    payload = {"folder": str(tmp_path), "seconds": 300}
    # Record 0: a job that runs and one that waits behind it. Record 1: done at once, by a thread.
    [running, waiting] = ledger.dispatch(("sleep", payload), ("greet", {"name": "late"}))
    [quick] = ledger.dispatch(("greet.thread", {"name": "quick"}))
    assert ledger.last(quick, worker.told)["kind"] == "succeeded"
    # The one that waited is given back after a second, which settles record 0 as well.
    if not ledger.of(waiting):
        assert committed(kafka, topics, "default", 0) <= 0
    assert ledger.last(waiting, worker.told)["reason"] == "no_free_slot"
    wait_until(lambda: committed(kafka, topics, "default", 0) == 2, SECONDS, worker.told)
    assert [o["kind"] for o in ledger.of(running)] == ["started"]
    assert worker.stop() == 0


def test_graceful_stop_finishes_or_gives_back(
    kafka: str, topics: Topics, ledger: Ledger, start: Start, tmp_path: Path
) -> None:
    worker = start(stop_grace_seconds=3).wait_ready()
    folder = str(tmp_path)
    [short, long, in_thread] = ledger.dispatch(
        ("sleep", {"folder": folder, "seconds": 2}), ("sleep", {"folder": folder, "seconds": 300}),
        ("sleep.thread", {"folder": folder, "seconds": 300}),
    )
    [in_process] = ledger.dispatch(
        ("sleep.process", {"folder": folder, "seconds": 300}), queue="heavy"
    )

    def all_started() -> bool:
        ledger.read()
        return all(ledger.of(job_id) for job_id in (short, long, in_thread, in_process))

    wait_until(all_started, SECONDS, worker.told)
    began = time.monotonic()
    assert worker.stop() == 0, worker.told()
    assert time.monotonic() - began < 8
    assert ledger.last(short, worker.told)["kind"] == "succeeded"
    for job_id in (long, in_thread, in_process):
        end = ledger.last(job_id, worker.told)
        assert (end["kind"], end.get("reason")) == ("returned", "interrupted")
        kinds = [outcome["kind"] for outcome in ledger.of(job_id)]
        assert [kind for kind in kinds if kind != "progressed"] == ["started", "returned"]
    for pid in (tmp_path / "pids").read_text().split():
        assert not is_alive(int(pid))
    assert committed(kafka, topics, "default", 0) == 1
    assert committed(kafka, topics, "heavy", 0) == 1


def test_a_stop_of_all_its_processes_lets_a_child_finish(
    ledger: Ledger, start: Start, tmp_path: Path
) -> None:
    worker = start(stop_grace_seconds=20, processes=1).wait_ready()
    payload = {"folder": str(tmp_path), "seconds": 3}
    [job_id] = ledger.dispatch(("finish.process", payload), queue="heavy")
    began = tmp_path / "began"
    wait_until(lambda: began.exists() and began.read_text(), SECONDS, worker.told)
    child = int(began.read_text())
    os.kill(child, signal.SIGTERM)  # as a service manager does: to each process of the group
    assert worker.stop() == 0, worker.told()
    assert ledger.last(job_id, worker.told).get("result") == "finished"


def test_calls_that_never_return_hold_up_neither_outcomes_nor_the_end(
    ledger: Ledger, start: Start
) -> None:
    worker = start(stop_grace_seconds=1).wait_ready()
    payload = {"folder": "", "seconds": 600}
    # More than the threads of asyncio's default pool on any machine.
    hung = ledger.dispatch(*[("hang.aside", payload)] * 40, timeout_ms=500)
    for job_id in hung:
        assert ledger.last(job_id, worker.told)["error"]["code"] == "TIMEOUT"
    large = ledger.dispatch(*[("long.text", {"length": 200_000})] * 8)
    for job_id in large:
        assert len(ledger.last(job_id, worker.told)["result"]) == 200_000
    assert worker.stop() == 0
    assert "the process ends without its threads" in worker.log.read_text()


def test_an_exit_in_a_task_of_a_handler_is_a_failed_attempt(ledger: Ledger, start: Start) -> None:
    worker = start().wait_ready()
    [left, after] = ledger.dispatch(("exit.in_task", {}), ("greet", {"name": "after"}))
    assert ledger.last(left, worker.told)["error"]["message"] == "SystemExit: 3"
    assert ledger.last(after, worker.told)["kind"] == "succeeded"
    assert worker.stop() == 0, worker.told()


def test_a_cancel_while_the_worker_starts_reaches_it(
    ledger: Ledger, start: Start, tmp_path: Path
) -> None:
    # What a worker that ended in order has not taken is new: it begins without the ledger's word.
    assert start().wait_ready().stop() == 0
    [job_id] = ledger.dispatch(("sleep", {"folder": str(tmp_path), "seconds": 300}))
    ledger.cancel(job_id)
    worker = start().wait_ready()
    end = ledger.last(job_id, worker.told)
    assert end.get("error", end).get("code") == "CANCELLED", end
    assert worker.stop() == 0


def test_a_rebalance_runs_nothing_twice(
    kafka: str, topics: Topics, ledger: Ledger, start: Start, tmp_path: Path
) -> None:
    first = start().wait_ready()
    folder = str(tmp_path)
    running = [
        ledger.dispatch(("sleep", {"folder": folder, "seconds": 8}), partition=number)[0]
        for number in range(READY_PARTITIONS)
    ]
    wait_until(
        lambda: (tmp_path / "began").exists()
        and (tmp_path / "began").read_text().count("\n") == READY_PARTITIONS,
        SECONDS, first.told,
    )
    second = start(worker_id="w-1").wait_ready()
    later = [
        ledger.dispatch(("greet", {"name": "x"}), partition=number)[0]
        for number in range(READY_PARTITIONS)
    ]
    for job_id in [*running, *later]:
        assert ledger.last(job_id, lambda: first.told() + second.told())["kind"] == "succeeded"
    assert (tmp_path / "began").read_text().count("\n") == READY_PARTITIONS
    for job_id in [*running, *later]:
        kinds = [o["kind"] for o in ledger.of(job_id)]
        assert kinds in (["succeeded"], ["started", "succeeded"])
    assert second.stop() == 0
    assert first.stop() == 0


def test_workers_of_different_queues_share_one_group(ledger: Ledger, start: Start) -> None:
    light, heavy = start(queues="default"), start(queues="heavy", worker_id="w-1")
    light.wait_ready()
    heavy.wait_ready()
    ids = [
        ledger.dispatch((type_name, {"name": "x"}), queue=queue, partition=number)[0]
        for number in range(READY_PARTITIONS)
        for type_name, queue in (("greet", "default"), ("greet", "heavy"))
    ]
    for job_id in ids:
        end = ledger.last(job_id, lambda: light.told() + heavy.told())
        assert end["kind"] == "succeeded"
        assert len(ledger.of(job_id)) == 1
    assert light.stop() == 0
    assert heavy.stop() == 0


def test_outcomes_outlive_a_broker_that_is_killed(
    own_broker: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    own_broker.start()
    kafka, topics = own_broker.bootstrap, Topics(topic_prefix)
    apply(kafka, topics, PARTITIONS, ["default", "heavy"])
    ledger = Ledger(kafka, topics)
    worker = WorkerProcess(kafka, topic_prefix, tmp_path / "worker.log")
    try:
        worker.wait_ready()
        payload = {"folder": str(tmp_path), "seconds": 2}
        [job_id] = ledger.dispatch(("sleep", payload))
        wait_until(lambda: (tmp_path / "began").exists(), SECONDS, worker.told)
        own_broker.kill()
        # It ends while there is no broker; its outcome waits.
        wait_until(lambda: (tmp_path / "ended").exists(), SECONDS, worker.told)
        own_broker.start()
        assert ledger.last(job_id, worker.told)["result"] == "slept"
        [later] = ledger.dispatch(("greet", {"name": "after"}))
        assert ledger.last(later, worker.told)["kind"] == "succeeded"
        assert (tmp_path / "began").read_text().count("\n") == 1
        assert worker.stop() == 0
    finally:
        worker.stop(signal.SIGKILL)
        ledger.close()


def test_definitions_cost_a_start_no_half_second(kafka: str, topics: Topics) -> None:
    definitions = {each.type: definition_value(each) for each in load_modules([str(JOBS)])}
    seconds = []
    for _ in range(3):
        begun = time.monotonic()
        publish_definitions(kafka, topics.definitions, definitions)
        seconds.append(time.monotonic() - begun)
    # An idempotent producer waits half a second for its number, whatever the machine does.
    assert min(seconds) < 0.4, seconds


def test_beats_and_definitions(kafka: str, topics: Topics, start: Start) -> None:
    worker = start(queues="heavy", concurrency=50, threads=3).wait_ready()
    beats: list[dict[str, Any]] = []
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": f"{topics.prefix}beats"}
    )
    consumer.assign([TopicPartition(topics.heartbeats, 0, 0)])

    def read(wanted: Callable[[dict[str, Any]], bool]) -> bool:
        while (record := consumer.poll(0.05)) is not None:
            assert record.key() == b"w-0"
            beats.append(orjson.loads(record.value() or b""))
        return any(wanted(beat) for beat in beats)

    wait_until(
        lambda: read(
            lambda beat: beat["queues"]["heavy"]
            == {
                "kinds": {
                    "async": {"slots": 50, "free": 50}, "thread": {"slots": 3, "free": 3},
                    "process": {"slots": 2, "free": 2},
                },
                "partitions": list(range(READY_PARTITIONS)),
            }
        ),
        SECONDS, worker.told,
    )
    assert list(beats[0]["queues"]) == ["heavy"]
    assert worker.stop() == 0
    assert read(lambda beat: bool(beat["is_stopping"]))
    consumer.close()
    reader = Consumer({"bootstrap.servers": kafka, "group.id": f"{topics.prefix}defs"})
    reader.assign([TopicPartition(topics.definitions, 0, 0)])
    known: dict[str, dict[str, Any]] = {}
    while (record := reader.poll(1.0)) is not None:
        known[(record.key() or b"").decode()] = orjson.loads(record.value() or b"")
    reader.close()
    assert known["greet"]["limits"] == [
        {"limit": 10, "window_ms": 60_000, "over": "delay", "by": "user"}
    ]
    assert known["greet"]["payload_schema"]["required"] == ["name"]
    assert known["greet.process"]["runs_as"] == "process"
    assert known["raw"]["payload_schema"] is None
    assert os.getpid() != worker.popen.pid
