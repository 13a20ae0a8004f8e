"""The worker's beat: a thread of its own tells every 2 s that the process lives and what is free.

Owns the beat's thread and producer. Refuses to know slots: it publishes the latest snapshot that
the loop left.

A loop that stands still (an `async def` handler computes or sleeps without awaiting) is alive: the
process lives, its jobs run, and a rescue would only run them twice. But it can take nothing. So
after STILL_SECONDS the beat says that it is stalled, and what it began last. When this thread
cannot run either, because somebody holds the interpreter, `tidemill.agents.worker.stand_in` beats.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from tidemill.agents import clocks
from tidemill.agents.worker.beats import CLOSE_SECONDS, BeatSink
from tidemill.agents.worker.pulse import STILL_SECONDS, Pulse
from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.wire import (
    HEARTBEAT_SECONDS,
    Heartbeat,
    KindSlots,
    QueueSlots,
)

BEAT_GAP_SECONDS: Final = 0.25  # at least this between two beats, however much changes
BIG_CHANGE_SHARE: Final = 0.25  # of the slots of a kind: such a change of the free is told at once
LOOK_SECONDS: Final = 0.5  # how soon a loop that stands still is noticed

logger = logging.getLogger("tidemill.worker")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the loop knows of itself."""

    queues: Mapping[str, QueueSlots] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    running: int = 0
    is_stopping: bool = False
    #: How the process before this one ended; None: nobody knows.
    former_end: str | None = None
    #: The set of schedules that it announces.
    schedules: str | None = None


def beat_of(
    snapshot: Snapshot,
    *,
    worker_id: str,
    incarnation: int,
    at_ms: int,
    stalled_with: Sequence[int] | None = None,
) -> Heartbeat:
    """The beat for a snapshot. `stalled_with`: the loop stands still, and these are the marks of
    the attempts that began last; nothing is free then."""
    queues = dict(snapshot.queues)
    is_stalled = stalled_with is not None
    if is_stalled:
        queues = {name: _taken(room) for name, room in queues.items()}
    return Heartbeat(
        schema_version=SCHEMA_VERSION,
        worker_id=worker_id,
        incarnation=incarnation,
        at=at_ms,
        queues=queues,
        types=snapshot.types,
        running=snapshot.running,
        is_stopping=snapshot.is_stopping,
        former_end=snapshot.former_end,
        schedules=snapshot.schedules,
        is_stalled=is_stalled,
        begun=tuple(stalled_with or ()),
    )


def _taken(room: QueueSlots) -> QueueSlots:
    """The same room with nothing free in it."""
    kinds = {kind: room.kinds[kind].model_copy(update={"free": 0}) for kind in room.kinds}
    return room.model_copy(update={"kinds": kinds})


def is_big_change(before: Snapshot, after: Snapshot) -> bool:
    """Whether the ledger should know at once, and not with the next beat."""
    if before.is_stopping != after.is_stopping or before.queues.keys() != after.queues.keys():
        return True
    for name, new in after.queues.items():
        old = before.queues[name]
        if old.partitions != new.partitions or old.kinds.keys() != new.kinds.keys():
            return True
        if any(_is_big(old.kinds[kind], new.kinds[kind]) for kind in new.kinds):
            return True
    return False


def _is_big(old: KindSlots, new: KindSlots) -> bool:
    if old.slots != new.slots or (old.free == 0) != (new.free == 0):
        return True
    return abs(old.free - new.free) >= max(1, BIG_CHANGE_SHARE * new.slots)


class HeartbeatThread:
    """Sends beats from its own thread until `close`. `on_beat` gets each of them as well."""

    def __init__(
        self,
        sink: BeatSink,
        *,
        worker_id: str,
        incarnation: int,
        first: Snapshot,
        pulse: Pulse,
        on_beat: Callable[[bytes], None] = lambda value: None,
        clock: Callable[[], float] = clocks.monotonic,
    ) -> None:
        self._sink = sink
        self._worker_id = worker_id
        self._incarnation = incarnation
        self._latest = first
        self._sent = first
        self._pulse = pulse
        self._on_beat = on_beat
        self._clock = clock
        self._wake = threading.Event()
        self._is_closing = False
        self._has_told_stall = False
        #: Beats that were handed to the client.
        self.sent_total = 0
        self._thread = threading.Thread(target=self._run, name="tidemill-heartbeat", daemon=True)

    def start(self) -> None:
        """The first beat goes out at once."""
        self._thread.start()

    def update(self, snapshot: Snapshot) -> None:
        """Called by the loop, often: replace the snapshot, and beat at once when much changed."""
        self._latest = snapshot
        if self._has_told_stall or is_big_change(self._sent, snapshot):
            self._wake.set()

    def close(self) -> None:
        """Send the latest snapshot once more as a stopping worker's, and end."""
        self._latest = replace(self._latest, is_stopping=True)
        self._is_closing = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS * 2)

    def _run(self) -> None:
        """Until the worker ends, whatever is thrown into this thread: one that is silent is taken
        for dead while it runs its jobs."""
        while True:
            is_last = self._is_closing
            try:
                self._wake.clear()
                self._beat()
                if is_last:
                    self._sink.close()
                    return
                clocks.sleep(BEAT_GAP_SECONDS)
                self._until_next()
            except BaseException:  # a handler may have thrown SystemExit at it
                if is_last:
                    return
                logger.exception("a heartbeat failed; the next one is tried")
                self._wake.wait(BEAT_GAP_SECONDS)

    def _until_next(self) -> None:
        """A beat is due, wanted at once, or there is a stall to tell."""
        left = HEARTBEAT_SECONDS - BEAT_GAP_SECONDS
        while left > 0 and not self._wake.wait(min(left, LOOK_SECONDS)):
            if self._is_still() and not self._has_told_stall:
                return
            left -= LOOK_SECONDS

    def _is_still(self) -> bool:
        return self._clock() - self._pulse.turned_at > STILL_SECONDS

    def _beat(self) -> None:
        snapshot = self._latest
        is_still = self._is_still()
        beat = beat_of(
            snapshot,
            worker_id=self._worker_id,
            incarnation=self._incarnation,
            at_ms=clocks.wall_ms(),
            stalled_with=self._pulse.marks() if is_still else None,
        )
        self._sent, self._has_told_stall = snapshot, is_still
        value = beat.model_dump_json(exclude_none=True).encode()
        self._sink.send(self._worker_id.encode(), value)
        self._on_beat(value)
        self.sent_total += 1
