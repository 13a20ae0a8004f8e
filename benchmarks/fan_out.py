"""Fan-out: one attempt that asks for ten thousand no-op members and waits for all of them.

Owns what is measured and from when to when. Refuses to know how members travel.

A plain drain of as many jobs of the same users and each fan-out are measured in turn, on one stack.
A fan-out's clock runs from the request of its parent to the parent's record on `jobs.completed`: in
it are the attempt that asks, the members' way and that the parent goes on. A member that no slot
waits for takes one round: from its `requested` to the event of its end; the way back to the parent
comes on top, so the rate that `parallel` allows is at most `parallel` divided by that median.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, Final

from benchmarks.program import NotMeasuredError
from benchmarks.tidemill_programs import STALL_SECONDS, TOPICS, Tidemill, dev, new_tag
from benchmarks.watching import EndWatcher

FAN_OUT: Final = "bench.fan_out"
MEMBERS: Final = 10_000
QUICK_MEMBERS: Final = 1_000
WARM_MEMBERS: Final = 1_000
RUNS: Final = 3
QUICK_RUNS: Final = 1
SOME_AT_ONCE: Final = 500


def measure(*, is_quick: bool) -> dict[str, Any]:
    """Members per second of both, and what they are of a plain drain and of the bound."""
    members = QUICK_MEMBERS if is_quick else MEMBERS
    program = dev()
    plain: list[float] = []
    all_at_once: list[float] = []
    some_at_once: list[float] = []
    rounds_ms: list[float] = []
    try:
        program.start()
        _fan_out(program, WARM_MEMBERS, WARM_MEMBERS)
        for _ in range(QUICK_RUNS if is_quick else RUNS):
            plain.append(program.drain(members))
            all_at_once.append(_fan_out(program, members, members)[0])
            rate, round_ms = _fan_out(program, members, SOME_AT_ONCE)
            some_at_once.append(rate)
            rounds_ms.append(round_ms)
    finally:
        program.stop()
    bounds = [SOME_AT_ONCE / ms * 1000 for ms in rounds_ms]
    return {
        "members": members,
        "plain_jobs_per_second": [round(one) for one in plain],
        "all_at_once_members_per_second": [round(one) for one in all_at_once],
        "all_at_once_of_plain": round(statistics.median(all_at_once) / statistics.median(plain), 3),
        "parallel": SOME_AT_ONCE,
        "parallel_members_per_second": [round(one) for one in some_at_once],
        "parallel_round_ms": [round(one, 1) for one in rounds_ms],
        "parallel_of_bound": round(
            statistics.median(
                rate / bound for rate, bound in zip(some_at_once, bounds, strict=True)
            ), 3,
        ),
    }


def _fan_out(program: Tidemill, members: int, parallel: int) -> tuple[float, float]:
    """Members per second, and the median of a member's round in ms."""
    tag = new_tag()
    with EndWatcher(program.stack.kafka, TOPICS.completed) as ends:
        begun = time.perf_counter()
        program.client.enqueue(
            FAN_OUT, user_id="fan-out",
            payload={"tag": tag, "members": members, "parallel": parallel},
            job_id=tag,
        )
        seen = ends.instants(members + 1, STALL_SECONDS)
    program.settle(members + 1)
    ended = program.stack.sql(
        "SELECT quantileExact(0.5)(ended - asked) AS ms FROM ("
        "SELECT minIf(toUnixTimestamp64Milli(occurred_at), event = 'requested') AS asked, "
        "maxIf(toUnixTimestamp64Milli(occurred_at), event = 'succeeded') AS ended "
        f"FROM job_events WHERE startsWith(job_id, '{tag}-') GROUP BY user_id, job_id)"
    )
    if seen[tag] != max(seen.values()):
        raise NotMeasuredError("the parent ended before its last member")
    return members / (seen[tag] - begun), float(ended[0]["ms"])
