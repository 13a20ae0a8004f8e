"""The ledger of an engine under test: the core itself, over topics in memory.

Owns the steps of a group and a restart, as the ledger's process has them. Refuses to decide
anything: that is `tidemill.streams`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from tidemill.agents import zones
from tidemill.schemas.topics import Topics
from tidemill.schemas.wire import Definition
from tidemill.schemas.words import TERMINAL_STATES
from tidemill.streams.dispatch.slot_pool import Groups, SlotPoolName
from tidemill.streams.partition import Capacity, Partition
from tidemill.streams.schedules.announced import Announced
from tidemill.streams.store.state import PartitionState
from tidemill.testing.clock import Clock
from tidemill.testing.log import Log

NUMBER: Final = 0  # of the only partition


class Fleet(Protocol):
    """What heartbeats and definitions tell of the workers."""

    def alive(self) -> Mapping[str, int]: ...
    def groups(self) -> Mapping[str, Groups]: ...
    def capacity(self) -> Mapping[SlotPoolName, Capacity]: ...
    def definitions(self) -> list[Definition]: ...
    def announced(self) -> Announced: ...


class Ledger:
    """The owner of the only partition."""

    def __init__(self, log: Log, topics: Topics, clock: Clock, fleet: Fleet) -> None:
        self._log = log
        self._topics = topics
        self._clock = clock
        self._fleet = fleet
        self.is_alive = False
        self.restart()

    def kill(self) -> None:
        """The process is gone: until `restart` nothing is decided."""
        self.is_alive = False

    def restart(self) -> None:
        """A new owner, which knows what the log holds."""
        self.is_alive = True
        state = PartitionState()
        for key, value in self._log.rows.items():
            state.load(key, value)
        self.partition = Partition(NUMBER, 1, self._topics, state)
        self.partition.ticking.set_zones(zones.zone, zones.version())
        self.partition.restored(self._clock.now_ms)
        applied = state.applied
        self._positions = {
            topic: applied.get(topic, -1) + 1 for topic in self._topics.ledger_inputs
        }

    def group(self) -> None:
        """One group, committed; none while there is no process."""
        if not self.is_alive:
            return
        partition, fleet, now_ms = self.partition, self._fleet, self._clock.now_ms
        partition.begin(now_ms)
        partition.set_workers(fleet.alive())
        partition.set_groups(fleet.groups())
        partition.set_capacity(fleet.capacity())
        for definition in fleet.definitions():
            partition.define(definition)
        partition.ticking.set_announced(fleet.announced())
        for topic in self._topics.ledger_inputs:
            records = self._log.read(topic, self._positions[topic])
            if records and partition.take_all(topic, NUMBER, records):
                self._positions[topic] += len(records)
        partition.tick()
        self._log.commit(partition.seal(), now_ms)
        partition.commit()

    @property
    def has_input(self) -> bool:
        """Whether there is anything that has not been read, and somebody to read it."""
        return self.is_alive and any(
            self._log.end(topic) > at for topic, at in self._positions.items()
        )

    def next_due_ms(self) -> int | None:
        """Epoch ms at which time alone brings something; None when nothing waits for time."""
        if not self.is_alive:
            return None
        partition = self.partition
        jobs = partition.state.jobs.values()
        if any(job.due_at is None and job.state not in TERMINAL_STATES for job in jobs):
            return partition.next_tick_at()  # each second somebody looks after such jobs
        due = partition.schedule.next_timer_at()
        absent = partition.state.policies.unknown_type.absences.next_at()
        other = min(absent, partition.ticking.next_at())
        return other if due is None else min(due, other)
