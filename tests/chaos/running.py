"""An engine for tests that need one without faults, and what ended there.

Owns start, stop and the reading of `jobs.completed` and `jobs.dead` while they grow. Refuses to
know what a test sends.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import orjson
from confluent_kafka import TopicPartition

from tests.chaos.engine import Engine
from tests.chaos.rawlog import RawRecord, raw_of, reader
from tests.waiting import wait_until
from tidemill.agents.embedded.ports import free_port

SOURCE: Final = Path(__file__).resolve().parents[2]
PARTITIONS: Final = 4
END_SECONDS: Final = 60.0  # for jobs that take no time, on a busy machine

Job = tuple[str, str]


@contextmanager
def running_engine(
    folder: Path, modules: Sequence[str], *, ledgers: int = 2, workers: int = 1,
    with_history: bool = False, kafka: str | None = None,
) -> Iterator[Engine]:
    """A started engine, closed at the end whatever happens. `kafka` names a fresh broker that runs
    already; without one the engine has a broker of its own."""
    engine = Engine(
        folder, kafka_port=free_port(), clickhouse_port=free_port(), http_port=free_port(),
        source=SOURCE, modules=modules, ledgers=ledgers, workers=workers, partitions=PARTITIONS,
        with_history=with_history, kafka=kafka,
    )
    try:
        engine.start()
        yield engine
    finally:
        engine.close()


class Tail(threading.Thread):
    """Every record of a topic as it comes, in `records`; close it."""

    def __init__(self, kafka: str, topic: str, partitions: int = PARTITIONS) -> None:
        super().__init__(name=f"tail-{topic}", daemon=True)
        self.records: list[RawRecord] = []
        self._stop_asked = threading.Event()
        self._consumer = reader(kafka)
        self._consumer.assign([TopicPartition(topic, n, 0) for n in range(partitions)])

    def run(self) -> None:
        """Until `close`."""
        while not self._stop_asked.is_set():
            for message in self._consumer.consume(2_000, timeout=0.1):
                if message.error() is None:
                    self.records.append(raw_of(message))
        self._consumer.close()

    def close(self) -> None:
        """Stop reading."""
        self._stop_asked.set()
        self.join()


class Ends(Tail):
    """The records of `jobs.completed`."""

    def __init__(self, kafka: str) -> None:
        super().__init__(kafka, "jobs.completed")

    def bodies(self) -> list[dict[str, Any]]:
        """All ends so far."""
        return [orjson.loads(record.value or b"") for record in self.records]

    def of(self, job: Job) -> list[dict[str, Any]]:
        """The ends of one job: one, when all is well."""
        return [body for body in self.bodies() if (body["user_id"], body["job_id"]) == job]

    def wait_for(self, jobs: set[Job], timeout: float = END_SECONDS) -> dict[Job, dict[str, Any]]:
        """The end of each of `jobs`; an AssertionError names what is missing in time."""

        def missing() -> set[Job]:
            return jobs - {(body["user_id"], body["job_id"]) for body in self.bodies()}

        wait_until(lambda: not missing(), timeout, lambda: f"not ended: {sorted(missing())[:5]}")
        return {
            (body["user_id"], body["job_id"]): body
            for body in self.bodies()
            if (body["user_id"], body["job_id"]) in jobs
        }
