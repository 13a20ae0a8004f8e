"""The checker follows signals: what is right passes, and each bend is seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.chaos.handmade import History, instant
from tests.chaos.ledger_rows import digest_of


def dispatched(log: History, job: str) -> None:
    log.tell("sue", job, "requested", "pending", cause=log.ask("sue", job))
    log.tell("sue", job, "dispatched", "dispatched")


def again_to_the_end(log: History, job: str) -> None:
    log.tell("sue", job, "dispatched", "dispatched", attempt=1)
    log.finish("sue", job)


def in_time(log: History) -> None:
    dispatched(log, "in-time")
    log.wait("sue", "in-time")
    log.resume("sue", "in-time", 0)
    log.note_signal("sue", "in-time", 1, "command_refused", "already_signalled")
    again_to_the_end(log, "in-time")


def early(log: History) -> None:
    dispatched(log, "early")
    log.note_signal("sue", "early", 2)
    log.wait("sue", "early")
    log.resume("sue", "early", 2)
    again_to_the_end(log, "early")


def before_its_request(log: History) -> None:
    log.note_signal("sue", "before", 3)
    dispatched(log, "before")
    log.wait("sue", "before")
    log.resume("sue", "before", 3)
    again_to_the_end(log, "before")


def too_late(log: History) -> None:
    dispatched(log, "late")
    log.wait("sue", "late", instant(log.now_ms))
    log.resume("sue", "late", None, "timed_out")
    log.note_signal("sue", "late", 4, "command_refused", "timed_out")
    again_to_the_end(log, "late")


def never_awaited(log: History) -> None:
    dispatched(log, "never")
    log.note_signal("sue", "never", 5)
    log.note_signal("sue", "never", 5, "command_refused", "not_awaited")
    log.finish("sue", "never")
    log.note_signal("sue", "nobody", 6)
    log.note_signal("sue", "nobody", 6, "command_refused", "unknown_job")


def gone_with_its_job(log: History) -> None:
    dispatched(log, "gone")
    log.note_signal("sue", "gone", 7)
    log.finish("sue", "gone")
    log.signals.pop(("sue", "gone"))


STORIES = (in_time, early, before_its_request, too_late, never_awaited, gone_with_its_job)


@pytest.mark.parametrize("story", STORIES)
def test_what_is_right_is_clean(story: Callable[[History], None]) -> None:
    log = History()
    story(log)
    log.write_rows()
    report = log.check()
    assert report.is_clean, report.text()


def given_twice(log: History) -> None:
    dispatched(log, "twice")
    log.wait("sue", "twice")
    log.resume("sue", "twice", 8)
    log.tell("sue", "twice", "dispatched", "dispatched", attempt=1)
    log.wait("sue", "twice")
    log.resume("sue", "twice", 9)


def another_than_the_kept_one(log: History) -> None:
    dispatched(log, "early")
    log.note_signal("sue", "early", 2)
    log.wait("sue", "early")
    log.resume("sue", "early", 8)


def kept_and_waited_on(log: History) -> None:
    dispatched(log, "early")
    log.note_signal("sue", "early", 2)
    log.wait("sue", "early")
    log.resume("sue", "early", None, "timed_out")


def late_without_a_time_out(log: History) -> None:
    dispatched(log, "late")
    log.wait("sue", "late")
    log.resume("sue", "late", None, "timed_out")


def late_before_its_time(log: History) -> None:
    dispatched(log, "late")
    log.wait("sue", "late", instant(log.now_ms + 1))
    log.resume("sue", "late", None, "timed_out")


def kept_twice(log: History) -> None:
    log.note_signal("sue", "j", 1)
    log.note_signal("sue", "j", 2)


def forgotten_without_being_kept(log: History) -> None:
    log.note_signal("sue", "j", 1, "command_refused", "unknown_job")


def kept_without_a_row(log: History) -> None:
    log.note_signal("sue", "j", 1)
    log.write_rows()
    del log.rows[b"e" + digest_of(("sue", "j")) + b"go"]


def row_of_a_signal_that_was_given(log: History) -> None:
    dispatched(log, "j")
    log.note_signal("sue", "j", 1)
    log.write_rows()
    log.wait("sue", "j")
    log.resume("sue", "j", 1)


def refused_for_no_reason(log: History) -> None:
    dispatched(log, "j")
    log.note_signal("sue", "j", 1, "command_refused", "moon")


@pytest.mark.parametrize(
    ("bend", "violation"),
    [
        (given_twice, "signalled_twice"),
        (another_than_the_kept_one, "kept_signal_lost"),
        (kept_and_waited_on, "kept_signal_lost"),
        (kept_twice, "signal_kept_twice"),
        (late_without_a_time_out, "no_due_instant"), (late_before_its_time, "resumed_early"),
        (forgotten_without_being_kept, "kept_signal_invented"),
        (kept_without_a_row, "kept_signal_disagrees"),
        (row_of_a_signal_that_was_given, "kept_signal_disagrees"),
        (refused_for_no_reason, "signal_told_wrong"),
    ],
)
def test_each_bend_is_seen(bend: Callable[[History], None], violation: str) -> None:
    log = History()
    bend(log)
    report = log.check()
    assert violation in report.kinds, report.text()
