"""One bound for a field: what the door takes, the sink stores; what it refuses, it names."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.bounds_kit import (
    LAST_MS,
    REFUSED,
    TAKEN,
    events_of_life,
    is_taken,
    nested,
    value_with,
)
from tests.unit.partition_kit import TOPICS, request
from tests.unit.test_sink_records import Fake
from tidemill.agents.sink.records import check, encode
from tidemill.schemas.codec import COUNT_MAX, Refusal


def assert_stored(events: list[bytes]) -> None:
    """The sink takes each, in both ways; in the careful one beside what is broken."""
    assert events
    for value in events:
        found = check(value)
        assert not isinstance(found, Refusal), (found.message, value[:300])
    broken = [Fake(offset, b"{") for offset in range(3)]
    records = [Fake(offset + 3, value) for offset, value in enumerate(events)] + broken
    careful = encode(0, records, is_careful=True)
    assert len(careful.rows) == len(events)
    assert [record for record, _ in careful.refused] == broken


@pytest.mark.parametrize("name", TAKEN)
def test_the_last_values_that_the_door_takes_are_stored(name: str) -> None:
    for value in TAKEN[name]:
        asked = value_with(name, value)
        assert is_taken(asked[1]), (name, value)
        assert_stored(events_of_life(asked))


@pytest.mark.parametrize("name", REFUSED)
def test_the_first_values_that_the_door_refuses_are_stored_as_refusals(name: str) -> None:
    for value in REFUSED[name]:
        try:
            asked = value_with(name, value)
        except TypeError:  # an integer that orjson does not write
            text = request("j", **{name: "@"})[1].replace(b'"@"', repr(value).replace(
                "'", '"').encode())
            asked = (TOPICS.requested, text)
        assert not is_taken(asked[1]), (name, value)
        events = events_of_life(asked)
        if events:
            assert_stored(events)


@pytest.mark.parametrize("depth", [1, 31, 32, 33, 100, 199, 200, 201, 253, 254, 255, 300])
def test_results_of_any_depth_are_stored_or_told_as_too_deep(depth: int) -> None:
    events = events_of_life(request("j"), result=nested(depth))
    assert_stored(events)
    assert orjson.loads(events[-1])["event"] in ("succeeded", "failed")


_instants = st.one_of(
    st.integers(0, LAST_MS), st.datetimes().map(lambda moment: f"{moment.isoformat()}Z"),
    st.integers(-(2**63), 2**64 - 1),
)


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=30)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "run_at": _instants, "expires_at": _instants,
            "max_attempts": st.integers(-1, COUNT_MAX),
            "timeout_seconds": st.floats(allow_nan=False, allow_infinity=False),
            "source": st.text(max_size=130), "unique_key": st.text(max_size=260),
            "tags": st.lists(st.text(max_size=130), max_size=34),
            "priority": st.sampled_from(["high", "low", "none"]),
            "payload": st.integers(1, 40).map(nested),
        },
    )
)
def test_whatever_the_door_takes_the_sink_stores(fields: dict[str, Any]) -> None:
    asked = request("j", **fields)
    events = events_of_life(asked)
    # Of what is refused unread nobody knows whose it was: it has no events.
    if events or is_taken(asked[1]):
        assert_stored(events)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("occurred_at", "1970-01-01T00:00:00Z"), ("occurred_at", "1969-12-31T23:59:59.999Z"),
        ("occurred_at", "2300-01-01T00:00:00.000Z"), ("due_at", "2299-12-31T00:00:00.001Z"),
        ("due_at", "9999-12-31T23:59:59.999-23:59"), ("due_at", "2250-06-01T00:00:00"),
        ("due_at", "0001-01-01T00:00:00+23:59"), ("state_after", None),
    ],
)
def test_events_beyond_a_bound_are_refused_by_name(name: str, text: str | None) -> None:
    event = orjson.loads(events_of_life(request("j"))[0])
    found = check(orjson.dumps({**event, name: text}))
    assert isinstance(found, Refusal)
    assert found.field == name


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("2250-06-01T00:00:00.000Z", "2250-06-01T00:00:00.000Z"),
        ("20500601T000000Z", "2050-06-01T00:00:00.000Z"),
        ("2050-W01-1T00:00:00Z", "2050-01-03T00:00:00.000Z"),
        ("2050-06-01 02:30:00.123456+02:30", "2050-06-01T00:00:00.123Z"),
    ],
)
def test_an_instant_in_another_form_goes_in_as_the_ledger_writes_it(
    text: str, written: str
) -> None:
    event = orjson.loads(events_of_life(request("j"))[0])
    found = check(orjson.dumps({**event, "due_at": text}))
    assert isinstance(found, dict)
    assert found["due_at"] == written
