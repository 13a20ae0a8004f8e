"""What became of a command: the event on `jobs.events` that names it as its cause.

Owns where the answer is looked for, and for how long. Refuses to send commands, and to know what a
command may do to a job (`tidemill.streams.lifecycle`).

Every cancel has its answer there. A redrive of a job that nobody knows has it on `jobs.dead`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from tidemill.agents.runtime.clients import client_settings, take_arrived
from tidemill.schemas.dead import PREFIX
from tidemill.schemas.topics import Topics
from tidemill.schemas.words import EventKind, Reason
from tidemill.streams.partitioner import partition_of

ANSWER_SECONDS: Final = 10.0  # that a caller waits; the ledger answers within milliseconds
# After `cancel_kept`: a request that is under way comes within this, and then the job has ended.
KEPT_SECONDS: Final = 1.0
LOOKUP_SECONDS: Final = 10.0  # for one question to the broker
POLL_SECONDS: Final = 0.1
CHUNK_RECORDS: Final = 1_000
CLOCK_SLACK_MS: Final = 10_000  # the ledger's clock may be behind ours by this much


class AnswerError(Exception):
    """No answer can be had. The text says why."""


class AnswerTimeout(AnswerError, TimeoutError):
    """No answer came in time. The command is sent, and will be answered."""


@dataclass(frozen=True, slots=True)
class CommandReceipt:
    """A command that Kafka acknowledged. Its answer is the event that it causes."""

    command: str
    user_id: str
    job_id: str
    partition: int
    offset: int
    #: Epoch ms, by the clock of the sender.
    sent_at: int = 0


@dataclass(frozen=True, slots=True)
class CommandAnswer:
    """What the ledger did. `event`: cancelled, cancel_requested, redriven, cancel_kept, resumed,
    signal_kept, or command_refused with its `reason`. `until`: RFC 3339, until when a cancel or a
    signal is kept."""

    event: str
    reason: str | None = None
    until: str | None = None

    @property
    def is_unknown_job(self) -> bool:
        """Nobody has asked for the job, as far as the ledger knows. A cancel may be kept."""
        unknown = (Reason.UNKNOWN_JOB, Reason.TOO_MANY_CANCELS)
        return self.event == EventKind.CANCEL_KEPT or self.reason in unknown

    @property
    def is_done(self) -> bool:
        """The command was carried out, passed on to the worker, or is kept as a signal."""
        return self.event not in (EventKind.CANCEL_KEPT, EventKind.COMMAND_REFUSED)

    @property
    def is_kept(self) -> bool:
        """A signal that nobody waits for yet; whoever waits by its name within `until` gets it."""
        return self.event == EventKind.SIGNAL_KEPT


def wait_for_answer(
    kafka: str, topics: Topics, receipt: CommandReceipt, timeout: float = ANSWER_SECONDS
) -> CommandAnswer:
    """The answer to a command. Raises AnswerTimeout, AnswerError when Kafka does not answer."""
    consumer = Consumer(
        client_settings(
            kafka, "tidemill-answers",
            {"group.id": f"tidemill-answers-{uuid.uuid4()}", "enable.auto.commit": False,
             "isolation.level": "read_committed", "auto.offset.reset": "earliest",
             "fetch.wait.max.ms": 50},
        )
    )
    try:
        consumer.assign(_begin(consumer, topics, receipt))
        return _first_or_last(consumer, topics, receipt, timeout)
    except KafkaException as error:
        raise AnswerError(f"no answer from Kafka: {error.args[0].str()}") from error
    finally:
        consumer.close()


def _begin(consumer: Consumer, topics: Topics, receipt: CommandReceipt) -> list[TopicPartition]:
    """Where the ledger answers this user, from shortly before the command on."""
    known = consumer.list_topics(topics.events, timeout=LOOKUP_SECONDS)
    count = len(known.topics[topics.events].partitions)
    if not count:
        raise AnswerError(
            f"topic {topics.events} does not exist; start `tidemill dev`, or run `tidemill topics "
            "apply`"
        )
    home = partition_of(receipt.user_id, count)
    since = max(0, receipt.sent_at - CLOCK_SLACK_MS)
    begin: list[TopicPartition] = []
    for topic in (topics.events, topics.dead):
        here = TopicPartition(topic, home, since)
        # The end comes first: what is written between the two questions lies behind it.
        _, end = consumer.get_watermark_offsets(here, timeout=LOOKUP_SECONDS)
        (found,) = consumer.offsets_for_times([here], timeout=LOOKUP_SECONDS)
        begin.append(TopicPartition(topic, home, found.offset if found.offset >= 0 else end))
    return begin


def _first_or_last(
    consumer: Consumer, topics: Topics, receipt: CommandReceipt, timeout: float
) -> CommandAnswer:
    deadline = time.monotonic() + timeout
    kept: CommandAnswer | None = None
    while time.monotonic() < deadline:
        for answer in _answers(consumer, topics, receipt):
            if answer.event != EventKind.CANCEL_KEPT:
                return answer
            kept, deadline = answer, min(deadline, time.monotonic() + KEPT_SECONDS)
    if kept is not None:
        return kept
    raise AnswerTimeout(
        f"the {receipt.command} of job {receipt.job_id} of {receipt.user_id} is sent "
        f"({topics.commands}[{receipt.partition}]@{receipt.offset}), and no answer came within "
        f"{timeout:g} s; does the ledger run? Look: tidemill doctor"
    )


def _answers(
    consumer: Consumer, topics: Topics, receipt: CommandReceipt
) -> Iterator[CommandAnswer]:
    for message in take_arrived(consumer, CHUNK_RECORDS, POLL_SECONDS):
        error = message.error()
        if error is not None:
            if error.fatal():
                raise KafkaException(error)
            continue
        if message.topic() == topics.dead:
            answer = _of_letter(message, topics, receipt)
        else:
            answer = _of_event(message.value() or b"", topics, receipt)
        if answer is not None:
            yield answer


def _of_event(value: bytes, topics: Topics, receipt: CommandReceipt) -> CommandAnswer | None:
    # Nearly every event has another cause: it is not parsed.
    if value.find(b'"offset":%d}' % receipt.offset) < 0:
        return None
    event: dict[str, Any] = orjson.loads(value)
    place = {
        "topic": topics.commands, "partition": receipt.partition, "offset": receipt.offset
    }
    if event["cause"] != place:
        return None
    is_kept = event["event"] in (EventKind.CANCEL_KEPT, EventKind.SIGNAL_KEPT)
    until = event["due_at"] if is_kept else None
    return CommandAnswer(event["event"], event["reason"], until)


def _of_letter(
    message: Message, topics: Topics, receipt: CommandReceipt
) -> CommandAnswer | None:
    headers: Any = message.headers() or []
    found = dict(headers)
    place = (topics.commands, str(receipt.partition), str(receipt.offset))
    told = tuple(
        (found.get(f"{PREFIX}{name}") or b"").decode("utf-8", "replace")
        for name in ("topic", "partition", "offset")
    )
    if told != place:
        return None
    return CommandAnswer(EventKind.COMMAND_REFUSED.value, Reason.UNKNOWN_JOB.value)
