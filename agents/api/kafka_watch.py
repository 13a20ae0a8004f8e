"""Whether Kafka can take what the API sends: a look from a thread of its own, kept for probes.

Owns the looking and how old an answer may be. Refuses to send anything, and to know who asks: a
probe reads what was seen last, so that probes cost Kafka nothing, however many there are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tidemill.agents.runtime.clients import client_settings
from tidemill.schemas.topics import Topics

LOOK_EVERY_SECONDS: Final = 2.0  # an outage shows within two looks
LOOK_SECONDS_MAX: Final = 2.0  # of one look: metadata of a broker that lives takes milliseconds
# A look that is older says nothing: a thread that hangs must not keep the API ready.
FRESH_SECONDS: Final = 3 * (LOOK_EVERY_SECONDS + LOOK_SECONDS_MAX)
CLOSE_SECONDS: Final = 0.2  # a look that is on its way to a broker that is away is left alone

logger = structlog.get_logger("tidemill.api")


class KafkaWatch:
    """Looks every two seconds while it is started; `problem` is what was seen last."""

    def __init__(
        self, kafka: str, topic_prefix: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        topics = Topics(topic_prefix)
        #: What requests and commands need, and where a command's answer is read.
        self._topics = (topics.requested, topics.commands, topics.events)
        self._kafka = kafka
        self._clock = clock
        self._seen: tuple[float, str | None] | None = None  # when, and what was wrong
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look; once."""
        self._thread = threading.Thread(target=self._run, name="tidemill-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def problem(self) -> str | None:
        """Why Kafka cannot serve now, without addresses; None when it can. Never waits."""
        seen = self._seen
        if seen is None:
            return "has not been asked yet"
        at, problem = seen
        if self._clock() - at > FRESH_SECONDS:
            return "has not answered of late"
        return problem

    def note(self, problem: str | None) -> None:
        """A look has ended."""
        former = self._seen
        self._seen = (self._clock(), problem)
        if problem is not None and (former is None or former[1] != problem):
            logger.warning("not ready: Kafka %s", problem)
        elif problem is None and former is not None and former[1] is not None:
            logger.info("Kafka is back")

    def _run(self) -> None:
        admin: AdminClient | None = None
        while True:
            try:
                admin = admin or AdminClient(client_settings(self._kafka, "tidemill-api-watch", {}))
                self.note(look(admin, self._topics))
            except (KafkaException, ValueError) as error:  # ValueError: no address that it takes
                self.note("does not answer")
                logger.debug("a look at Kafka failed: %s", error)
            if self._stop.wait(LOOK_EVERY_SECONDS):
                return


def look(admin: AdminClient, topics: tuple[str, ...]) -> str | None:
    """What is wrong with one of `topics` now. KafkaException when nobody answers in time."""
    there = admin.list_topics(timeout=LOOK_SECONDS_MAX).topics
    for name in topics:
        found = there.get(name)
        if found is None or found.error is not None or not found.partitions:
            return f"has no topic {name}"
        if any(partition.leader < 0 for partition in found.partitions.values()):
            return f"has no leader for a partition of {name}"
    return None
