"""Fan-out: one attempt that asks for ten thousand no-op members and waits for all of them.

Owns what is measured and from when to when, and reads the parents' and members' messages in the
log. Refuses to know what else is in them.

A plain drain of as many jobs of the same users and each fan-out are measured in turn, on one stack.
A fan-out's clock runs from the request of its parent to the parent's record on `jobs.completed`: in
it are the attempt that asks, the members' way and that the parent goes on.

A round is the time of one member from its release to its known end: from the message that releases
it to the message that tells its end, and from that to the next group of its parent, which takes it.
No more than `parallel` divided by the median of the rounds can end in a second.
"""

from __future__ import annotations

import statistics
import time
from bisect import bisect_right
from typing import Any, Final

import orjson
from confluent_kafka import Message

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
    kafka = program.stack.kafka
    with EndWatcher(kafka, TOPICS.completed) as ends, EndWatcher(kafka, TOPICS.internal) as log:
        begun = time.perf_counter()
        program.client.enqueue(
            FAN_OUT, user_id="fan-out", job_id=tag,
            payload={"tag": tag, "members": members, "parallel": parallel},
        )
        seen = ends.instants(members + 1, STALL_SECONDS)
        if seen[tag] != max(seen.values()):
            raise NotMeasuredError("the parent ended before its last member")
        rounds = _rounds(log, tag, members)
    program.settle(members + 1)
    return members / (seen[tag] - begun), statistics.median(rounds)


def _rounds(log: EndWatcher, tag: str, members: int) -> list[float]:
    """ms of each member's round, by the instants of the groups that wrote the messages."""
    released: dict[int, int] = {}
    told: dict[int, int] = {}
    begun = time.monotonic()

    def note(message: Message, now: float) -> None:
        headers = dict(message.headers() or ())
        if headers.get("tidemill-policy") != b"gather":
            return
        body = orjson.loads(message.value() or b"{}")
        if body["of"][1] == tag and body["kind"] in ("release", "ends"):
            to = released if body["kind"] == "release" else told
            for index, *_ in body["members" if to is released else "ends"]:
                to[index] = message.timestamp()[1]

    while len(told) < members:
        log.each(note)
        if time.monotonic() - begun > STALL_SECONDS:
            raise NotMeasuredError(f"{len(told)} of {members} ends were found in the log")
    groups = sorted(set(released.values()))
    return [_taken(groups, told[index]) - at for index, at in released.items()]


def _taken(groups: list[int], told: int) -> int:
    """The instant of the first group of the parent that may have taken an end; when it released
    nobody any more, that of the end."""
    place = bisect_right(groups, told)
    return groups[place] if place < len(groups) else told
