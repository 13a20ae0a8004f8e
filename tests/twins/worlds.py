"""The worlds that a tape is recorded in: the simulation, the property machine, hostile inputs, and
a plain drain for the speed.

Owns which of them run and how often. Refuses to know what they do and how it is judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

import orjson
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.chaos.rawlog import RawRecord
from tests.property import rig, test_hostile_input, test_partition_machine
from tests.property.rig import START_MS, TOPICS, Rig, outcome_of, pack
from tests.simulation import ledger
from tests.simulation.memory_log import MemoryLog
from tests.simulation.world import World
from tests.twins.tape import Tape
from tests.unit import partition_kit
from tests.unit.partition_kit import decided, plain
from tidemill.streams.dispatch.slot_pool import SlotPoolName
from tidemill.streams.partition import Capacity

MACHINES_AT_ONCE: Final = 20  # runs of the property machine between two looks at the count
HOSTILE_AT_ONCE: Final = 50
DRAIN_USERS: Final = 50
DRAIN_CHUNK: Final = 500  # requests of one group


@contextmanager
def _recording(tape: Tape) -> Iterator[None]:
    """All partitions that the worlds make are recorded ones."""
    begin_rig, begin_log, commit = Rig.__init__, MemoryLog.__init__, MemoryLog.commit

    def new_rig(self: Rig, **facts: Any) -> None:
        tape.worlds += 1
        begin_rig(self, **facts)

    def new_log(self: MemoryLog) -> None:
        tape.worlds += 1
        begin_log(self)

    def commit_log(self: MemoryLog, records: Any, now_ms: int) -> None:
        tape.committed()
        commit(self, records, now_ms)

    def keep(rows: dict[bytes, bytes], records: Any) -> None:
        tape.committed()
        kept(rows, records)

    kept = partition_kit.keep
    with (
        patch.object(Rig, "__init__", new_rig), patch.object(MemoryLog, "__init__", new_log),
        patch.object(MemoryLog, "commit", commit_log), patch.object(rig, "keep", keep),
        patch.object(rig, "restored", tape.restored),
        patch.object(ledger, "restored", tape.restored),
        patch.object(Rig, "check", lambda self: None),  # the tests themselves do that
    ):
        yield


def record_random(tape: Tape, inputs: int) -> None:
    """Worlds of all kinds in turn, until so many records have been taken."""
    with _recording(tape):
        turn = 0
        while tape.inputs < inputs:
            World(turn).run()
            _machine(turn)
            _hostile(turn)
            turn += 1


def _settings(examples: int, **facts: Any) -> settings:
    return settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), **facts,
    )


def _machine(turn: int) -> None:
    chosen = _settings(MACHINES_AT_ONCE, stateful_step_count=test_partition_machine.STEPS)
    machine = seed(turn)(type("Machine", (test_partition_machine.PartitionMachine,), {}))
    run_state_machine_as_test(machine, settings=chosen)


def _hostile(turn: int) -> None:
    test: Any = test_hostile_input.test_nothing_escapes_a_partition
    inner = test.hypothesis.inner_test

    def escape(groups: Any) -> None:
        inner(groups)

    seed(turn)(_settings(HOSTILE_AT_ONCE)(given(groups=test_hostile_input.GROUPS)(escape)))()


def record_drain(tape: Tape, jobs: int) -> None:
    """Jobs of one plain type: asked for, dispatched, succeeded."""
    tape.worlds += 1
    engine = tape.restored((), START_MS)
    room = Capacity(2 * DRAIN_CHUNK, 2 * DRAIN_CHUNK, 1, (0, 1))
    now_ms, ended, offset = START_MS, 0, 0
    while ended < jobs:
        asked = min(jobs, offset + DRAIN_CHUNK)
        records = [
            RawRecord(TOPICS.requested, 0, number, now_ms, b"k", _request(number))
            for number in range(offset, asked)
        ]
        offset = asked
        flying = [job for job in engine.state.jobs.values() if job.epoch]
        if flying:
            told = [
                outcome_of(job, "succeeded", started_at=now_ms - 10, finished_at=now_ms)
                for job in flying
            ]
            records.append(RawRecord(TOPICS.outcomes, 0, now_ms, now_ms, b"k", pack(told)))
        decided(
            engine, now_ms, records, alive={"worker-1": 1},  # type: ignore[arg-type]
            rooms={SlotPoolName("default", "async"): room}, definitions=[plain()],
        )
        engine.commit()
        tape.committed()
        ended += len(flying)
        now_ms += 20


def _request(number: int) -> bytes:
    return orjson.dumps(
        {
            "type": "t", "user_id": f"user-{number % DRAIN_USERS}", "job_id": f"job-{number}",
            "payload": {"n": number, "text": "x" * 100},
        }
    )
