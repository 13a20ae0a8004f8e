"""Instants on the command line: from now, RFC 3339, and numbers since 1970."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tidemill.cli.instants import instant_of
from tidemill.looking import unknown_type_hint

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("+5m", NOW + timedelta(minutes=5)),
        ("+90s", NOW + timedelta(seconds=90)),
        ("+2h", NOW + timedelta(hours=2)),
        ("+7d", NOW + timedelta(days=7)),
        ("+1h30m", NOW + timedelta(minutes=90)),
        ("+0.5s", NOW + timedelta(milliseconds=500)),
        (" +5m ", NOW + timedelta(minutes=5)),
        ("2026-03-02T00:00:00Z", NOW + timedelta(hours=12)),
        ("2026-03-02T01:00:00+01:00", NOW + timedelta(hours=12)),
        ("1772366400", NOW),
        ("1772366400.250", NOW + timedelta(milliseconds=250)),
        ("1772366400000", NOW),
    ],
)
def test_forms_of_an_instant(text: str, expected: datetime) -> None:
    assert instant_of(text, NOW) == expected


@pytest.mark.parametrize(
    "text",
    ["5m", "+5", "+m", "-5m", "+5w", "+5 m", "tomorrow", "2026-03-02", "2026-03-02T00:00:00",
     "+9999999999d", "999999999999999999", "1e9", "\u0665", "+\u0665m"],
)
def test_what_is_no_instant_is_answered_with_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"\+5m"):
        instant_of(text, NOW)


@pytest.mark.parametrize(
    ("asked", "known", "told"),
    [
        ("greeet", {"greet"}, "no worker has told of type 'greeet'; known: greet"),
        ("mail.sent", {"a", "mail.send", "z"}, "no worker has told of type 'mail.sent'; known: "
         "mail.send, a, z"),
        ("x", set(), "no worker has told of type 'x', nor of any other; does one run?"),
        ("greet", {"greet"}, None),
    ],
)
def test_a_type_that_nobody_told_of(asked: str, known: set[str], told: str | None) -> None:
    assert unknown_type_hint(asked, known) == told


def test_many_types_are_bounded_in_the_hint() -> None:
    told = unknown_type_hint("x", {f"type-{number:03}" for number in range(50)})
    assert told is not None
    assert told.endswith("and 40 more")
