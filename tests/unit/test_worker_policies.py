"""Durations, backoff and rate limits as users write them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tidemill.agents.worker.durations import seconds_of
from tidemill.agents.worker.errors import JobDefinitionError
from tidemill.policies import Backoff, RateLimit
from tidemill.schemas.wire import BackoffSpec, LimitSpec


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2s", 2), ("5min", 300), ("1h", 3_600), ("500ms", 0.5), ("1.5 h", 5_400), ("1d", 86_400),
        ("2w", 1_209_600), ("1h30min", 5_400), ("1h 30m", 5_400), ("3 hours", 10_800),
        ("10 SEC", 10), (7, 7), (0.25, 0.25), (0, 0), (timedelta(minutes=2), 120),
    ],
)
def test_durations(text: Any, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "s", "5", "five", "5 parsecs", "-1s", "1h-2m", "400d", "1e3s", True, None, [], -1,
     float("nan"), float("inf"), 10**12],
    ids=repr,
)
def test_what_is_no_duration_is_refused_with_the_ways_to_write_one(text: Any) -> None:
    with pytest.raises(JobDefinitionError, match=r"wait=.*(write a number|use ms, s)"):
        seconds_of(text, "wait")


def test_backoff() -> None:
    assert Backoff.exponential().spec() == BackoffSpec()
    made = Backoff.exponential("1s", factor=3, jitter=0, cap="1h").spec()
    assert made == BackoffSpec(base_ms=1_000, factor=3, jitter=0, cap_ms=3_600_000)
    assert Backoff.fixed("10s").spec() == BackoffSpec(
        base_ms=10_000, factor=1, jitter=0, cap_ms=10_000
    )


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"factor": 0.5}, "factor"), ({"factor": "2"}, "factor"), ({"jitter": 2}, "jitter"),
        ({"jitter": -0.1}, "jitter"), ({"base": "x"}, "base"), ({"base": "2h"}, "cap"),
    ],
)
def test_backoff_refuses(options: dict[str, Any], name: str) -> None:
    with pytest.raises(JobDefinitionError, match=name):
        Backoff.exponential(**options)


@pytest.mark.parametrize(
    ("rate", "limit", "window_ms"),
    [("1/h", 1, 3_600_000), ("10/min", 10, 60_000), ("100/5min", 100, 300_000),
     (" 3 / 2 s ", 3, 2_000), ("1000/day", 1_000, 86_400_000)],
)
def test_rates(rate: str, limit: int, window_ms: int) -> None:
    assert RateLimit(rate, by="user", over="delay").spec() == LimitSpec(
        limit=limit, window_ms=window_ms, over="delay", by="user"
    )
    assert RateLimit(rate).over == "skip"


@pytest.mark.parametrize(
    ("rate", "options"),
    [
        ("10", {}), ("x/h", {}), ("0/h", {}), ("1001/h", {}), ("1/", {}), ("1/2/3", {}),
        ("-1/h", {}), ("1.5/h", {}), ("1/parsec", {}), ("1/0s", {}), (5, {}),
        ("99999999999/h", {}), ("1/h", {"by": "queue"}), ("1/h", {"over": "drop"}),
    ],
    ids=repr,
)
def test_rates_that_are_refused(rate: Any, options: dict[str, Any]) -> None:
    with pytest.raises(JobDefinitionError, match="RateLimit"):
        RateLimit(rate, **options)
