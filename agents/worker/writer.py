"""Outcomes out: gathered into packs, one stream per ledger partition, durable before anything acks.

Owns the gathering and the order. Refuses to know what an outcome says and which client sends it:
`OutcomeSink` is the port, `tidemill.agents.worker.kafka_sink` and `MemorySink` are its adapters.

The first outcome leaves at once; while its record is on the way the next ones gather. So a quiet
worker adds no delay and a busy one writes few, full records.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import orjson

from tidemill.agents.crash import crash_point
from tidemill.agents.worker.attempts import Attempt, Settled
from tidemill.agents.worker.outcomes import too_large
from tidemill.schemas import SCHEMA_VERSION
from tidemill.schemas.wire import OUTCOME_PACK_BYTES_MAX, OUTCOMES_PER_RECORD_MAX

IN_FLIGHT_MAX: Final = 4  # records of one partition on the way; idempotence keeps order up to 5

#: outcome bytes, what is settled by it or None, the attempt for a refusal or None.
Item = tuple[bytes, Settled | None, Attempt | None]


class OutcomeSink(Protocol):
    """Where outcome records go. `done(is_too_large)` is called on the loop, once, when the record
    is durable (False) or can never be taken because of its size (True); everything else is tried
    again by the adapter for as long as it takes, in order."""

    def send(self, partition: int, value: bytes, done: Callable[[bool], None]) -> None: ...


class _PartitionStream:
    """What waits for and is on its way to one partition."""

    __slots__ = ("in_flight", "partition", "waiting")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.waiting: deque[Item] = deque()
        self.in_flight = 0


class OutcomeWriter:
    """Gathers outcomes per ledger partition."""

    def __init__(
        self,
        sink: OutcomeSink,
        *,
        worker_id: str,
        incarnation: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._sink = sink
        self._loop = loop
        head = orjson.dumps(
            {
                "schema_version": SCHEMA_VERSION,
                "worker_id": worker_id,
                "incarnation": incarnation,
            }
        )
        self._head = head[:-1] + b',"outcomes":['
        self._streams: dict[int, _PartitionStream] = {}
        self._dirty: list[_PartitionStream] = []
        self._drained: asyncio.Event = asyncio.Event()
        self._drained.set()
        #: Outcomes that are not durable yet.
        self.pending = 0
        #: Outcomes that became durable since the start.
        self.durable_total = 0
        #: Records that were written since the start.
        self.records_total = 0

    def add(
        self, partition: int, outcome: bytes, pack: Settled | None, attempt: Attempt | None = None
    ) -> None:
        """Queue an outcome; `pack` is settled by one when it is durable."""
        stream = self._streams.get(partition)
        if stream is None:
            stream = self._streams[partition] = _PartitionStream(partition)
        if not stream.waiting:
            if not self._dirty:
                self._loop.call_soon(self._flush)
            self._dirty.append(stream)
        stream.waiting.append((outcome, pack, attempt))
        if not self.pending:
            self._drained.clear()
        self.pending += 1

    async def drain(self) -> None:
        """Wait until everything that was added is durable."""
        await self._drained.wait()

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for stream in dirty:
            self._send_some(stream)

    def _send_some(self, stream: _PartitionStream) -> None:
        """A full record may always go, a part of one only when nothing is on the way."""
        while stream.waiting and (
            not stream.in_flight
            or (stream.in_flight < IN_FLIGHT_MAX and len(stream.waiting) >= OUTCOMES_PER_RECORD_MAX)
        ):
            self._send(stream, _cut(stream.waiting))

    def _send(self, stream: _PartitionStream, items: list[Item]) -> None:
        stream.in_flight += 1
        self.records_total += 1
        value = self._head + b",".join([item[0] for item in items]) + b"]}"
        crash_point("worker.after_run_before_outcome")
        self._sink.send(
            stream.partition,
            value,
            lambda is_too_large: self._on_done(stream, items, is_too_large),
        )

    def _on_done(self, stream: _PartitionStream, items: list[Item], is_too_large: bool) -> None:
        stream.in_flight -= 1
        if is_too_large:
            self._split(stream, items)
        else:
            crash_point("worker.after_outcome_before_commit")
            self.durable_total += len(items)
            self.pending -= len(items)
            for _, pack, _ in items:
                if pack is not None:
                    pack.settle()
            if not self.pending:
                self._drained.set()
        self._send_some(stream)

    def _split(self, stream: _PartitionStream, items: list[Item]) -> None:
        """The record was refused for its size: the outcomes go alone, one alone goes as a refusal.

        Only a broker that takes less than the topic registry asks for comes here.
        """
        if len(items) > 1:
            for item in items:
                self._send(stream, [item])
            return
        outcome, pack, attempt = items[0]
        if attempt is None:
            # A `started` or `progressed` of this size cannot be: drop the news, keep the count.
            self._on_done_without(pack)
            return
        said = orjson.loads(outcome)
        refusal = too_large(
            attempt.job, said.get("started_at", 0), said.get("finished_at", 0), len(outcome)
        )
        self._send(stream, [(refusal, pack, None)])

    def _on_done_without(self, pack: Settled | None) -> None:
        self.pending -= 1
        if pack is not None:
            pack.settle()
        if not self.pending:
            self._drained.set()


def _cut(waiting: deque[Item]) -> list[Item]:
    """The next record's outcomes, oldest first, within the bounds of count and bytes."""
    items: list[Item] = []
    size = 0
    while waiting and len(items) < OUTCOMES_PER_RECORD_MAX:
        size += len(waiting[0][0])
        if items and size > OUTCOME_PACK_BYTES_MAX:
            break
        items.append(waiting.popleft())
    return items


class MemorySink:
    """The port in memory: keeps records, and confirms at once, later or not at all."""

    def __init__(self, *, is_held: bool = False, bytes_max: int | None = None) -> None:
        #: (partition, value) in the order of their arrival.
        self.records: list[tuple[int, bytes]] = []
        self.is_held = is_held
        self._bytes_max = bytes_max
        self._held: list[Callable[[bool], None]] = []

    def send(self, partition: int, value: bytes, done: Callable[[bool], None]) -> None:
        loop = asyncio.get_running_loop()
        if self._bytes_max is not None and len(value) > self._bytes_max:
            loop.call_soon(done, True)
            return
        self.records.append((partition, value))
        if self.is_held:
            self._held.append(done)
        else:
            loop.call_soon(done, False)

    def release(self) -> None:
        """Confirm what was held, and from now on at once."""
        self.is_held = False
        held, self._held = self._held, []
        for done in held:
            done(False)
