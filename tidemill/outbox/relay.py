"""`Relay`: takes rows from the outbox to Kafka, and deletes them once Kafka has them.

Owns the steps and their order, what is tried again and what ends the relay.

One batch:
1. Claim rows (`Store.claimed`): of each user from the first one that waits.
2. Check them by the ledger's rules: a row that a stranger wrote may be no request.
3. Send them, and wait until all in-sync replicas have them.
4. Delete what is acknowledged, note at its row what can never be sent, commit.

A relay that dies before 4 leaves its rows, and the next one sends them again with the same job ids,
so the ledger knows them. A row that can never be sent holds up no other.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Final, Self

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from tidemill.agents.settings import CommonSettings, load
from tidemill.outbox.delivery import Delivery
from tidemill.outbox.errors import NotAcknowledged, RelayError
from tidemill.outbox.store import Claim, Lag, Row, Store, open_engine
from tidemill.schemas.codec import Refusal, decode_request
from tidemill.schemas.topics import Topics

logger = logging.getLogger(__name__)

IDLE_SECONDS: Final = 0.2  # until an empty outbox is looked at again: how late a row may be sent
PAUSE_SECONDS: Final = 0.5  # after a failure; doubled with each one that follows
PAUSE_SECONDS_MAX: Final = 10.0


class Relay:
    """Sends what stands in the outbox, until it is stopped. Any number may run for one table.

    In a process of its own: `run()`. Inside a program: `start()` and `stop()`, or `with`; it has a
    thread of its own, so an event loop does not notice it.

    `database`: a DSN or an Engine; Postgres or SQLite, with a driver that is not for event loops.
    `kafka`, `topic_prefix`: as for `Client`. Raises RelayError for a database that cannot be used.
    """

    def __init__(
        self,
        database: str | Engine,
        kafka: str | None = None,
        topic_prefix: str | None = None,
        *,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        settings = load(CommonSettings, kafka=kafka, topic_prefix=topic_prefix)
        self._owns_engine = isinstance(database, str)
        self.store = Store(open_engine(database) if isinstance(database, str) else database)
        self._stop = threading.Event()
        self._delivery = Delivery(
            settings.kafka, Topics(settings.topic_prefix).requested, self._stop
        )
        self._idle_seconds = idle_seconds
        self._thread: threading.Thread | None = None
        #: Why `run` ended in a thread; None while it runs, and after a stop.
        self.error: Exception | None = None

    def send_once(self) -> int:
        """One batch; how many rows are done with. Raises NotAcknowledged when Kafka did not take
        all of them: what it took is deleted, the others wait."""
        with self.store.claimed() as claim:
            rows = _sound_rows(claim)
            why_not = None
            if rows:
                claim.sent, refused = self._delivery.send(rows)
                claim.refused |= refused
                why_not = self._delivery.why_not
        for row in claim.rows:
            if row.id in claim.refused:
                logger.error(
                    "outbox row %s (user %s, job %s) can never be sent: %s",
                    row.id, row.user_id, row.job_id, claim.refused[row.id],
                )
        if why_not is not None:
            raise why_not
        return len(claim.sent) + len(claim.refused)

    def lag(self) -> Lag:
        """How many rows wait, and since when."""
        return self.store.lag()

    def run(self) -> None:
        """Send until `stop`. Database and Kafka may go away and come back.

        Raises RelayError for what does not pass by itself: no table, no right to it.
        """
        try:
            self.store.check()
            self._send_on()
        finally:
            self._delivery.close()
            if self._owns_engine:
                self.store.engine.dispose()

    def _send_on(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            try:
                pause = 0.0 if self.send_once() else self._idle_seconds
            except (NotAcknowledged, OperationalError, InterfaceError) as error:
                pause = _next_pause(pause)
                told = str(error.orig).strip() if isinstance(error, DBAPIError) else str(error)
                logger.warning("outbox: %s; trying again in %g s", told, pause)
                self._check_table(error)
            except DBAPIError as failure:
                raise RelayError(f"database: {str(failure.orig).strip()}") from failure

    def _check_table(self, error: Exception) -> None:
        """A table that is gone does not come back by waiting; a database that is away may."""
        if isinstance(error, OperationalError):
            try:
                self.store.check()
            except RelayError as found:
                if "no table" in str(found):
                    raise

    def start(self) -> Self:
        """Run in a thread of this process. Raises RelayError when the outbox cannot be used."""
        self.store.check()
        self._stop.clear()
        self._thread = threading.Thread(target=self._run_in_thread, name="tidemill-outbox",
                                        daemon=True)
        self._thread.start()
        return self

    def _run_in_thread(self) -> None:
        try:
            self.run()
        except Exception as error:  # noqa: BLE001  # whatever it is, somebody must hear of it
            self.error = error
            logger.error("the outbox relay has ended: %s", error)

    def stop(self) -> None:
        """Finish the batch that is under way, and end. Safe from any thread; in a signal handler
        call it in a thread of its own."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _next_pause(pause: float) -> float:
    return min(max(pause * 2, PAUSE_SECONDS), PAUSE_SECONDS_MAX)


def _sound_rows(claim: Claim) -> list[Row]:
    """Those that the ledger would take; the others are refused in the claim."""
    sound = []
    for row in claim.rows:
        problem = _problem_of(row)
        if problem is None:
            sound.append(row)
        else:
            claim.refused[row.id] = problem
    return sound


def _problem_of(row: Row) -> str | None:
    decoded = decode_request(row.value, ())
    if isinstance(decoded, Refusal):
        return decoded.message
    request = decoded.request
    if (request.user_id, request.job_id) != (row.user_id, row.job_id):
        return "field 'value': its user_id or job_id is not the row's; write rows with outbox.add"
    return None
