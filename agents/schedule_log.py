"""Schedules as a client sees them: what each is now, and a command with its answer.

Owns the reading of jobs.schedules, the sending of commands, and the check of a plan before it is
sent. Needs Kafka alone. Refuses to know how any of it is shown.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from pydantic import ValidationError

from tidemill.agents import zones
from tidemill.agents.answers import AnswerError, AnswerTimeout
from tidemill.agents.runtime.clients import client_settings, take_arrived
from tidemill.schemas.first_problem import first_problem
from tidemill.schemas.schedules import USER_PREFIX, ScheduleCommand, ScheduleRecord, ScheduleSpec
from tidemill.schemas.topics import Topics
from tidemill.streams.occurrences.cron import BadPattern, Cron
from tidemill.streams.occurrences.plan import ByCron, Count, Every, Plan, count, latest, next_after

READ_SECONDS: Final = 10.0  # for the whole topic, which has a record for each schedule
LOOKUP_SECONDS: Final = 10.0  # for one question to the broker
POLL_SECONDS: Final = 0.1
RECORDS_MAX: Final = 1_000
SEND_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 10.0  # the ledger answers within milliseconds

State = Literal["paused", "orphaned", "problem", "live", "code"]


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


def merged(record: ScheduleRecord | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a plan after `given` were set; what is not given stays as it is known."""
    known: dict[str, Any] = {} if record is None else record.spec.model_dump()
    if "cron" in given:
        known.pop("every_ms", None)
    if "every_ms" in given:
        for field in ("cron", "zone"):
            known.pop(field, None)
    return known | dict(given)


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


def rule_of(spec: ScheduleSpec) -> str:
    """The pattern or the period, for people."""
    return spec.cron if spec.cron is not None else f"every {period_of(spec.every_ms or 0)}"


def period_of(period_ms: int) -> str:
    """5400000 -> "1h30min", as a user writes it."""
    parts, left = [], period_ms
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000)):
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number}{unit}")
    if left or not parts:
        parts.append(f"{left / 1000:g}s")
    return "".join(parts)


def state_of(record: ScheduleRecord) -> State:
    """Why it has no ticks, or whose word it follows."""
    if record.is_paused:
        return "paused"
    if record.is_orphaned and record.origin == "code":
        return "orphaned"
    return "problem" if record.problem else record.origin


def no_answer(command: ScheduleCommand, timeout: float) -> AnswerTimeout:
    """What is said when the ledger says nothing."""
    return AnswerTimeout(
        f"the {command.word} of schedule {command.name!r} is sent, and no answer came within "
        f"{timeout:g} s; does the ledger run? Look: tidemill doctor, tidemill dead list"
    )


def latest_of(record: ScheduleRecord, until_ms: int) -> int | None:
    """The latest instant up to `until_ms` for which a job is owed; None: there was none.

    None is owed for what was before the schedule's last change.
    """
    since_ms = record.changed_at - (record.change == "created")
    found = latest(plan_of(record), since_ms, until_ms, at_most=1) if since_ms < until_ms else []
    return found[-1] if found else None


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
        except KafkaException as error:
            self._consumer.close()
            raise AnswerError(f"no answer from Kafka: {error.args[0].str()}") from error
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
        topic = self._topics.schedules
        known = self._consumer.list_topics(topic, timeout=LOOKUP_SECONDS).topics[topic]
        if not known.partitions:
            raise AnswerError(
                f"topic {topic} does not exist: run `tidemill topics apply` of this version, or "
                "start `tidemill dev`, which makes it"
            )
        self._consumer.assign([TopicPartition(self._topics.schedules, 0, 0)])
        deadline = time.monotonic() + READ_SECONDS
        while time.monotonic() < deadline:
            is_end, _ = self.take()
            if is_end:
                return
        raise AnswerError(
            f"{self._topics.schedules} could not be read within {READ_SECONDS:g} s; does Kafka "
            "run, and does the topic exist? Look: tidemill doctor, tidemill topics apply"
        )

    def take(self) -> tuple[bool, list[tuple[str, ScheduleRecord | None]]]:
        """What has arrived within a moment; whether that was the end."""
        is_end = False
        found: list[tuple[str, ScheduleRecord | None]] = []
        for message in take_arrived(self._consumer, RECORDS_MAX, POLL_SECONDS):
            error = message.error()
            if error is not None:
                is_end = is_end or error.code() == KafkaError._PARTITION_EOF
                continue
            name, value = (message.key() or b"").decode("utf-8", "replace"), message.value()
            record = None if value is None else _read(name, value)
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
        send(self._kafka, self._topics, command)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for name, record in self.take()[1]:
                if name != command.name:
                    continue
                if record is None and command.word == "remove":
                    return None
                if record is not None and record.command_id == command.command_id:
                    return record
        raise no_answer(command, timeout)


def _read(name: str, value: bytes) -> ScheduleRecord:
    try:
        return ScheduleRecord.model_validate_json(value)
    except ValidationError as error:
        raise AnswerError(
            f"the record of schedule {name!r} cannot be read by this version: "
            f"{first_problem(error).message}; upgrade it to that of the ledgers"
        ) from error


def send(kafka: str, topics: Topics, command: ScheduleCommand) -> None:
    """Durable on return. Raises AnswerError when Kafka does not take it."""
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, message: Any) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer(client_settings(
        kafka, "tidemill-schedules",
        {"acks": "all", "partitioner": "murmur2_random", "linger.ms": 0,
         "message.timeout.ms": int(SEND_SECONDS * 1000)},
    ))
    value = command.model_dump_json(exclude_none=True).encode()
    try:
        producer.produce(
            topics.commands, value, USER_PREFIX + command.name, on_delivery=delivered
        )
        left = producer.flush(SEND_SECONDS)
    except KafkaException as error:
        raise AnswerError(f"Kafka did not take the command: {error}") from error
    if failures or left:
        why = failures[0].str() if failures else "no answer in time"
        raise AnswerError(f"Kafka did not take the command: {why}")
