"""What was asked of the core, call by call, so that another core can be asked the same.

Owns the form of a tape and the recording: a partition behind a stand-in that writes down each call
before it passes it on. Refuses to know who calls and what comes out: the worlds of the simulation
and of the property tests call, `tests.twins.replay` plays the tape to a core.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.chaos.rawlog import RawRecord
from tests.unit.partition_kit import restored
from tidemill.schemas.batch_builder import OutGroup
from tidemill.schemas.wire import Definition
from tidemill.streams.dispatch.slot_pool import Groups, SlotPoolName
from tidemill.streams.partition import Capacity, Partition
from tidemill.streams.store.state import PartitionState

Place = tuple[int, int]
"""(world, partition): whose rows a new owner restores."""


class Tape:
    """Calls in their order, of plain values alone."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.inputs = 0
        self.worlds = 0
        self._sealed: Place | None = None

    def write(self, place: Place, name: str, *values: Any) -> None:
        self.calls.append((place, name, *values))
        if name == "take":
            self.inputs += 1
        elif name == "seal":
            self._sealed = place

    def restored(
        self, rows: Iterable[tuple[bytes, bytes | None]], now_ms: int, **facts: Any
    ) -> Recorded:
        """`partition_kit.restored` of a partition whose calls are written down."""
        place = (self.worlds, facts.get("number", 0))
        self.write(place, "restore", facts.get("partitions", 1), now_ms)
        return Recorded(restored(rows, now_ms, **facts), self, place)

    def committed(self) -> None:
        """What was sealed last is in the log."""
        assert self._sealed is not None
        self.write(self._sealed, "commit")

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            pickle.dump(self.calls, file)


class Recorded:
    """A partition whose calls are written down."""

    def __init__(self, engine: Partition, tape: Tape, place: Place) -> None:
        self._engine = engine
        self._write: Callable[..., None] = lambda name, *values: tape.write(place, name, *values)
        self.schedule = engine.schedule

    @property
    def state(self) -> PartitionState:
        return self._engine.state

    def begin(self, now_ms: int) -> int:
        self._write("begin", now_ms)
        return self._engine.begin(now_ms)

    def set_workers(self, alive: Mapping[str, int], **facts: Any) -> None:
        told = {name: dict(value) if isinstance(value, Mapping) else value
                for name, value in facts.items()}
        told["stalls"] = {
            worker: tuple(stall) for worker, stall in facts.get("stalls", {}).items()
        }
        self._write("set_workers", dict(alive), told)
        self._engine.set_workers(alive, **facts)

    def set_groups(self, told: Mapping[str, Groups]) -> None:
        self._write("set_groups", {queue: dict(groups) for queue, groups in told.items()})
        self._engine.set_groups(told)

    def set_capacity(self, rooms: Mapping[SlotPoolName, Capacity]) -> None:
        self._write("set_capacity", [(tuple(name), tuple(room)) for name, room in rooms.items()])
        self._engine.set_capacity(rooms)

    def define(self, definition: Definition) -> None:
        self._write("define", definition.model_dump_json())
        self._engine.define(definition)

    def take(self, topic: str, partition: int, record: RawRecord) -> bool:
        headers = [(name, value) for name, value in record.headers]
        self._write(
            "take", topic, partition, record.offset, record.timestamp, record.key, record.value,
            headers,
        )
        return self._engine.take(topic, partition, record)

    def tick(self) -> None:
        self._write("tick")
        self._engine.tick()

    def seal(self) -> OutGroup:
        self._write("seal")
        return self._engine.seal()

    def commit(self) -> None:
        self._write("settle")
        self._engine.commit()

    def rollback(self) -> None:
        self._write("undo")
        self._engine.rollback()

    def next_tick_at(self) -> int:
        return self._engine.next_tick_at()
