"""Sends jobs one by one at a steady rate, as a web server does: no job waits for another's answer.

Owns the sending thread and when each job was due. Refuses to know what the jobs are and what
becomes of them.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Sequence

from benchmarks.program import MEASURE_DEADLINE_SECONDS, NotMeasuredError
from tidemill import AsyncClient, Request

# The sending thread must be able to interrupt the reading one in time.
SWITCH_SECONDS = 0.0005
# The shortest sleep, as in the peers' senders: what is due within it is sent together, and a job
# that was due earlier is late by as much. A sleep for each job took half of all that sending takes.
TICK_SECONDS = 0.001


class Pace(threading.Thread):
    """Job n is due `n / rate` seconds after `begun`, whatever became of those before it."""

    def __init__(self, kafka: str, requests: Sequence[Request], rate: float) -> None:
        super().__init__(name="pace", daemon=True)
        self._kafka = kafka
        self._requests = requests
        self._rate = rate
        self._error: BaseException | None = None
        self._has_begun = threading.Event()
        self.begun = 0.0
        self.seconds = 0.0

    def start(self) -> None:
        """Returns when the first job is due."""
        sys.setswitchinterval(SWITCH_SECONDS)
        # All requests were made beforehand: looking for garbage among them takes a whole processor
        # for 80 ms, again and again, which no program has that is asked for one job at a time.
        gc.collect()
        gc.freeze()
        super().start()
        self._has_begun.wait()

    def run(self) -> None:
        try:
            asyncio.run(self._send_all())
        except Exception as error:  # noqa: BLE001  # `finish` raises it where it is waited for
            self._error = error
        finally:
            self._has_begun.set()

    def finish(self) -> None:
        """Waits until every job is acknowledged; raises what went wrong."""
        self.join(MEASURE_DEADLINE_SECONDS)
        gc.unfreeze()
        if self._error is not None:
            raise NotMeasuredError(f"sending failed: {self._error!r}") from self._error

    async def _send_all(self) -> None:
        async with AsyncClient(kafka=self._kafka) as client, asyncio.TaskGroup() as sending:
            self.begun = time.perf_counter()
            self._has_begun.set()
            for number, request in enumerate(self._requests):
                wait_seconds = self.begun + number / self._rate - time.perf_counter()
                if wait_seconds > 0:
                    await asyncio.sleep(max(wait_seconds, TICK_SECONDS))
                sending.create_task(_send(client, request))
            self.seconds = time.perf_counter() - self.begun


async def _send(client: AsyncClient, request: Request) -> object:
    return await client.enqueue(
        request.type,
        user_id=request.user_id,
        job_id=request.job_id,
        payload=request.payload,
    )
