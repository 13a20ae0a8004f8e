"""What a measured program is: the contract between the harness and each program.

Owns: the `Program` protocol, its result and its two errors. It refuses to know any program, and
how runs are ordered or shown.

The definitions, equal for all:

- *Drain*: the given number of no-op jobs was enqueued before. The clock starts when a warm worker
  (its process has already run a batch) is let at them, and stops at the last completion as the
  program itself records it. Start-up time and the warm-up batch are in neither number.
- *Enqueue*: the program's fastest bulk call, one producer process, no worker running jobs; the
  clock stops when the program has acknowledged the last job.
- *Latency*: jobs are sent one by one at a steady rate without waiting for answers. A job's clock
  starts when it was *due*, so a late producer counts, and stops at its completion. The first
  `LATENCY_WARMUP_SECONDS` are sent and not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

# Jobs of the warm-up batch: compilers, memory and connection pools are in
# their steady state behind it. A broker's JVM takes twice the processor time of a warm one after
# 2,000 jobs, and a third more after 20,000.
WARMUP_JOBS = 100_000
# The Python peers have no compiler to warm, and the slowest would take minutes.
PYTHON_WARMUP_JOBS = 20_000

# Seconds of sending before latency counts, for the same reason.
LATENCY_WARMUP_SECONDS = 2.0

# The longest that one measurement may take before it counts as hung.
MEASURE_DEADLINE_SECONDS = 600.0

# A rate is held when the producer needed at most this much longer than planned to send everything.
RATE_TOLERANCE = 1.05


class MissingError(Exception):
    """The program cannot run here; the message says what is missing and what would help."""


class NotMeasuredError(Exception):
    """This one measurement means nothing or failed for this program; the message says why."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of one latency run, in milliseconds, and how many jobs they are of."""

    p50_ms: float
    p99_ms: float
    jobs: int

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Latency:
        if not samples_ms:
            raise NotMeasuredError("no job was counted")
        ordered = sorted(samples_ms)
        return cls(percentile(ordered, 0.50), percentile(ordered, 0.99), len(ordered))


class Program(Protocol):
    """One measured program. A call measures one run; `start` and `stop` may be called in turn many
    times in one process, and every measurement may be repeated between them."""

    @property
    def name(self) -> str:
        """Short and unique, as in `--only`."""

    @property
    def title(self) -> str:
        """What a table shows: the program with its version."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What a reader must know to judge the numbers; written to the results."""

    def install(self) -> None:
        """Brings what it needs onto the machine, once. Raises `MissingError`."""

    def start(self) -> None:
        """Starts servers, workers and producers, and runs the warm-up batch."""

    def drain(self, jobs: int) -> float:
        """Jobs per second. Raises `NotMeasuredError`, as do the next two."""

    def enqueue(self, jobs: int) -> float:
        """Jobs per second, by the fastest bulk call."""

    def latency(self, rate: int, seconds: float) -> Latency:
        """At `rate` jobs per second for `seconds` after the warm-up."""

    def stop(self) -> None:
        """Ends everything that `start` began; safe after a `start` that failed half-way."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of an ascending, non-empty sequence."""
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def check_rate_held(*, rate: int, jobs: int, seconds: float) -> None:
    """Raises `NotMeasuredError` when a producer needed clearly longer than `jobs / rate`."""
    planned = jobs / rate
    if seconds > planned * RATE_TOLERANCE + 0.5:
        raise NotMeasuredError(
            f"its producer could not hold {rate} jobs/s ({jobs / seconds:.0f} jobs/s)"
        )
