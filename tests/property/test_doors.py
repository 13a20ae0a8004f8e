"""Whatever is said at a door: what passes is a request that the ledger takes."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.test_doors import BASE, DOORS, NOON, WRONG
from tidemill.schemas.codec import Decoded, decode_request

FIELDS = sorted({name for name, _ in WRONG})
LETTERS = st.text("aä \n{[\"0", max_size=4)

any_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | LETTERS
    | st.sampled_from(["\ud800", b"x", {1}, NOON]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LETTERS, inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS), any_json, max_size=3))
def test_no_door_lets_through_what_the_ledger_refuses(fields: dict[str, Any]) -> None:
    for door in DOORS:
        try:
            value = door(BASE | fields)
        except ValueError as refused:
            is_named = "field '" in str(refused)
        else:
            is_named = isinstance(decode_request(value, ()), Decoded)
        assert is_named
