"""An executor on memory adapters, for the worker's unit tests.

Owns the harness and the making of packs. Refuses to assert anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson

from tidemill.agents.worker.attempts import Pack
from tidemill.agents.worker.executor import Executor
from tidemill.agents.worker.graces import Graces
from tidemill.agents.worker.handlers import Handler, build_handler
from tidemill.agents.worker.module_names import plan_modules
from tidemill.agents.worker.writer import MemorySink, OutcomeWriter
from tidemill.schemas.wire import KindSlots

DEADLINE_SECONDS = 60.0  # a child starts in a second, and in many on a busy machine
LOOK_SECONDS = 0.005
CANCEL_SECONDS = 0.2  # of a cancelled handler's grace


async def until(predicate: Callable[[], Any]) -> None:
    """Let the loop run until `predicate` is true."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not predicate():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(LOOK_SECONDS)


def pack_of(*jobs: tuple[str, Any], queue: str = "default", **fields: Any) -> bytes:
    """A ready record with these (type, payload); job ids are j0, j1, ..."""
    return orjson.dumps(
        {
            "schema_version": 1, "ledger_partition": 3, "queue": queue,
            "jobs": [
                {
                    "user_id": "u", "job_id": f"j{number}", "type": type_name, "run": 1,
                    "attempt": 1, "max_attempts": 3, "epoch": 5, "timeout_ms": 30_000,
                    "requested_at": 1, "dispatched_at": 2, "payload": payload, **fields,
                }
                for number, (type_name, payload) in enumerate(jobs)
            ],
        }
    )


class Bench:
    """Executor, writer and sink together."""

    def __init__(self, executor: Executor, writer: OutcomeWriter, sink: MemorySink) -> None:
        self.executor = executor
        self.writer = writer
        self.sink = sink
        #: Packs whose offset may be committed, in that order.
        self.settled: list[str] = []

    def take(self, value: bytes | None, name: str = "pack") -> Pack | None:
        return self.executor.take(value, lambda: self.settled.append(name))

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        return [
            outcome
            for _, value in self.sink.records
            for outcome in orjson.loads(value)["outcomes"]
        ]

    def room(self) -> KindSlots:
        """Slots of all kinds together, and how many of them are free."""
        rooms = self.executor.kinds().values()
        return KindSlots(
            slots=sum(room.slots for room in rooms), free=sum(room.free for room in rooms)
        )

    async def until_free(self) -> None:
        """Wait for a slot: a job that comes before its child is ready may be handed back."""
        await until(lambda: self.room().free)

    def kinds(self, job_id: str = "j0") -> list[str]:
        return [outcome["kind"] for outcome in self.outcomes if outcome["job_id"] == job_id]

    async def last(self, job_id: str = "j0") -> dict[str, Any]:
        """The outcome that ended the attempt."""

        def ends() -> list[dict[str, Any]]:
            return [
                outcome
                for outcome in self.outcomes
                if outcome["job_id"] == job_id
                and outcome["kind"] not in ("started", "progressed")
            ]

        await until(ends)
        found = ends()
        assert len(found) == 1, found
        return found[0]


def handlers_of(*functions: Any, **options: Any) -> dict[str, Handler]:
    """Handlers whose types are the functions' names."""
    return {each.__name__: build_handler(each.__name__, each, **options) for each in functions}


@asynccontextmanager
async def bench_of(
    *functions: Any,
    is_held: bool = False,
    concurrency: int = 4,
    threads: int = 2,
    modules: Sequence[str] = (),
    **options: Any,
) -> AsyncIterator[Bench]:
    """An executor that runs `functions`; stopped at the end."""
    sink = MemorySink(is_held=is_held)
    loop = asyncio.get_running_loop()
    writer = OutcomeWriter(sink, worker_id="w", incarnation=7, loop=loop)
    executor = Executor(
        handlers_of(*functions, **options), writer,
        concurrency=concurrency, threads=threads, processes=1, modules=plan_modules(modules),
        graces=Graces(cancel=CANCEL_SECONDS),
    )
    try:
        yield Bench(executor, writer, sink)
    finally:
        await executor.stop(0)
