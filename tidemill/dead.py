"""Dead letters for a person: refused records and failed jobs in one list, each with a way out.

Owns the form of an entry and the way out of each kind. Refuses to know how it is shown. It asks
ClickHouse, or reads `jobs.dead` itself where there is no ClickHouse.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any, Final

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from tidemill.agents.queries import load
from tidemill.agents.runtime.clients import client_settings
from tidemill.agents.sink.dead_records import FAILED_JOB, row_of
from tidemill.schemas.dead import PREFIX
from tidemill.schemas.safe_text import safe_line, safe_text
from tidemill.schemas.topics import Topics
from tidemill.sql import query_rows

READ_SECONDS: Final = 30.0  # without any record: then the topic counts as unreadable
POLL_SECONDS: Final = 0.5
METADATA_SECONDS: Final = 10.0
IDS: Final = re.compile(r"^(\d{1,9})/(\d{1,19})$")

Entry = dict[str, Any]

_WAYS_OUT: Final = {
    "request": "mend {what} and send the request again",
    "command": "look the ids up with `tidemill jobs list`, then send the command again",
    "outcome": "run ledger and workers of one release; the attempt is rescued by itself",
    "event": "upgrade the sink, then produce the record again",
    "message": "no ledger wrote it: ask who else writes to jobs.internal",
    "unknown": "no part of Tidemill wrote it: ask who else writes to this topic",
}


def list_dead(clickhouse: str, limit: int) -> list[Entry]:
    """The newest dead letters, as ClickHouse has them. Raises SqlError."""
    params = {"limit": str(limit)}
    rows = query_rows(clickhouse, load("refused_requests").sql, params)
    refused = [_refused(row) for row in rows]
    failed = [_failed(row) for row in query_rows(clickhouse, load("dead_letters").sql, params)]
    # A refused request whose job could be read is there twice: its record says more.
    told = {(e["user_id"], e["job_id"], e["code"]) for e in refused if e["job_id"]}
    failed = [e for e in failed if (e["user_id"], e["job_id"], e["code"]) not in told]
    return sorted(refused + failed, key=lambda entry: str(entry["at"]), reverse=True)[:limit]


def show_refused(clickhouse: str, partition: int, offset: int) -> Entry | None:
    """One refused record with its key and value; None when there is none. Raises SqlError."""
    params = {"kafka_partition": str(partition), "kafka_offset": str(offset)}
    rows = query_rows(clickhouse, load("refused_request").sql, params)
    return _refused(rows[0]) if rows else None


def show_failed(clickhouse: str, job_id: str, user_id: str | None) -> list[Entry]:
    """The dead jobs with this id, one a user. Raises SqlError."""
    params = {"job_id": job_id, "user_id": user_id or "", "limit": "100"}
    rows = query_rows(clickhouse, load("job").sql, params)
    return [
        _failed(row | {"at": row["finished_at"] or row["updated_at"]})
        for row in rows if row["status"] == "failed"
    ]


def read_topic(kafka: str, prefix: str) -> Iterator[Entry]:
    """Every dead letter of the topic, partition by partition. Raises KafkaException."""
    topic = Topics(prefix).dead
    consumer = Consumer(
        client_settings(
            kafka, "tidemill-dead",
            {
                "group.id": "tidemill-dead", "enable.auto.commit": False,
                "isolation.level": "read_committed", "enable.partition.eof": True,
            },
        )
    )
    try:
        found = consumer.list_topics(topic, METADATA_SECONDS).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        places = []
        for partition in found.partitions:
            place = TopicPartition(topic, partition)
            start, _ = consumer.get_watermark_offsets(place, METADATA_SECONDS)
            places.append(TopicPartition(topic, partition, start))
        consumer.assign(places)
        yield from _read(consumer, len(places))
    finally:
        consumer.close()


def _read(consumer: Consumer, partitions: int) -> Iterator[Entry]:
    idle = 0.0
    while partitions:
        message = consumer.poll(POLL_SECONDS)
        if message is None:
            idle += POLL_SECONDS
            if idle >= READ_SECONDS:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            continue
        idle = 0.0
        error = message.error()
        if error is None:
            yield _of_record(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            partitions -= 1
        else:
            raise KafkaException(error)


class _Read:
    """A message as the sink reads a record."""

    def __init__(self, message: Message) -> None:
        self.offset: int = message.offset() or 0
        self.timestamp: int = message.timestamp()[1]
        self.key: bytes | None = message.key()
        self.value: bytes | None = message.value()
        headers: Any = message.headers() or []
        self.headers: list[tuple[str, bytes | None]] = list(headers)


def _of_record(message: Message) -> Entry:
    record, partition = _Read(message), message.partition() or 0
    headers = dict(record.headers)
    row = orjson.loads(row_of(partition, record, headers))
    row |= {
        "at": row["refused_at"], "id": f"{partition}/{record.offset}",
        "source": f"{row['source_topic']}/{row['source_partition']}/{row['source_offset']}",
    }
    if headers.get(f"{PREFIX}stage") != FAILED_JOB:
        return _refused(row)
    failed = _failed(row | {"error_code": row["code"], "error_message": row["message"]})
    return failed | {"id": row["id"], "value": row["value"]}


def _refused(row: dict[str, Any]) -> Entry:
    names = (
        "at", "id", "stage", "code", "field", "message", "user_id", "job_id", "source",
        "source_at", "key", "value", "value_bytes",
    )
    entry: Entry = {"kind": "refused", **{name: row[name] for name in names if name in row}}
    field = row["field"]
    what = f"field {safe_line(field)!r}" if field else "what the message says"
    way = _WAYS_OUT.get(row["stage"], _WAYS_OUT["unknown"])
    return entry | {"way_out": way.format(what=what)}


def _failed(row: dict[str, Any]) -> Entry:
    user_id, job_id = row["user_id"], row["job_id"]
    again = shlex.join(
        ["tidemill", "jobs", "redrive", safe_line(job_id, 512), "--user", safe_line(user_id, 512)]
    )
    return {
        "kind": "failed", "at": row["at"], "id": job_id, "stage": "attempt",
        "code": row["error_code"], "field": "", "message": safe_text(row["error_message"]),
        "user_id": user_id, "job_id": job_id, "type": row.get("type", ""),
        "attempts": row.get("attempts"), "way_out": f"mend the cause, then: {again}",
    }
