"""What a ledger does with a record on jobs.internal: read it, bury it, or end and say why."""

from __future__ import annotations

from typing import Final

import pytest

from streams.decision import NeedsNewer
from streams.outbox import NEEDS_HEADER, ORIGIN_HEADER, ORIGIN_KIND_HEADER
from tests.unit.core_kit import NOW
from tests.unit.partition_kit import TOPICS, Scene, events_of, plain, request

ORIGIN: Final = (ORIGIN_HEADER, b"jobs.requested/3/17")
VALUE: Final = request("j")[1]
CANCEL: Final = b'{"command":"cancel","user_id":"u","job_id":"j"}'
Headers = tuple[tuple[str, bytes | None], ...]


@pytest.mark.parametrize(
    ("headers", "value", "events"),
    [
        ((ORIGIN, (ORIGIN_KIND_HEADER, b"request")), VALUE, ["requested", "dispatched"]),
        ((ORIGIN,), VALUE, ["requested", "dispatched"]),
        ((ORIGIN, (ORIGIN_KIND_HEADER, None)), VALUE, ["requested", "dispatched"]),
        ((ORIGIN, (ORIGIN_KIND_HEADER, b"command")), CANCEL, ["cancel_kept"]),
        ((("other", b"x"), ORIGIN, (ORIGIN_KIND_HEADER, b"request")), VALUE,
         ["requested", "dispatched"]),
    ],
)
def test_todays_forwards_are_read(headers: Headers, value: bytes, events: list[str]) -> None:
    scene = Scene(plain())
    assert events_of(scene.group(NOW, (TOPICS.internal, value), headers=headers)) == events


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((ORIGIN_HEADER, None),),
        ((ORIGIN_HEADER, b"nowhere"),),
        ((ORIGIN_HEADER, b"\xff/0/1"), (ORIGIN_KIND_HEADER, b"request")),
        ((ORIGIN_KIND_HEADER, b"request"),),
        ((ORIGIN_KIND_HEADER, b"schedule"),),
        (ORIGIN, (ORIGIN_KIND_HEADER, b"")),
        (ORIGIN, (ORIGIN_KIND_HEADER, b"\xff\xfe")),
        (ORIGIN, (ORIGIN_KIND_HEADER, b"a kind with spaces")),
        (ORIGIN, (ORIGIN_KIND_HEADER, b"x" * 10_000)),
    ],
)
@pytest.mark.parametrize("value", [VALUE, CANCEL, b"nonsense", None])
def test_what_no_ledger_wrote_is_buried_and_the_next_record_is_taken(
    headers: Headers, value: bytes | None
) -> None:
    scene = Scene(plain())
    records = scene.group(NOW, (TOPICS.internal, value), headers=headers)  # type: ignore[arg-type]
    (letter,) = [record for record in records if record[0] == TOPICS.dead]
    assert letter[3] == value
    assert dict(letter[4] or ())["tidemill.dead.error.code"] == b"BROKEN_FORWARD"
    assert not events_of(records)
    assert events_of(scene.group(NOW + 1, request("j"))) == ["requested", "dispatched"]


@pytest.mark.parametrize("kind", [b"schedule", b"reserve", b"request2", b"grant-all", b"x"])
@pytest.mark.parametrize(
    ("needs", "named"), [(None, "a later version"), (b"0.9.0", "Tidemill 0.9.0 or later")]
)
def test_a_kind_that_came_later_ends_the_ledger_and_names_the_version(
    kind: bytes, needs: bytes | None, named: str
) -> None:
    scene = Scene(plain())
    headers: Headers = (ORIGIN, (ORIGIN_KIND_HEADER, kind))
    if needs is not None:
        headers += ((NEEDS_HEADER, needs),)
    with pytest.raises(NeedsNewer) as raised:
        scene.group(NOW, (TOPICS.internal, VALUE), headers=headers)
    for part in (named, repr(kind.decode()), "jobs.internal[0]@0"):
        assert part in str(raised.value)
    # Nothing was decided of it: after an upgrade it is read again.
    scene.engine.undo()
    assert TOPICS.internal not in scene.state.applied
