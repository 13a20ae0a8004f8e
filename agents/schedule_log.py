"""Schedules as a client sees them: what each is now, and a command with its answer.

Owns the reading of jobs.schedules, the sending of commands, and the check of a plan before it is
sent. Needs Kafka alone. Refuses to know how any of it is shown.
"""

from __future__ import annotations

import time
import uuid
from types import TracebackType
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from tidemill.agents import zones
from tidemill.agents.answers import AnswerError, AnswerTimeout
from tidemill.agents.runtime.clients import client_settings, take_arrived
from tidemill.schemas.schedules import USER_PREFIX, ScheduleCommand, ScheduleRecord, ScheduleSpec
from tidemill.schemas.topics import Topics
from tidemill.streams.occurrences.cron import BadPattern, Cron
from tidemill.streams.occurrences.plan import ByCron, Count, Every, Plan, count, next_after

READ_SECONDS: Final = 10.0  # for the whole topic, which has a record for each schedule
POLL_SECONDS: Final = 0.1
RECORDS_MAX: Final = 1_000
SEND_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 10.0  # the ledger answers within milliseconds


def problem_of(spec: ScheduleSpec) -> tuple[str, str] | None:
    """The field that is wrong in a plan, and what to write; None: it can be reckoned."""
    if (spec.every_ms is None) == (spec.cron is None):
        return "every", "give either every, such as 1min, or cron, such as '0 9 * * *'"
    if spec.cron is None:
        if spec.zone != "UTC":
            return "zone", f"zone={spec.zone!r} means nothing to an interval; leave it out"
        return None
    try:
        Cron(spec.cron)
    except BadPattern as error:
        return "cron", str(error)
    try:
        zones.zone(spec.zone)
    except zones.UnknownZone as error:
        return "zone", str(error)
    return None


def plan_of(record: ScheduleRecord) -> Plan:
    """The plan of a schedule, as the ledger reckons it."""
    spec = record.spec
    first = record.created_at if spec.is_first_now else None
    if spec.cron is not None:
        return Plan(ByCron(Cron(spec.cron), zones.zone(spec.zone), spec.gap, spec.fold), first)
    return Plan(Every(spec.every_ms or 0, record.created_at), first)


def next_of(record: ScheduleRecord, now_ms: int) -> int | None:
    """The next instant after now; None: it has no ticks."""
    if record.next_at is None:
        return None
    return max(record.next_at, next_after(plan_of(record), now_ms) or 0)


def count_of(record: ScheduleRecord, since_ms: int, until_ms: int) -> Count:
    """How many ticks a range has."""
    return count(plan_of(record), since_ms, until_ms)


class ScheduleLog:
    """jobs.schedules, from its beginning on. Close it."""

    def __init__(self, kafka: str, topics: Topics) -> None:
        self._kafka = kafka
        self._topics = topics
        #: What each schedule is, by name.
        self.records: dict[str, ScheduleRecord] = {}
        self._consumer = Consumer(client_settings(
            kafka, "tidemill-schedules",
            {
                "group.id": f"tidemill-schedules-{uuid.uuid4()}", "enable.auto.commit": False,
                "isolation.level": "read_committed", "auto.offset.reset": "earliest",
                "enable.partition.eof": True, "fetch.wait.max.ms": 50,
            },
        ))

    def __enter__(self) -> ScheduleLog:
        try:
            self._read()
        except BaseException:
            self._consumer.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._consumer.close()

    def _read(self) -> None:
        """All there is. Raises AnswerError when Kafka does not answer."""
        self._consumer.assign([TopicPartition(self._topics.schedules, 0, 0)])
        deadline = time.monotonic() + READ_SECONDS
        while time.monotonic() < deadline:
            is_end, _ = self._take()
            if is_end:
                return
        raise AnswerError(
            f"{self._topics.schedules} could not be read within {READ_SECONDS:g} s; does Kafka "
            "run, and does the topic exist? Look: tidemill doctor, tidemill topics apply"
        )

    def _take(self) -> tuple[bool, list[tuple[str, ScheduleRecord | None]]]:
        """What has arrived; whether that was the end."""
        is_end = False
        found: list[tuple[str, ScheduleRecord | None]] = []
        for message in take_arrived(self._consumer, RECORDS_MAX, POLL_SECONDS):
            error = message.error()
            if error is not None:
                is_end = is_end or error.code() == KafkaError._PARTITION_EOF
                continue
            name, value = (message.key() or b"").decode("utf-8", "replace"), message.value()
            record = None if value is None else ScheduleRecord.model_validate_json(value)
            if record is None:
                self.records.pop(name, None)
            else:
                self.records[name] = record
            found.append((name, record))
        return is_end, found

    def ask(
        self, command: ScheduleCommand, timeout: float = ANSWER_SECONDS
    ) -> ScheduleRecord | None:
        """Sends a command and waits for what the ledger says; None: the schedule is gone.

        Raises AnswerTimeout, and AnswerError when Kafka does not take it.
        """
        self._send(command)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for name, record in self._take()[1]:
                if name != command.name:
                    continue
                if record is None and command.word == "remove":
                    return None
                if record is not None and record.command_id == command.command_id:
                    return record
        raise AnswerTimeout(
            f"the {command.word} of schedule {command.name!r} is sent, and no answer came within "
            f"{timeout:g} s; does the ledger run? Look: tidemill doctor, tidemill dead list"
        )

    def _send(self, command: ScheduleCommand) -> None:
        failures: list[KafkaError] = []

        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is not None:
                failures.append(error)

        producer = Producer(client_settings(
            self._kafka, "tidemill-schedules",
            {"acks": "all", "partitioner": "murmur2_random", "linger.ms": 0,
             "message.timeout.ms": int(SEND_SECONDS * 1000)},
        ))
        value = command.model_dump_json(exclude_none=True).encode()
        try:
            producer.produce(
                self._topics.commands, value, USER_PREFIX + command.name, on_delivery=delivered
            )
            left = producer.flush(SEND_SECONDS)
        except KafkaException as error:
            raise AnswerError(f"Kafka did not take the command: {error}") from error
        if failures or left:
            why = failures[0].str() if failures else "no answer in time"
            raise AnswerError(f"Kafka did not take the command: {why}")
