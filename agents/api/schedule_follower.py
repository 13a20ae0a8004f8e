"""What every schedule is, kept up to date for the API and the page.

Owns one reader of `jobs.schedules` for the whole process, and the wait for a command's answer in
it. Refuses to know HTTP, and what a command does.

The reader begins with the first question: an API that nobody asks about schedules reads nothing.
A page that asks every two seconds, of ten thousand schedules, would else read five megabytes each
time; and what a command has changed is here before its answer is given.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from tidemill.agents.answers import AnswerError
from tidemill.agents.schedule_log import ANSWER_SECONDS, ScheduleLog, no_answer, send
from tidemill.schemas.schedules import ScheduleCommand, ScheduleRecord
from tidemill.schemas.topics import Topics

RETRY_SECONDS: Final = 2.0  # between two tries to reach Kafka
START_SECONDS: Final = 12.0  # for the first reading: what `ScheduleLog` takes, and a little
CLOSE_SECONDS: Final = 1.0  # for the reader's end; one that waits for Kafka ends with the process

logger = logging.getLogger("tidemill.api")


class ScheduleFollower:
    """`records()` and `ask()`, from any thread. Close it."""

    def __init__(self, kafka: str, topics: Topics) -> None:
        self._kafka = kafka
        self._topics = topics
        self._changed = threading.Condition()
        self._records: dict[str, ScheduleRecord] = {}
        self._is_known = False  # all that there was has been read
        self._problem = ""  # why it has not
        self._tries = 0
        self._has_ended = threading.Event()
        self._thread: threading.Thread | None = None

    def records(self) -> dict[str, ScheduleRecord]:
        """All schedules as they are now. Raises AnswerError when they cannot be read."""
        with self._changed:
            self._await_known()
            return dict(self._records)

    def record(self, name: str) -> ScheduleRecord | None:
        """One of them; None: there is none of that name. Raises as `records`."""
        with self._changed:
            self._await_known()
            return self._records.get(name)

    def ask(self, command: ScheduleCommand) -> ScheduleRecord | None:
        """Sends a command: the schedule as the ledger says it is by then, None when it is gone.

        Raises AnswerTimeout, and AnswerError when Kafka does not answer.
        """
        with self._changed:
            self._await_known()
            was_there = command.name in self._records
        send(self._kafka, self._topics, command)
        deadline = time.monotonic() + ANSWER_SECONDS
        with self._changed:
            while (left := deadline - time.monotonic()) > 0:
                record = self._records.get(command.name)
                if record is None and was_there and command.word == "remove":
                    return None
                if record is not None and record.command_id == command.command_id:
                    return record
                self._changed.wait(left)
        raise no_answer(command, ANSWER_SECONDS)

    def close(self) -> None:
        """The reader ends."""
        self._has_ended.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _await_known(self) -> None:
        """The lock is held. A try that fails is told to whoever waits for it."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="tidemill-schedules", daemon=True
            )
            self._thread.start()
        tries, deadline = self._tries, time.monotonic() + START_SECONDS
        while not self._is_known:
            if self._problem and self._tries > tries:
                raise AnswerError(self._problem)
            if (left := deadline - time.monotonic()) <= 0:
                raise AnswerError(self._problem or f"no answer from Kafka at {self._kafka}")
            self._changed.wait(left)

    def _run(self) -> None:
        while not self._has_ended.is_set():
            try:
                with ScheduleLog(self._kafka, self._topics) as log:
                    self._follow(log)
            except AnswerError as error:
                with self._changed:
                    self._is_known = False
                    self._problem, self._tries = str(error), self._tries + 1
                    self._changed.notify_all()
                logger.warning("schedules cannot be read: %s", error)
                self._has_ended.wait(RETRY_SECONDS)

    def _follow(self, log: ScheduleLog) -> None:
        with self._changed:
            self._records, self._is_known, self._problem = dict(log.records), True, ""
            self._changed.notify_all()
        while not self._has_ended.is_set():
            _, found = log.take()
            if not found:
                continue
            with self._changed:
                for name, record in found:
                    if record is None:
                        self._records.pop(name, None)
                    else:
                        self._records[name] = record
                self._changed.notify_all()
