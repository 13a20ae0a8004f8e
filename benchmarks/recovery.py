"""Recovery: from kill -9 of a worker under load to the end of the last job that it may have held.

Owns two cases. *restarted*: the only worker dies and `tidemill dev` starts it again. *lost*: one of
two workers dies and never comes back, as when its machine is gone. Refuses to know how jobs are
rescued: it asks `job_events` which jobs were dispatched or running at the instant of the kill, and
when each of them ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.dev_stack import DevStack
from benchmarks.noop_jobs import USERS
from benchmarks.pace import Pace
from benchmarks.processes import wait_until
from benchmarks.program import MEASURE_DEADLINE_SECONDS, NotMeasuredError, percentile
from benchmarks.tidemill_programs import TOPICS, new_tag
from benchmarks.watching import EndWatcher
from tidemill import Request

NAP = "bench.nap"
# Long enough for a worker to report the start, so that jobs are known to be running.
NAP_SECONDS = 1.0
CONCURRENCY = 50
# Keeps one worker's slots four fifths busy, so that it can also make up for what was lost.
RATE = 40.0
KILL_AFTER_SECONDS = 4.0
# The load goes on while the killed worker's jobs are rescued.
LOAD_SECONDS = 20.0
QUICK_LOAD_SECONDS = 8.0
KILLS = 5
QUICK_KILLS = 1
# How long no job may end: a lost worker's jobs are rescued after 10 s of silence.
STALL_SECONDS = 60.0
POLL_SECONDS = 0.05

Kill = Callable[[], None]


def measure(*, is_quick: bool) -> dict[str, Any]:
    """Both cases; the instants are those of the ledger's events."""
    kills = QUICK_KILLS if is_quick else KILLS
    load_seconds = QUICK_LOAD_SECONDS if is_quick else LOAD_SECONDS
    stack = DevStack(concurrency=CONCURRENCY)
    try:
        stack.start()
        restarted = [_restarted(stack, load_seconds) for _ in range(kills)]
        lost = [_lost(stack, f"bench-lost-{number}", load_seconds) for number in range(kills)]
    finally:
        stack.stop()
    return {"restarted": _summary(restarted), "lost": _summary(lost), "jobs_per_second": RATE}


def _restarted(stack: DevStack, load_seconds: float) -> list[float]:
    return _one_kill(stack, lambda: stack.kill("worker"), load_seconds)


def _lost(stack: DevStack, name: str, load_seconds: float) -> list[float]:
    worker = stack.add_worker(name)
    found = _one_kill(stack, worker.kill, load_seconds, f"worker_id = '{name}'")
    worker.stop()
    return found


def _one_kill(
    stack: DevStack, kill: Kill, load_seconds: float, is_at_work: str | None = None
) -> list[float]:
    """Seconds from the kill to the end of each job that was out with a worker, ascending."""
    tag = new_tag()
    requests = _naps(round(RATE * load_seconds), tag)
    with EndWatcher(stack.kafka, TOPICS.completed) as ends:
        pace = Pace(stack.kafka, requests, RATE)
        pace.start()
        time.sleep(KILL_AFTER_SECONDS)
        if is_at_work is not None:
            wait_until(
                lambda: stack.count(f"startsWith(job_id, '{tag}') AND {is_at_work}") > 0,
                load_seconds,
                "the first job of the worker that is to be killed",
                POLL_SECONDS,
            )
        killed_at = time.time()
        kill()
        ends.instants(len(requests), STALL_SECONDS)
        pace.finish()
    return _recovery_seconds(stack, tag, round(killed_at * 1000), len(requests))


def _naps(count: int, tag: str) -> Sequence[Request]:
    return [
        Request(
            type=NAP,
            user_id=f"user-{number % USERS}",
            job_id=f"{tag}-{number}",
            payload={"seconds": NAP_SECONDS},
        )
        for number in range(count)
    ]


def _recovery_seconds(stack: DevStack, tag: str, killed_ms: int, jobs: int) -> list[float]:
    of_run = f"startsWith(job_id, '{tag}')"
    stack.wait_rows(jobs, f"{of_run} AND state_after = 'succeeded'", MEASURE_DEADLINE_SECONDS)
    instant = "toUnixTimestamp64Milli(occurred_at)"
    found = stack.sql(
        f"SELECT toInt32(maxIf({instant}, state_after = 'succeeded') - {killed_ms}) AS ms, "
        f"argMaxIf(state_after, sequence, {instant} <= {killed_ms}) AS held "
        f"FROM job_events WHERE {of_run} GROUP BY job_id "
        "HAVING held IN ('dispatched', 'running') ORDER BY ms"
    )
    if not found:
        raise NotMeasuredError("no job was out with a worker when it was killed")
    return [int(row["ms"]) / 1000 for row in found]


def _summary(kills: Sequence[Sequence[float]]) -> dict[str, Any]:
    lasts = sorted(found[-1] for found in kills)
    jobs = sorted(seconds for found in kills for seconds in found)
    return {
        "kills": len(kills),
        "jobs_held": len(jobs),
        "last_job_seconds": lasts,
        "last_job_p99_seconds": percentile(lasts, 0.99),
        "job_p50_seconds": percentile(jobs, 0.5),
        "job_p99_seconds": percentile(jobs, 0.99),
    }
