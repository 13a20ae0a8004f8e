"""What a ledger does with a record on jobs.internal: read it, bury it, or end and say why."""

from __future__ import annotations

from typing import Final

import pytest

from tests.chaos.rawlog import RawRecord
from tests.unit.core_kit import NOW
from tests.unit.partition_kit import TOPICS, Scene, events_in, events_of, plain, request, restored
from tidemill.streams.decision import NeedsNewer
from tidemill.streams.envelope import (
    KIND_HEADER,
    NEEDS_HEADER,
    ORIGIN_HEADER,
    POLICY_HEADER,
    VERSION_HEADER,
)
from tidemill.streams.partitioner import partition_of

ORIGIN: Final = (ORIGIN_HEADER, b"jobs.requested/3/17")
VALUE: Final = request("j")[1]
CANCEL: Final = b'{"command":"cancel","user_id":"u","job_id":"j"}'
Headers = tuple[tuple[str, bytes | None], ...]


@pytest.mark.parametrize(
    ("headers", "value", "events"),
    [
        ((ORIGIN, (KIND_HEADER, b"request")), VALUE, ["requested", "dispatched"]),
        ((ORIGIN,), VALUE, ["requested", "dispatched"]),
        ((ORIGIN, (KIND_HEADER, None)), VALUE, ["requested", "dispatched"]),
        ((ORIGIN, (KIND_HEADER, b"command")), CANCEL, ["cancel_kept"]),
        ((("other", b"x"), ORIGIN, (KIND_HEADER, b"request")), VALUE,
         ["requested", "dispatched"]),
        ((ORIGIN, (KIND_HEADER, b"request"), (VERSION_HEADER, b"1")), VALUE,
         ["requested", "dispatched"]),
        ((ORIGIN, (KIND_HEADER, b"command"), (VERSION_HEADER, b"1")), CANCEL, ["cancel_kept"]),
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
        ((ORIGIN_HEADER, b"\xff/0/1"), (KIND_HEADER, b"request")),
        ((KIND_HEADER, b"request"),),
        ((KIND_HEADER, b"schedule"),),
        (ORIGIN, (KIND_HEADER, b"")),
        (ORIGIN, (KIND_HEADER, b"\xff\xfe")),
        (ORIGIN, (KIND_HEADER, b"a kind with spaces")),
        (ORIGIN, (KIND_HEADER, b"x" * 10_000)),
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
    headers: Headers = (ORIGIN, (KIND_HEADER, kind))
    if needs is not None:
        headers += ((NEEDS_HEADER, needs),)
    with pytest.raises(NeedsNewer) as raised:
        scene.group(NOW, (TOPICS.internal, VALUE), headers=headers)
    for part in (named, repr(kind.decode()), "jobs.internal[0]@0"):
        assert part in str(raised.value)
    # Nothing was decided of it: after an upgrade it is read again.
    scene.engine.rollback()
    assert TOPICS.internal not in scene.state.applied


FOREIGN: Final[tuple[Headers, ...]] = (
    (),
    (("h", b"1"), ("h", b"2"), ("h", None), ("", b"\xff\x00")),
    ((KIND_HEADER, b"schedule"),),
    ((KIND_HEADER, b"message"), (POLICY_HEADER, b"permits"), (VERSION_HEADER, b"9")),
    ((ORIGIN_HEADER, b"jobs.internal/0/1"), (KIND_HEADER, b"message"), (VERSION_HEADER, b"9")),
    ((ORIGIN_HEADER, b"nowhere"), (NEEDS_HEADER, b"9.9.9"), (KIND_HEADER, b"command")),
)


def forwarded(topic: str, value: bytes, foreign: Headers, key: bytes | None) -> RawRecord:
    """What the home of user u is sent of a record that came to the other partition."""
    home = partition_of("u", 2)
    other = restored([], NOW, number=1 - home, partitions=2)
    other.begin(NOW)
    other.take(topic, 1 - home, RawRecord(topic, 1 - home, 5, NOW, key, value, foreign))
    ((to, partition, sent_key, sent, headers),) = [
        record for record in other.seal() if record[0] == TOPICS.internal
    ]
    assert (partition, sent_key, sent) == (home, key, value)
    return RawRecord(to, home, 0, NOW, sent_key, sent, tuple(headers or ()))


@pytest.mark.parametrize("key", [None, b"", b"\xff"])
@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_strangers_record_is_what_it_was_whatever_its_headers_are_called(
    foreign: Headers, key: bytes | None
) -> None:
    home = partition_of("u", 2)
    engine = restored([], NOW, number=home, partitions=2)
    taken = forwarded(TOPICS.requested, VALUE, foreign, key)
    engine.begin(NOW)
    assert engine.take(TOPICS.internal, home, taken)
    (event, *_) = events_in(list(engine.seal()))
    assert (event["event"], event["cause"]["topic"], event["cause"]["offset"]) == (
        "requested", TOPICS.requested, 5,
    )
    # One that is refused at home lies on jobs.dead with its own key, value and headers.
    broken = b'{"type":"t","user_id":"u","surprise":1}'
    engine = restored([], NOW, number=home, partitions=2)
    taken = forwarded(TOPICS.requested, broken, foreign, key)
    engine.begin(NOW)
    assert engine.take(TOPICS.internal, home, taken)
    (letter,) = [record for record in engine.seal() if record[0] == TOPICS.dead]
    assert letter[2:4] == (key, broken)
    own = [header for header in letter[4] or () if not header[0].startswith("tidemill.dead.")]
    assert own == list(foreign)


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_strangers_command_too(foreign: Headers) -> None:
    home = partition_of("u", 2)
    engine = restored([], NOW, number=home, partitions=2)
    taken = forwarded(TOPICS.commands, CANCEL, foreign, None)
    engine.begin(NOW)
    assert engine.take(TOPICS.internal, home, taken)
    (event,) = events_in(list(engine.seal()))
    assert (event["event"], event["cause"]["topic"]) == ("cancel_kept", TOPICS.commands)
