"""The parts: what is measured of Tidemill alone, beside the comparison with its peers.

Owns their list, and that a part which fails is reported and stops no other. Refuses to know how a
part measures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from benchmarks import (
    fan_out,
    history,
    memory,
    profile,
    recovery,
    restore,
    schedules,
    sink_alone,
)
from benchmarks.program import MissingError, NotMeasuredError
from benchmarks.results import now_text


class Measure(Protocol):
    """Measures one part; raises `NotMeasuredError` or `MissingError`."""

    def __call__(self, *, is_quick: bool) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Part:
    """One command."""

    name: str
    help: str
    measure: Measure


PARTS: Final[Sequence[Part]] = (
    Part("recovery", "From kill -9 of a worker to the end of its jobs.", recovery.measure),
    Part("restore", "Rows per second of a partition's state.", restore.measure),
    Part("memory", "A million waiting jobs in one ledger.", memory.measure),
    Part("sink", "Events per second of the sink alone.", sink_alone.measure),
    Part("catchup", "From the end of a drain to its last row.", history.measure_catch_up),
    Part("visible", "From an event to its row, at 2,000 jobs/s.", history.measure_visible),
    Part("schedules", "From an instant to its job, with 10,000 schedules.", schedules.measure),
    Part("fan-out", "One job that asks for 10,000 and waits for them.", fan_out.measure),
    Part("profile", "Where the processor time of a job goes.", profile.measure),
)


def measure_part(part: Part, *, is_quick: bool) -> Mapping[str, Any]:
    """What was found, or why not, with when and how loaded the machine was before."""
    about: dict[str, Any] = {
        "measured_at": now_text(),
        "is_quick": is_quick,
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
    }
    begun = time.monotonic()
    try:
        found = part.measure(is_quick=is_quick)
    except (NotMeasuredError, MissingError) as error:
        return {**about, "not_measured": str(error)}
    return {**about, "took_seconds": round(time.monotonic() - begun, 1), **found}
