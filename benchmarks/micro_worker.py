"""The worker's hot path alone: packs in memory in, outcome packs in memory out, no Kafka.

Owns the measurement of CPU per no-op job. Run: python -m benchmarks.micro_worker [JOBS]
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import orjson
from pydantic import BaseModel

from tidemill.agents.runtime.run import new_event_loop
from tidemill.agents.worker.context import Context
from tidemill.agents.worker.executor import Executor
from tidemill.agents.worker.handlers import build_handler
from tidemill.agents.worker.writer import MemorySink, OutcomeWriter
from tidemill.schemas.wire import PACK_JOBS_MAX

JOBS = 100_000
ROUNDS = 3
LEDGER_PARTITIONS = 4


class Message(BaseModel):
    """A payload of a usual size."""

    text: str
    number: int


async def noop(payload: Message) -> None:
    """No-op."""


async def noop_with_context(payload: Message, ctx: Context) -> dict[str, Any]:
    """No-op that looks at its context and returns something."""
    return {"attempt": ctx.attempt}


async def noop_that_waits(payload: Message) -> None:
    """No-op that gives the loop a turn."""
    await asyncio.sleep(0)


def noop_in_thread(payload: Message) -> None:
    """No-op in a thread."""


def packs(type_name: str, jobs: int) -> list[bytes]:
    """Ready records with `jobs` jobs in all."""
    made = []
    for first in range(0, jobs, PACK_JOBS_MAX):
        batch = [
            {
                "user_id": f"user-{number % 500}",
                "job_id": f"job-{number:08d}",
                "type": type_name,
                "run": 1,
                "attempt": 1,
                "max_attempts": 3,
                "epoch": 1,
                "timeout_ms": 30_000,
                "requested_at": 1_700_000_000_000,
                "dispatched_at": 1_700_000_000_005,
                "payload": {"text": "a message of a usual size", "number": number},
            }
            for number in range(first, min(first + PACK_JOBS_MAX, jobs))
        ]
        made.append(
            orjson.dumps(
                {
                    "schema_version": 1,
                    "ledger_partition": (first // PACK_JOBS_MAX) % LEDGER_PARTITIONS,
                    "queue": "default",
                    "jobs": batch,
                }
            )
        )
    return made


async def drain(function: Any, jobs: int) -> dict[str, Any]:
    """Run `jobs` jobs; wall and CPU in µs per job."""
    type_name = function.__name__
    handler = build_handler(type_name, function)
    loop = asyncio.get_running_loop()
    sink = MemorySink()
    writer = OutcomeWriter(sink, worker_id="bench", incarnation=1, loop=loop)
    executor = Executor({type_name: handler}, writer, concurrency=100, threads=32, processes=1)
    records = packs(type_name, jobs)
    settled = 0

    def settle() -> None:
        nonlocal settled
        settled += 1

    wall, cpu = time.perf_counter(), time.process_time()
    for record in records:
        while executor.room("default") < PACK_JOBS_MAX:  # noqa: ASYNC110
            await asyncio.sleep(0)
        executor.take(record, settle)
    while settled < len(records):  # noqa: ASYNC110
        await asyncio.sleep(0)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    await executor.stop(1.0)
    if writer.durable_total != jobs:
        raise AssertionError(f"{writer.durable_total} outcomes of {jobs} jobs")
    return {
        "handler": type_name,
        "jobs": jobs,
        "jobs_per_second": round(jobs / wall),
        "cpu_us_per_job": round(cpu / jobs * 1e6, 2),
        "records": len(sink.records),
    }


def main() -> int:
    """Print one JSON line a handler, the best of three."""
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else JOBS
    for function in (noop, noop_with_context, noop_that_waits, noop_in_thread):
        results = []
        for _ in range(ROUNDS):
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                results.append(runner.run(drain(function, jobs)))
        print(json.dumps(min(results, key=lambda each: float(each["cpu_us_per_job"]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
