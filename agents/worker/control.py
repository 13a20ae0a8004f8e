"""Words to all workers: reads `jobs.control` on a thread and hands them to the loop.

Owns the reader. Refuses to know what a word does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition
from pydantic import ValidationError

from tidemill.agents import clocks
from tidemill.agents.runtime.clients import client_settings
from tidemill.schemas.wire import ControlMessage

POLL_SECONDS: Final = 0.5  # how long a stop may wait for the thread
METADATA_SECONDS: Final = 10.0  # one request for the topic's partitions
RECENT_SECONDS: Final = 60.0  # a worker that is away for longer has lost its jobs to a rescue
LOG_EVERY: Final = 20  # one line in so many errors in a row

logger = logging.getLogger("tidemill.worker")


class ControlReader:
    """Reads every partition of the control topic, outside any group.

    It begins with the words of the last minute: while a worker starts, records wait for it, and
    somebody may have taken back a job in them.
    """

    def __init__(
        self,
        kafka: str,
        topic: str,
        client_id: str,
        on_word: Callable[[ControlMessage], None],
    ) -> None:
        self._topic = topic
        self._on_word = on_word
        self._consumer = Consumer(
            client_settings(
                kafka,
                client_id,
                {
                    # The client wants a name; partitions are assigned by hand, no group is joined.
                    "group.id": client_id,
                    "enable.auto.commit": False,
                    "isolation.level": "read_committed",
                    "auto.offset.reset": "latest",
                },
            )
        )
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="tidemill-control", daemon=True)

    def start(self) -> None:
        """Begin to read. `on_word` is called on the thread."""
        self._thread.start()

    def close(self) -> None:
        self._is_closing = True
        self._thread.join(POLL_SECONDS * 4)

    def _run(self) -> None:
        while not self._is_closing and not self._assign():
            pass
        errors = 0
        while not self._is_closing:
            record = self._consumer.poll(POLL_SECONDS)
            if record is None:
                continue
            problem = record.error()
            if problem is None:
                errors = 0
                self._hand_over(record)
            else:
                if errors % LOG_EVERY == 0:
                    logger.warning("reading %s: %s", self._topic, problem.str())
                errors += 1
        self._consumer.close()

    def _assign(self) -> bool:
        try:
            found: Any = self._consumer.list_topics(self._topic, timeout=METADATA_SECONDS)
            partitions = found.topics[self._topic].partitions
            if not partitions:
                logger.warning(
                    "topic %s is missing, so cancel cannot reach running jobs: run "
                    "`tidemill topics apply`", self._topic,
                )
                self._consumer.poll(METADATA_SECONDS)
                return False
            since_ms = clocks.wall_ms() - int(RECENT_SECONDS * 1000)
            recent = [TopicPartition(self._topic, number, since_ms) for number in partitions]
            self._consumer.assign(
                self._consumer.offsets_for_times(recent, timeout=METADATA_SECONDS)
            )
        except KafkaException as error:
            logger.warning("reading %s cannot begin yet: %s", self._topic, error)
            return False
        return True

    def _hand_over(self, record: Any) -> None:
        try:
            word = ControlMessage.model_validate_json(record.value() or b"")
        except ValidationError as error:
            logger.warning("a word on %s is left out: %s", self._topic, error)
            return
        self._on_word(word)
