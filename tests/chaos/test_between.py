"""The checker's own test of what partitions tell each other: only right logs are clean."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos.handmade import History

FOREIGN = (("tidemill-kind", b"schedule"), ("tidemill-origin", b"x/1/2"))


def told() -> History:
    """Three jobs, two of them forwarded, one with headers of our names; four messages."""
    log = History()
    for name in ("a", "b", "c"):
        log.run("ann", name)
    log.requested[1] = replace(log.requested[1], headers=FOREIGN)
    log.forward(0)
    log.forward(1)
    for _ in range(4):
        log.say()
    log.write_rows()
    return log


def bend_record(log: History, index: int, **fields: object) -> None:
    log.internal[index] = replace(log.internal[index], **fields)  # type: ignore[arg-type]


def bend_position(log: History, **fields: object) -> None:
    log.rows[b"p"] = json.dumps(json.loads(log.rows[b"p"]) | fields).encode()


def forwarded_twice(log: History) -> None:
    log.forward(1)


def child_twice(log: History) -> None:
    for _ in range(2):
        log.forward(1)
        bend_record(
            log, -1,
            headers=(("tidemill-origin", b"jobs.outcomes/0/3"), ("tidemill-kind", b"request")),
        )


def forwarded_from_nowhere(log: History) -> None:
    log.requested.pop()
    log.forward(0)
    bend_record(
        log, -1,
        headers=(("tidemill-origin", b"jobs.requested/0/77"), ("tidemill-kind", b"request")),
    )


def value_changed(log: History) -> None:
    bend_record(log, 0, value=b"{}")


def key_lost(log: History) -> None:
    bend_record(log, 0, key=None)


def header_lost(log: History) -> None:
    bend_record(log, 1, headers=log.internal[1].headers[1:])


def no_envelope(log: History) -> None:
    bend_record(log, 2, headers=())


def unknown_kind(log: History) -> None:
    bend_record(log, 2, headers=(log.internal[2].headers[0], ("tidemill-kind", b"grant")))


def message_twice(log: History) -> None:
    log.say(2)


def message_left_out(log: History) -> None:
    log.say(7)


def message_behind(log: History) -> None:
    log.internal[2], log.internal[3] = log.internal[3], log.internal[2]


def counter_behind(log: History) -> None:
    bend_position(log, sent=3)


def not_taken(log: History) -> None:
    bend_position(log, applied={"jobs.requested": 2, "jobs.internal": 4})


BENT = [
    (forwarded_twice, "forwarded_twice"), (child_twice, "forwarded_twice"),
    (forwarded_from_nowhere, "forward_invented"),
    (value_changed, "forward_changed"), (key_lost, "forward_changed"),
    (header_lost, "forward_changed"), (no_envelope, "internal_unreadable"),
    (unknown_kind, "internal_unreadable"), (message_twice, "message_twice"),
    (message_left_out, "message_lost"), (message_behind, "message_out_of_order"),
    (counter_behind, "message_lost"), (not_taken, "internal_not_taken"),
]


def test_a_right_log_is_clean() -> None:
    report = told().check()
    assert report.is_clean, report.text()
    assert report.checked["between partitions"] == 6


def test_headers_that_a_client_cannot_read_are_not_compared() -> None:
    log = told()
    log.requested[1] = replace(log.requested[1], headers=(), has_odd_headers=True)
    assert log.check().is_clean
    bend_record(log, 1, value=b"{}")
    assert "forward_changed" in log.check().kinds


@pytest.mark.parametrize(("bend", "kind"), BENT, ids=[bend.__name__ for bend, _ in BENT])
def test_each_bent_log_is_caught(bend: Callable[[History], None], kind: str) -> None:
    log = told()
    bend(log)
    report = log.check()
    assert kind in report.kinds, report.text()
