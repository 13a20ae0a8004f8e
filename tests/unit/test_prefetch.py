"""What is fetched ahead: a partition in which a little waits stays in the fetches."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from faust.types import TP

from tidemill.agents.runtime.batches import PartitionBuffer
from tidemill.agents.runtime.inputs import PREFETCH_BYTES_MAX, InputPartition, InputPolicy
from tidemill.agents.runtime.transport import ChunkConsumer

HERE = TP("jobs.ready.default", 0)


def record(offset: int) -> Any:
    return SimpleNamespace(offset=offset, key=None, value=b"v", headers=(), timestamp=0)


def fetched(first: int, batches: int, size_bytes: int) -> list[Any]:
    """The batches of one fetch, of one record each."""
    raw = b"\0" * size_bytes
    return [(first + number, [record(first + number)], raw) for number in range(batches)]


class FetchState:
    """aiokafka's side of a partition."""

    def __init__(self) -> None:
        self.paused = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


def test_a_buffer_knows_the_bytes_of_what_is_not_decoded_yet() -> None:
    buffer = PartitionBuffer()
    buffer.add([])
    assert buffer.size_bytes == 0
    buffer.add(fetched(0, 4, 1_000))
    buffer.add(fetched(4, 1, 500))
    assert buffer.size_bytes == 1_500
    assert [one.offset for one in buffer.take(2)] == [0, 1]
    assert buffer.size_bytes == 1_000
    assert [one.offset for one in buffer.take(9)] == [2, 3, 4]
    assert buffer.size_bytes == 0
    buffer.add(fetched(5, 1, 700))
    buffer.clear()
    assert (buffer.size_bytes, bool(buffer)) == (0, False)


async def test_a_worker_without_free_slots_is_still_fetched_for() -> None:
    """Once it was left out, it waited for the fetch in flight, which nothing else ended for 0.2 s;
    what came meanwhile was more than its slots again, and so on: jobs took 0.2 s at half load."""
    state = FetchState()
    slots = [0]
    policy = InputPolicy(credit=lambda _: slots[0])
    entry = InputPartition(HERE, policy, asyncio.Queue())
    consumer: Any = ChunkConsumer.__new__(ChunkConsumer)
    consumer._in_order = [entry]
    consumer._state_of = lambda _: state
    consumer._waiter = None
    entry.buffer.add(fetched(0, 3, PREFETCH_BYTES_MAX // 2))
    paused: list[bool] = []
    assert not consumer._deliver()
    paused.append(state.paused)
    entry.buffer.add(fetched(3, 1, PREFETCH_BYTES_MAX))
    consumer._deliver()
    paused.append(state.paused)
    slots[0] = 4
    assert consumer._deliver()
    paused.append(state.paused)
    assert paused == [False, True, False]
