"""What a tick asks for: the request of its job.

Owns the body of that request. Refuses to know when a tick is due.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import orjson

from tidemill.schemas.codec import Decoded, Refusal, decode_request
from tidemill.schemas.schedules import SOURCE, USER_PREFIX, ScheduleSpec
from tidemill.streams.occurrences.due import jitter_ms, occurrence_id

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Tick(NamedTuple):
    """One instant of a schedule, as it is dealt with."""

    instant_ms: int
    at_ms: int  # now
    previous_ms: int | None
    is_catch_up: bool
    missed: int = 0  # stands for so many ticks that do not run
    is_exact: bool = True
    suffix: str = ""  # of the job's id, where somebody asked for it


def request_of(
    name: str, spec: ScheduleSpec, tick: Tick, *, takes_tick: bool
) -> tuple[Decoded | Refusal, str]:
    """The request of its job, and the job's id."""
    job_id = occurrence_id(name, tick.instant_ms) + tick.suffix
    body: dict[str, Any] = {
        "type": spec.type, "user_id": USER_PREFIX + name, "job_id": job_id, "source": SOURCE,
        "payload": _tick_payload(name, spec, tick) if takes_tick else spec.payload,
    }
    if spec.jitter_ms and not tick.missed and not tick.suffix:
        body["run_at"] = tick.instant_ms + jitter_ms(name, tick.instant_ms, spec.jitter_ms)
    if tick.missed:
        number = str(tick.missed) if tick.is_exact else f"at least {tick.missed}"
        body["tags"] = [f"missed: {number}"]
    return decode_request(orjson.dumps(body), ()), job_id


def _tick_payload(name: str, spec: ScheduleSpec, tick: Tick) -> dict[str, Any]:
    return {
        "name": name, "at": text_of(tick.at_ms), "scheduled_for": text_of(tick.instant_ms),
        "previous": None if tick.previous_ms is None else text_of(tick.previous_ms),
        "is_catch_up": tick.is_catch_up, "payload": spec.payload,
    }


def text_of(instant_ms: int) -> str:
    """RFC 3339 in UTC, milliseconds."""
    instant = _EPOCH + timedelta(milliseconds=instant_ms)
    return instant.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
