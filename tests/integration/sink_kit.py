"""What the sink's tests share: a log to produce, sinks in processes of their own, and what the
tables must say. The tests are in `test_sink` and `test_lost_store`.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from benchmarks.event_log import make_events
from tests.waiting import wait_until
from tidemill.agents import topics as topics_
from tidemill.agents.clickhouse.engine import open_engine
from tidemill.agents.crash import CRASH_VARIABLE
from tidemill.agents.embedded.ports import free_port
from tidemill.schemas.dead import dead_headers
from tidemill.schemas.event_writer import Event
from tidemill.schemas.topics import Topics

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("sink_process.py")
PARTITIONS = 4
DEADLINE_SECONDS = 60.0
EVENT_COLUMNS = "kafka_partition, event, count() AS events"


class Log:
    """What was produced to `jobs.events`, and how to produce more."""

    def __init__(self, kafka: str, prefix: str) -> None:
        self.topics = Topics(prefix)
        self._kafka = kafka
        topics_.apply(kafka, self.topics, PARTITIONS)
        self._producer = Producer(
            {"bootstrap.servers": kafka, "transactional.id": f"{prefix}ledger", "linger.ms": 20}
        )
        self._producer.init_transactions()
        self.events: list[tuple[int, Event]] = []
        self.refused = 0
        self._lives = make_events(1_000_000, partitions=PARTITIONS)

    def produce(self, count: int, group: int = 500) -> None:
        """`count` more events, in transactions of `group` with an aborted one after each."""
        wanted = list(itertools.islice(self._lives, count))
        for begin in range(0, count, group):
            self._producer.begin_transaction()
            for partition, event, value in wanted[begin : begin + group]:
                self.put(value, partition, event.user_id.encode())
            self._producer.commit_transaction()
            self._producer.begin_transaction()
            self.put(b'{"schema_version":1,"never":"seen"}', begin % PARTITIONS, b"user")
            self._producer.flush()
            self._producer.abort_transaction()
        self.events += [(partition, event) for partition, event, _ in wanted]

    def skip(self, count: int) -> None:
        """The next events are others than those of a log that was made in the same way."""
        next(itertools.islice(self._lives, count, count), None)

    def put(self, value: bytes | None, partition: int, key: bytes, **more: Any) -> None:
        self._producer.produce(self.topics.events, value, key, partition, **more)

    def produce_bad(self, values: Sequence[bytes | None], partition: int) -> None:
        """Records that are no events, with a header, in one transaction."""
        self._producer.begin_transaction()
        for value in values:
            self.put(value, partition, b"key", headers=[("trace", b"1")])
        self._producer.commit_transaction()

    def produce_refused(self, count: int) -> None:
        """Dead letters of refused requests, each with a failed job's beside it and an aborted one
        behind it."""
        for number in range(count):
            partition = number % PARTITIONS
            self._producer.begin_transaction()
            for stage in ("request", "attempt"):
                headers = dead_headers(
                    [], topic="jobs.requested", partition=partition, offset=self.refused + number,
                    timestamp=1_764_000_000_000, stage=stage, code="INVALID_FIELD",
                    message="field 'x': no\x1b[2J", field="x", user_id="u",
                )
                self._put_dead(b'{"card":"\x1b[31m\xff"}', partition, headers)
            self._producer.commit_transaction()
            self._producer.begin_transaction()
            self._put_dead(b"never seen", partition, [])
            self._producer.flush()
            self._producer.abort_transaction()
        self.refused += count

    def _watermarks(self) -> list[tuple[int, int]]:
        consumer = Consumer({"bootstrap.servers": self._kafka, "group.id": "none"})
        places = [TopicPartition(self.topics.events, number) for number in range(PARTITIONS)]
        found = [consumer.get_watermark_offsets(place, DEADLINE_SECONDS) for place in places]
        consumer.close()
        return [(int(start), int(end)) for start, end in found]

    def ends(self) -> list[int]:
        """Behind the last offset of each partition, markers included."""
        return [end for _, end in self._watermarks()]

    def starts(self) -> list[int]:
        """The first offset that each partition has."""
        return [start for start, _ in self._watermarks()]

    def delete_before(self, offsets: list[int]) -> None:
        """As retention does."""
        admin = AdminClient({"bootstrap.servers": self._kafka})
        places = [
            TopicPartition(self.topics.events, number, offset)
            for number, offset in enumerate(offsets)
        ]
        for future in admin.delete_records(places).values():
            future.result(DEADLINE_SECONDS)

    def committed(self) -> list[int]:
        """How far the sink's group is."""
        consumer = Consumer(
            {"bootstrap.servers": self._kafka, "group.id": f"{self.topics.prefix}tidemill-sink"}
        )
        places = [TopicPartition(self.topics.events, number) for number in range(PARTITIONS)]
        found = consumer.committed(places, DEADLINE_SECONDS)
        consumer.close()
        return [place.offset for place in found]

    def _put_dead(self, value: bytes, partition: int, headers: Any) -> None:
        self._producer.produce(self.topics.dead, value, b"key", partition, headers=headers)

    # What the tables must say, counted from what was produced.

    def by_event(self) -> dict[tuple[int, str], int]:
        return dict(Counter((partition, str(event.kind)) for partition, event in self.events))

    def by_status(self) -> dict[str, int]:
        latest = {(event.user_id, event.job_id): event for _, event in self.events}
        return dict(Counter(str(event.state_after) for event in latest.values()))

    def by_minute(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        found: dict[tuple[str, str, str], tuple[int, int]] = {}
        for _, event in self.events:
            key = (event.type, str(event.kind), (event.error or {}).get("code", ""))
            count, run_ms = found.get(key, (0, 0))
            found[key] = (count + 1, run_ms + (event.run_ms or 0))
        return found


class SinkProcess:
    """A sink in a process of its own, whose words can be waited for."""

    def __init__(self, role: str, settings: dict[str, Any], env: dict[str, str]) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.popen = subprocess.Popen(
            [sys.executable, str(SCRIPT), role, json.dumps(settings)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()

    def wait_for(self, text: str) -> str:
        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None, DEADLINE_SECONDS)
        line = found()
        assert line is not None, f"{text!r} never came:\n" + "\n".join(self.lines)
        return line

    def wait_ready(self) -> None:
        self.wait_for('"role_ready"')

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        code = self.popen.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        return code


class Place:
    """An engine, the sinks over it, and questions to it."""

    def __init__(self, server: str | None, kafka: str, prefix: str, folder: Path) -> None:
        self._base: dict[str, Any] = {
            "kafka": kafka, "topic_prefix": prefix, "instance_id": "sink-0",
            "partitions": PARTITIONS,
        }
        self._processes: list[SinkProcess] = []
        self.folder = folder
        if server is None:
            self._role, self._base["clickhouse"] = "stack", f"chdb://{folder}"
            self._base["clickhouse_port"] = free_port()
            self._base["http_port"] = free_port()
            self._server = None
            return
        database = f"t{uuid.uuid4().hex[:10]}"
        self._role = "sink"
        self._server = open_engine(f"{server}/default")
        self._server.command(f"CREATE DATABASE {database}")
        self._server = open_engine(f"{server}/{database}")
        self._base["clickhouse"] = f"{server}/{database}"

    def start(self, *, crash_at: str = "", fault: str = "", **settings: Any) -> SinkProcess:
        env = {CRASH_VARIABLE: crash_at, "SINK_FAULT": fault}
        defaults = {"batch_rows": 400, "batch_seconds": 0.2}
        process = SinkProcess(self._role, {**self._base, **defaults, **settings}, env)
        self._processes.append(process)
        return process

    def query(self, sql: str) -> list[dict[str, Any]]:
        if self._server is not None:
            return self._server.query(sql)
        url = f"http://127.0.0.1:{self._base['clickhouse_port']}/"
        asked = urllib.request.Request(url, f"{sql} FORMAT JSONEachRow".encode())
        with urllib.request.urlopen(asked, timeout=DEADLINE_SECONDS) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    def count(self) -> int:
        return int(self.query("SELECT count() AS n FROM job_events")[0]["n"])

    def wait_rows(self, log: Log) -> None:
        """Until everything is there, or more. A view's rows show a moment after those it reads."""
        wanted = len(log.events)
        self.wait_count(wanted)
        latest = {(event.user_id, event.job_id): event.sequence for _, event in log.events}
        for sql, least in (
            ("SELECT sum(events) AS n FROM job_minutes", wanted),
            ("SELECT sum(sequence) AS n FROM jobs", sum(s or 0 for s in latest.values())),
        ):
            wait_until(
                lambda sql=sql, least=least: int(self.query(sql)[0]["n"]) >= least,  # type: ignore[misc]
                DEADLINE_SECONDS, sql,
            )

    def wait_count(self, wanted: int) -> None:
        """Until so many rows are there, or more."""
        wait_until(lambda: self.count() >= wanted, DEADLINE_SECONDS, lambda: f"{self.count()} rows")

    def check(self, log: Log) -> None:
        """Every table says what the log says."""
        self.wait_rows(log)
        distinct = self.query(
            "SELECT count() AS n, uniqExact(kafka_partition, kafka_offset) AS u FROM job_events"
        )[0]
        assert int(distinct["n"]) == int(distinct["u"]) == len(log.events)
        rows = self.query(f"SELECT {EVENT_COLUMNS} FROM job_events GROUP BY kafka_partition, event")
        found = {(r["kafka_partition"], r["event"]): int(r["events"]) for r in rows}
        assert found == log.by_event()
        rows = self.query("SELECT status, count() AS jobs FROM jobs GROUP BY status")
        assert {r["status"]: int(r["jobs"]) for r in rows} == log.by_status()
        rows = self.query(
            "SELECT type, event, error_code, sum(events) AS n, sum(run_ms_sum) AS run_ms"
            " FROM job_minutes GROUP BY type, event, error_code"
        )
        minutes = {
            (r["type"], r["event"], r["error_code"]): (int(r["n"]), int(r["run_ms"])) for r in rows
        }
        assert minutes == log.by_minute()

    def check_refused(self, log: Log) -> None:
        """Each refused record is one row, and no failed job is."""
        said = (
            "SELECT count() AS n, uniqExact(kafka_partition, kafka_offset) AS u,"
            " uniqExact(source_offset) AS s FROM refused_requests"
        )
        wait_until(
            lambda: int(self.query(said)[0]["n"]) >= log.refused, DEADLINE_SECONDS,
            lambda: f"{self.query(said)} of {log.refused}",
        )
        row = self.query(said)[0]
        assert int(row["n"]) == int(row["u"]) == int(row["s"]) == log.refused
        assert not self.query("SELECT 1 FROM refused_requests WHERE stage != 'request'")

    def wait_committed(self, log: Log) -> None:
        """Until the group is at the end of the log, behind the last marker."""
        wait_until(
            lambda: log.committed() == log.ends(), DEADLINE_SECONDS,
            lambda: f"{log.committed()} of {log.ends()}",
        )

    def lose(self, what: str = "") -> None:
        """The store is gone, `what` (a folder of an embedded one) or all of it; no sink runs."""
        if self._server is None:
            shutil.rmtree(self.folder / what)
            return
        database = self._base["clickhouse"].rpartition("/")[2]
        self._server.command(f"DROP DATABASE {database}", settings={"database": "default"})
        self._server.command(f"CREATE DATABASE {database}", settings={"database": "default"})

    @property
    def url(self) -> str:
        """Of the embedded port; "" over a server."""
        return "" if self._server else f"http://127.0.0.1:{self._base['clickhouse_port']}"

    def close(self) -> None:
        for process in self._processes:
            process.end(signal.SIGKILL)
            assert process.popen.stdout is not None
            process.popen.stdout.close()
        if self._server is not None:
            self._server.command(f"DROP DATABASE {self._base['clickhouse'].rpartition('/')[2]}")
            self._server.close()
