"""Jobs that were rescued three times run apart: each alone in a child process, whatever their kind.

Owns the slots for them, while there are any such jobs, and how an attempt ends whose process died.
Refuses to know which jobs those are (`suspects`) and what runs in a child (`child`).

Three workers were lost while such a job ran. It may have ended them, or a neighbour did: nobody can
say from outside. In a process of its own a killer ends itself alone and is known for certain, and a
job that is innocent ends well. So no job fails for what another one does.
"""

from __future__ import annotations

import asyncio
from typing import Final

from tidemill.agents import clocks
from tidemill.agents.worker import outcomes
from tidemill.agents.worker.attempts import Attempt
from tidemill.agents.worker.graces import Graces
from tidemill.agents.worker.lanes import Host
from tidemill.agents.worker.module_names import LoadPlan
from tidemill.agents.worker.process_lane import ProcessLane
from tidemill.schemas.words import ErrorCode

IDLE_SECONDS: Final = 60.0  # without such jobs their processes are ended: each has all the modules


class ApartLane(ProcessLane):
    """Slots whose process may die: that ends the job."""

    def died(self, attempt: Attempt, how: str) -> outcomes.Outcome:
        return outcomes.failure(
            ErrorCode.WORKER_LOST,
            f"{attempt.rescues} workers were lost while they ran this job, and then it ended a "
            f"process of its own: {how}; look for a crash, os._exit or too little memory, then "
            "redrive it",
            retryable=False,
        )


class Apart:
    """The lane, made when the first such job comes."""

    def __init__(
        self, host: Host, loop: asyncio.AbstractEventLoop, slots: int, modules: LoadPlan | None,
        graces: Graces,
    ) -> None:
        self._host = host
        self._loop = loop
        self._slots = max(1, slots)
        self._modules = modules
        self._graces = graces
        self._used_at = 0.0
        self._closing: set[asyncio.Task[None]] = set()
        #: The one lane, or none: no such job has come for a while.
        self.lanes: list[ApartLane] = []

    def open(self) -> ApartLane:
        """The lane; its processes get ready within seconds."""
        self._used_at = clocks.monotonic()
        if not self.lanes:
            self.lanes.append(
                ApartLane(self._host, self._loop, self._slots, self._modules, self._graces)
            )
        return self.lanes[0]

    def look(self, now: float) -> None:
        """Called often: end the processes that nobody has needed for a while."""
        for lane in list(self.lanes):
            if lane.running or lane.waiting:
                self._used_at = now
            elif now - self._used_at > IDLE_SECONDS:
                self.lanes.remove(lane)
                closing = self._loop.create_task(lane.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """The worker ends."""
        for lane in self.lanes:
            await lane.close()
        if self._closing:
            await asyncio.wait(self._closing)
