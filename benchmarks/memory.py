"""Memory: what one ledger process holds when a million jobs wait.

Owns the backlog (no-op jobs of a queue that no worker serves, asked for by a real client) and the
reading of the ledger's resident memory. Refuses to know how the ledger keeps them. Everything is
real: broker, ledger with all partitions, sink.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from benchmarks.dev_stack import DevStack
from benchmarks.program import NotMeasuredError
from benchmarks.tidemill_programs import new_tag, noops
from tidemill import Client, Request

JOBS = 1_000_000
QUICK_JOBS = 20_000
CONCURRENCY = 10
# Nobody serves it.
QUEUE = "parked"
# Requests of one call: the client keeps a handle of each.
CALL_JOBS = 50_000
# The longest time without a newly accepted job.
STALL_SECONDS = 60.0
POLL_SECONDS = 0.5


def measure(*, is_quick: bool) -> dict[str, Any]:
    """Resident memory of the ledger, empty, at its highest and when all jobs wait."""
    jobs = QUICK_JOBS if is_quick else JOBS
    stack = DevStack(concurrency=CONCURRENCY)
    try:
        stack.start()
        empty = stack.memory_mib("ledger")
        begun = time.perf_counter()
        _enqueue(stack.kafka, jobs)
        highest = _wait_accepted(stack, jobs)
        return {
            "jobs": jobs,
            "accepted_per_second": round(jobs / (time.perf_counter() - begun)),
            "empty_mib": round(empty),
            "highest_mib": round(highest),
            "waiting_mib": round(stack.memory_mib("ledger")),
            "bytes_per_job": round((highest - empty) * 2**20 / jobs),
        }
    finally:
        stack.stop()


def _parked(jobs: int) -> Iterator[Request]:
    for request in noops(jobs, new_tag()):
        yield replace(request, queue=QUEUE)


def _enqueue(kafka: str, jobs: int) -> None:
    requests = _parked(jobs)
    with Client(kafka=kafka) as client:
        while client.enqueue_many(islice(requests, CALL_JOBS)):
            pass


def _wait_accepted(stack: DevStack, jobs: int) -> float:
    """Returns when every job has its first event; the highest memory seen meanwhile, in MiB."""
    highest, accepted, moved_at = 0.0, 0, time.monotonic()
    while accepted < jobs:
        time.sleep(POLL_SECONDS)
        highest = max(highest, stack.memory_mib("ledger"))
        now_accepted = stack.count(f"event = 'requested' AND queue = '{QUEUE}'")
        if now_accepted > accepted:
            accepted, moved_at = now_accepted, time.monotonic()
        elif time.monotonic() - moved_at > STALL_SECONDS:
            raise NotMeasuredError(f"{accepted} of {jobs} jobs were accepted, then none")
    return max(highest, stack.memory_mib("ledger"))
