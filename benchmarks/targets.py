"""The targets: what was promised, what the results file says, and whether that is met.

Owns the numbers of the promise. Refuses to measure: it reads one document, and what is not in it
is not measured. Ratios are of programs of the same session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

Verdict = Literal["met", "not met", "not measured"]
Document = Mapping[str, Any]

# name of the peer, how many times its drain `tidemill dev` must make.
DEV_TIMES = (("bullmq", 1.0), ("taskiq", 3.0), ("celery", 15.0))
BEST_TIMES = (("bullmq", 1.25), ("river", 1.0))
ENQUEUE_TIMES = 4.0
# jobs/s, p50 and p99 in ms.
LATENCY = ((200, 30.0, 100.0), (2_000, 60.0, 150.0))
# The shortest latency run that counts.
LATENCY_SECONDS = 10.0
RECOVERY_SECONDS = 15.0
RESTORE_ROWS_PER_SECOND = 100_000
MEMORY_MIB = 1_536
MEMORY_JOBS = 1_000_000
SINK_EVENTS_PER_SECOND = 50_000
CATCH_UP_SECONDS = 10.0
DRAIN_JOBS = 100_000
VISIBLE_MS = 3_000.0
SCHEDULES = 10_000
TICK_MS = 500.0
# A fan-out of 10,000: of a plain drain, and of what `parallel` allows.
FAN_OUT_OF_PLAIN = 0.5
FAN_OUT_OF_BOUND = 0.8

DEV = "tidemill"
DEV_ACCEPTED = "tidemill-accepted"
OURS_STRICT = ("tidemill", "tidemill-best")


class Target(NamedTuple):
    """One line of the promise."""

    what: str
    wanted: str
    found: str
    verdict: Verdict


def targets(document: Document) -> list[Target]:
    """Every line, in the order of the promise."""
    return [
        *_drains(document),
        _enqueue(document),
        *_latencies(document),
        *_recovery(document),
        *_restore(document),
        _memory(document),
        _sink(document),
        _catch_up(document),
        _visible(document),
        _schedules(document),
        *_fan_out(document),
    ]


def _at_least(what: str, unit: str, wanted: float, found: float | None) -> Target:
    if found is None:
        return Target(what, f">= {wanted:,g} {unit}".rstrip(), "–", "not measured")
    verdict: Verdict = "met" if found >= wanted else "not met"
    return Target(what, f">= {wanted:,g} {unit}".rstrip(), _shown(found, unit), verdict)


def _at_most(what: str, unit: str, wanted: float, found: float | None) -> Target:
    if found is None:
        return Target(what, f"<= {wanted:,g} {unit}".rstrip(), "–", "not measured")
    verdict: Verdict = "met" if found <= wanted else "not met"
    return Target(what, f"<= {wanted:,g} {unit}".rstrip(), _shown(found, unit), verdict)


def _shown(found: float, unit: str) -> str:
    text = f"{found:,.2f}" if found < 100 else f"{found:,.0f}"
    return f"{text} {unit}".rstrip()


def _rate(document: Document, program: str, measure: str) -> float | None:
    if document.get("plan", {}).get("jobs", 0) < DRAIN_JOBS:
        return None  # a look proves nothing
    measured = document.get("programs", {}).get(program, {})
    median = measured.get(f"{measure}_jobs_per_second", {}).get("median")
    return None if median is None else float(median)


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else ours / theirs


def _drains(document: Document) -> Iterator[Target]:
    dev = _rate(document, DEV, "drain")
    for peer, times in DEV_TIMES:
        ratio = _ratio(dev, _rate(document, peer, "drain"))
        yield _at_least(f"drain, tidemill dev, strict, against {peer}", "times", times, ratio)
    accepted = _rate(document, DEV_ACCEPTED, "drain")
    for peer, times in DEV_TIMES:
        ratio = _ratio(accepted, _rate(document, peer, "drain"))
        what = f"drain, tidemill dev, accepted before, against {peer}"
        yield _at_least(what, "times", times, ratio)
    rates = [rate for name in OURS_STRICT if (rate := _rate(document, name, "drain")) is not None]
    for peer, times in BEST_TIMES:
        ratio = _ratio(max(rates, default=None), _rate(document, peer, "drain"))
        yield _at_least(f"drain, our best, strict, against {peer}", "times", times, ratio)


def _enqueue(document: Document) -> Target:
    ratio = _ratio(_rate(document, DEV, "enqueue"), _rate(document, "bullmq", "enqueue"))
    return _at_least("enqueue_many against bullmq's addBulk", "times", ENQUEUE_TIMES, ratio)


def _latencies(document: Document) -> Iterator[Target]:
    by_rate = document.get("programs", {}).get(DEV, {}).get("latency_ms_by_rate", {})
    if document.get("plan", {}).get("latency_seconds", 0.0) < LATENCY_SECONDS:
        by_rate = {}  # a look proves nothing
    for rate, p50, p99 in LATENCY:
        median = by_rate.get(str(rate), {}).get("median") or {}
        for name, wanted in (("p50", p50), ("p99", p99)):
            what = f"request to completed at {rate:,} jobs/s, {name}"
            yield _at_most(what, "ms", wanted, median.get(f"{name}_ms"))


def _part(document: Document, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = document.get("parts", {}).get(name, {})
    # A look proves nothing.
    return {} if found.get("is_quick") else found


def _recovery(document: Document) -> Iterator[Target]:
    part = _part(document, "recovery")
    for case, told in (("restarted", "it comes back"), ("lost", "it never comes back")):
        found = part.get(case, {}).get("last_job_p99_seconds")
        what = f"kill -9 of a worker to its last job's end, {told}, p99"
        yield _at_most(what, "s", RECOVERY_SECONDS, found)


def _restore(document: Document) -> Iterator[Target]:
    part = _part(document, "restore")
    for kind in ("waiting", "ended"):
        found = part.get(kind, {}).get("rows_per_second")
        yield _at_least(f"restore, {kind} jobs", "rows/s", RESTORE_ROWS_PER_SECOND, found)


def _memory(document: Document) -> Target:
    part = _part(document, "memory")
    # Fewer jobs prove nothing: memory does not grow in a line.
    found = part.get("highest_mib") if part.get("jobs", 0) >= MEMORY_JOBS else None
    return _at_most(f"ledger with {MEMORY_JOBS:,} waiting jobs", "MiB", MEMORY_MIB, found)


def _sink(document: Document) -> Target:
    found = _part(document, "sink").get("catch_up", {}).get("events_per_second")
    return _at_least("the sink alone", "events/s", SINK_EVENTS_PER_SECOND, found)


def _catch_up(document: Document) -> Target:
    part = _part(document, "catchup")
    found = part.get("seconds") if part.get("jobs", 0) >= DRAIN_JOBS else None
    what = f"sink has caught up after a drain of {DRAIN_JOBS:,}"
    return _at_most(what, "s", CATCH_UP_SECONDS, found)


def _visible(document: Document) -> Target:
    found = _part(document, "visible").get("p99_ms")
    return _at_most("event to row at 2,000 jobs/s, p99", "ms", VISIBLE_MS, found)


def _schedules(document: Document) -> Target:
    part = _part(document, "schedules")
    enough = part.get("schedules", 0) >= SCHEDULES
    found = part.get("spread", {}).get("requested_p99_ms") if enough else None
    what = f"an instant to its job, {SCHEDULES:,} schedules over a minute, p99"
    return _at_most(what, "ms", TICK_MS, found)


def _fan_out(document: Document) -> Iterator[Target]:
    part = _part(document, "fan-out")
    what = "fan-out of 10,000, all at once, of a plain drain"
    yield _at_least(what, "times", FAN_OUT_OF_PLAIN, part.get("all_at_once_of_plain"))
    what = "fan-out of 10,000, 500 at once, of 500 by a member's round"
    yield _at_least(what, "times", FAN_OUT_OF_BOUND, part.get("parallel_of_bound"))
