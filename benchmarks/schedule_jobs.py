"""Schedules of the benchmark: a module as a user writes it, with as many as it is told to have.

Owns how they are spread over a minute. Refuses to know who measures.
"""

from __future__ import annotations

import os
from typing import Any

from tidemill import job, schedule

COUNT_VARIABLE = "TIDEMILL_BENCH_SCHEDULES"
# How many different seconds of a minute they are due at: 60 spreads them, 1 is one instant.
SECONDS_VARIABLE = "TIDEMILL_BENCH_SCHEDULE_SECONDS"
NAME = "bench.schedule"


@job("bench.tick")
async def tick(payload: dict[str, Any]) -> None:
    """Nothing: the ledger is measured."""


def _declare(count: int, seconds: int) -> None:
    for number in range(count):
        schedule(f"{NAME}.{number}", cron=f"{number % seconds} * * * * *")(tick)


_declare(int(os.environ.get(COUNT_VARIABLE, "1")), int(os.environ.get(SECONDS_VARIABLE, "60")))
