"""The crash point's own logic: which name, the how-manieth time, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.agents.crash import CRASH_EXIT_CODE, UnknownCrashPoint, crash_function, crash_point


def test_nothing_is_asked_for() -> None:
    ended: list[int] = []
    point = crash_function("", ended.append)
    point("ledger.before_begin")
    assert ended == []
    crash_point("ledger.before_begin")  # the suite itself runs without the variable


def test_ends_at_the_third_time() -> None:
    ended: list[int] = []
    point = crash_function("ledger.before_begin:3", ended.append)
    for _ in range(2):
        point("ledger.before_begin")
        point("ledger.after_apply_before_ack")
    assert ended == []
    point("ledger.before_begin")
    assert ended == [CRASH_EXIT_CODE]


def test_ends_once_the_file_is_there(tmp_path: Path) -> None:
    ended: list[int] = []
    point = crash_function(f"ledger.before_begin@{tmp_path / 'now'}", ended.append)
    point("ledger.before_begin")
    (tmp_path / "now").touch()
    point("ledger.after_apply_before_ack")
    assert ended == []
    point("ledger.before_begin")
    assert ended == [CRASH_EXIT_CODE]


@pytest.mark.parametrize("asked", ["nowhere", "ledger.before_begin:x", ":3"])
def test_a_crash_that_cannot_come_is_refused(asked: str) -> None:
    with pytest.raises(UnknownCrashPoint, match=r"ledger\.before_begin"):
        crash_function(asked)


def test_a_name_that_is_not_listed_is_a_bug() -> None:
    point = crash_function("ledger.before_begin", lambda _code: None)
    with pytest.raises(UnknownCrashPoint):
        point("ledger.nowhere")
