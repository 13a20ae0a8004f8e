"""The checker finds each kind of violation: one bent log each, and the straight one is clean.

Owns the proof that the checker can fail. Needs no broker.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.checker import Expectations
from tests.chaos.handmade import START_MS, Body, History, instant
from tests.chaos.jobfold import RESCUES_MAX
from tests.chaos.ledger_rows import digest_of
from tests.chaos.promises import Limit

HARNESS: Final = frozenset(
    {"handlers.py", "clockwork.py", "gated.py", "load.py", "engine.py", "faults.py",
     "mutations.py", "run.py", "running.py", "__main__.py"}
)
ENGINE: Final = frozenset({"tidemill", "systems", "benchmarks"})


def straight() -> History:
    """A correct history with one of each: success, retry, rescue, failure, skip, poison, repeat."""
    log = History()
    log.expectations = Expectations(max_attempts={"t": 3})
    log.run("ann", "a1")
    log.now_ms = 100
    cause = log.ask("ann", "a2")
    log.tell("ann", "a2", "requested", "pending", cause=cause)
    log.tell("ann", "a2", "dispatched", "dispatched")
    log.tell("ann", "a2", "rescued", "pending", attempt=0)
    log.tell("ann", "a2", "dispatched", "dispatched")
    log.tell("ann", "a2", "attempt_started", "running")
    log.tell("ann", "a2", "attempt_failed", "running")
    log.tell("ann", "a2", "retry_scheduled", "retrying", due_at=instant(200))
    log.now_ms = 200
    log.tell("ann", "a2", "dispatched", "dispatched")
    log.tell("ann", "a2", "attempt_failed", "running")
    log.tell("ann", "a2", "failed", "failed", reason="not_retryable")
    again = log.ask("ann", "a1")
    log.tell(
        "ann", "a1", "duplicate_ignored", "succeeded", cause=again, sequence=None,
        state_before="succeeded",
    )
    log.dead_letter("request", log.ask("bob", None, kind="poison"))
    log.write_rows()
    return log


def cancelled_before() -> History:
    """A cancel that was kept and applied, one that was forgotten, one that waits still."""
    log = straight()
    for offset, job in enumerate(("k1", "k2", "k3")):
        log.keep("kim", job, offset)
    log.tell("kim", "k1", "requested", "pending", cause=log.ask("kim", "k1"))
    log.tell("kim", "k1", "cancelled", "cancelled", cause=by_command(0))
    log.keep("kim", "k2", 1, event="command_refused")
    log.write_rows()
    return log


def by_command(offset: int) -> Body:
    return {"topic": "jobs.commands", "partition": 0, "offset": offset}


def mended() -> History:
    """A refused request, and the mended one under the same id."""
    log = straight()
    broken = log.ask("moe", "m1", kind="poison")
    log.tell("moe", "m1", "requested", "pending", cause=broken, type="")
    log.tell("moe", "m1", "failed", "failed", type="")
    log.dead.pop()  # it is the record's own letter that tells of it
    log.dead_letter("request", broken, user_id="moe", job_id="m1")
    log.tell("moe", "m1", "requested", "pending", cause=log.ask("moe", "m1"), run=2)
    log.tell("moe", "m1", "dispatched", "dispatched", run=2)
    log.tell("moe", "m1", "attempt_succeeded", "running", run=2)
    log.tell("moe", "m1", "succeeded", "succeeded", run=2)
    log.write_rows()
    return log


@pytest.mark.parametrize("made", [cancelled_before, mended])
def test_what_else_is_clean(made: Callable[[], History]) -> None:
    report = made().check()
    assert report.is_clean, report.text()


def kept_and_run(log: History) -> None:
    log.keep("kim", "k4", 7)
    log.run("kim", "k4")


def kept_and_cancelled_by_another(log: History) -> None:
    log.keep("kim", "k4", 7)
    log.tell("kim", "k4", "requested", "pending", cause=log.ask("kim", "k4"))
    log.tell("kim", "k4", "cancelled", "cancelled", cause=by_command(8))


def kept_without_a_row(log: History) -> None:
    log.keep("kim", "k4", 7)
    log.write_rows()
    del log.rows[b"c" + digest_of(("kim", "k4"))]


def row_of_an_applied_cancel(log: History) -> None:
    log.keep("kim", "k4", 7)
    log.write_rows()
    log.tell("kim", "k4", "requested", "pending", cause=log.ask("kim", "k4"))
    log.tell("kim", "k4", "cancelled", "cancelled", cause=by_command(7))


def forgotten_without_being_kept(log: History) -> None:
    log.keep("kim", "k4", 7, event="command_refused")


def kept_for_a_known_job(log: History) -> None:
    log.keep("ann", "a1", 7)


def again_without_a_refusal(log: History) -> None:
    log.run("ann", "a9")
    log.tell("ann", "a9", "requested", "pending", cause=log.ask("ann", "a9"), run=2)
    log.tell("ann", "a9", "dispatched", "dispatched", run=2)


def again_after_a_dead_letter(log: History) -> None:
    log.tell("ann", "a2", "requested", "pending", cause=log.ask("ann", "a2"), run=2, attempt=0)


def mended_in_the_same_run(log: History) -> None:
    broken = log.ask("moe", "m1", kind="poison")
    log.tell("moe", "m1", "requested", "pending", cause=broken)
    log.tell("moe", "m1", "failed", "failed")
    log.dead_letter("request", broken, user_id="moe", job_id="m1")
    log.tell("moe", "m1", "requested", "pending", cause=log.ask("moe", "m1"))


@pytest.mark.parametrize(
    ("bend", "violation"),
    [
        (kept_and_run, "kept_cancel_lost"),
        (kept_and_cancelled_by_another, "kept_cancel_lost"),
        (kept_without_a_row, "kept_cancel_disagrees"),
        (row_of_an_applied_cancel, "kept_cancel_disagrees"),
        (forgotten_without_being_kept, "kept_cancel_invented"),
        (kept_for_a_known_job, "kept_cancel_told_wrong"),
        (again_without_a_refusal, "illegal_transition"),
        (again_after_a_dead_letter, "after_the_end"),
        (mended_in_the_same_run, "wrong_run"),
    ],
)
def test_kept_cancels_and_mended_requests_are_followed(
    bend: Callable[[History], None], violation: str
) -> None:
    log = straight()
    bend(log)
    report = log.check()
    assert violation in report.kinds, report.text()


def test_straight_log_is_clean() -> None:
    report = straight().check()
    assert report.is_clean, report.text()
    assert report.checked["jobs"] == 2
    assert report.checked["receipts"] == 4


# --- one bent place each --------------------------------------------------------------------------


def gap(log: History) -> None:
    cause = log.ask("eve", "e1")
    log.tell("eve", "e1", "requested", "pending", cause=cause)
    log.tell("eve", "e1", "dispatched", "dispatched", sequence=3)
    log.finish("eve", "e1")


def fork(log: History) -> None:
    cause = log.ask("eve", "e1")
    log.tell("eve", "e1", "requested", "pending", cause=cause)
    log.tell("eve", "e1", "dispatched", "dispatched")
    log.tell("eve", "e1", "attempt_started", "running", sequence=2)


def not_from_one(log: History) -> None:
    log.tell("eve", "e1", "requested", "pending", cause=log.ask("eve", "e1"), sequence=2)


def chain(log: History) -> None:
    log.tell("eve", "e1", "requested", "pending", cause=log.ask("eve", "e1"))
    log.tell("eve", "e1", "dispatched", "dispatched", state_before="scheduled")


def illegal(log: History) -> None:
    log.tell("eve", "e1", "requested", "pending", cause=log.ask("eve", "e1"))
    log.tell("eve", "e1", "succeeded", "succeeded")


def unknown_event(log: History) -> None:
    log.tell("eve", "e1", "requested", "pending", cause=log.ask("eve", "e1"))
    log.tell("eve", "e1", "teleported", "pending")


def after_the_end(log: History) -> None:
    log.run("eve", "e1")
    log.tell("eve", "e1", "attempt_started", "running")


def two_ends(log: History) -> None:
    log.run("eve", "e1")
    log.tell("eve", "e1", "succeeded", "succeeded")


def wrong_run(log: History) -> None:
    log.tell("eve", "e1", "requested", "pending", cause=log.ask("eve", "e1"))
    log.tell("eve", "e1", "dispatched", "dispatched", run=2)


def fourth_attempt(log: History) -> None:
    log.tell("eve", "e1", "requested", "pending", cause=log.ask("eve", "e1"))
    for _ in range(4):
        log.tell("eve", "e1", "dispatched", "dispatched")
        log.tell("eve", "e1", "attempt_failed", "running")
        log.tell("eve", "e1", "retry_scheduled", "retrying", due_at=instant(0))


def attempt_jumped(log: History) -> None:
    log.tell("eve", "e1", "requested", "pending", cause=log.ask("eve", "e1"))
    log.tell("eve", "e1", "dispatched", "dispatched", attempt=2)


def rescue_spent_an_attempt(log: History) -> None:
    log.tell("eve", "e1", "requested", "pending", cause=log.ask("eve", "e1"))
    log.tell("eve", "e1", "dispatched", "dispatched")
    log.tell("eve", "e1", "rescued", "pending")
    log.tell("eve", "e1", "dispatched", "dispatched")


def zombie_outcome(log: History) -> None:
    log.tell("eve", "e1", "requested", "pending", cause=log.ask("eve", "e1"))
    log.tell("eve", "e1", "dispatched", "dispatched")
    log.tell("eve", "e1", "attempt_succeeded", "running", epoch=0)


def one_rescue_more(log: History) -> None:
    log.tell("eve", "e1", "requested", "pending", cause=log.ask("eve", "e1"))
    for _ in range(RESCUES_MAX + 1):
        log.tell("eve", "e1", "dispatched", "dispatched")
        log.tell("eve", "e1", "rescued", "pending", attempt=0)


def clock_back(log: History) -> None:
    log.now_ms -= 1
    log.run("eve", "e1")


def same_event_id(log: History) -> None:
    log.events[1]["event_id"] = log.events[0]["event_id"]


def audit_moves(log: History) -> None:
    log.tell(
        "ann", "a1", "outcome_ignored", "running", sequence=None, state_before="succeeded"
    )


def new_incarnation(log: History) -> None:
    log.events[2]["incarnation"] = START_MS + 5


def lost(log: History) -> None:
    log.ask("eve", "e1")


def never_ended(log: History) -> None:
    log.tell("eve", "e1", "requested", "pending", cause=log.ask("eve", "e1"))


def decided_twice(log: History) -> None:
    cause = log.ask("eve", "e1")
    log.tell("eve", "e1", "requested", "pending", cause=cause)
    log.tell(
        "eve", "e1", "duplicate_ignored", "pending", cause=cause, sequence=None,
        state_before="pending",
    )


def invented_input(log: History) -> None:
    log.tell("eve", "e1", "requested", "pending", cause=99)


def another_job(log: History) -> None:
    log.tell("eve", "other", "requested", "pending", cause=log.ask("eve", "e1"))


def poison_not_dead(log: History) -> None:
    log.run("eve", "e1")
    log.receipts.append(log.receipts.pop().__class__(0, len(log.requested) - 1, kind="poison"))


def poison_and_processed(log: History) -> None:
    log.run("eve", "e1")
    log.dead_letter("request", len(log.requested) - 1)


def dead_twice(log: History) -> None:
    log.dead_letter("request", 3)


def dead_changed(log: History) -> None:
    letter = log.dead[-1]
    log.dead[-1] = type(letter)(
        letter.topic, 0, letter.offset, 0, letter.key, b"other", letter.headers
    )


def dead_key_changed(log: History) -> None:
    letter = log.dead[-1]
    log.dead[-1] = type(letter)(
        letter.topic, 0, letter.offset, 0, None, letter.value, letter.headers
    )


def dead_headers_changed(log: History) -> None:
    letter = log.dead[-1]
    log.dead[-1] = type(letter)(
        letter.topic, 0, letter.offset, 0, letter.key, letter.value, letter.headers[1:]
    )


def dead_without_cause(log: History) -> None:
    letter = log.dead[-1]
    kept = tuple(h for h in letter.headers if h[0] != "tidemill.dead.error.code")
    log.dead[-1] = type(letter)(letter.topic, 0, letter.offset, 0, letter.key, letter.value, kept)


def failed_without_letter(log: History) -> None:
    log.dead.pop(0)


def letter_of_nobody(log: History) -> None:
    log.dead_letter("attempt", user_id="eve", job_id="nobody")


def not_completed(log: History) -> None:
    log.completed.pop()


def completed_twice(log: History) -> None:
    log.completed.append(log.completed[-1])


def completed_invented(log: History) -> None:
    log.completed.append(log.completed[-1] | {"job_id": "ghost"})


def completed_other_status(log: History) -> None:
    log.completed[0]["status"] = "failed"


def completed_other_attempts(log: History) -> None:
    log.completed[0]["attempts"] = 9


def retry_too_early(log: History) -> None:
    log.tell("eve", "e1", "requested", "pending", cause=log.ask("eve", "e1"))
    log.tell("eve", "e1", "dispatched", "dispatched")
    log.tell("eve", "e1", "attempt_failed", "running")
    log.tell("eve", "e1", "retry_scheduled", "retrying", due_at=instant(log.now_ms + 1))
    log.tell("eve", "e1", "dispatched", "dispatched")
    log.finish("eve", "e1")


def run_at_ignored(log: History) -> None:
    log.run("eve", "e1", run_at_ms=START_MS + log.now_ms + 1)


def row_missing(log: History) -> None:
    del log.rows[next(iter(log.rows))]


def row_invented(log: History) -> None:
    log.rows[b"jxxxxxxxxxxxxxxxx"] = b'[-1,"succeeded",1,0,1,4]'


def row_other_state(log: History) -> None:
    key = next(iter(log.rows))
    row = json.loads(log.rows[key])
    log.rows[key] = json.dumps([row[0], "failed", *row[2:]]).encode()


def position_behind(log: History) -> None:
    log.rows[b"p"] = json.dumps({"applied": {"jobs.requested": 0}, "clock": 10**14}).encode()


def clock_row_behind(log: History) -> None:
    row = json.loads(log.rows[b"p"])
    log.rows[b"p"] = json.dumps(row | {"clock": START_MS}).encode()


def starts_out_of_order(log: History) -> None:
    for job in ("e1", "e2"):
        log.tell("eve", job, "requested", "pending", cause=log.ask("eve", job))
    for job in ("e2", "e1"):
        log.tell("eve", job, "dispatched", "dispatched")
        log.finish("eve", job)


BENT: Final[list[tuple[Callable[[History], None], str]]] = [
    (gap, "sequence_gap"),
    (fork, "sequence_fork"),
    (not_from_one, "sequence_gap"),
    (chain, "broken_chain"),
    (illegal, "illegal_transition"),
    (unknown_event, "illegal_transition"),
    (after_the_end, "after_the_end"),
    (two_ends, "two_ends"),
    (wrong_run, "wrong_run"),
    (fourth_attempt, "too_many_attempts"),
    (attempt_jumped, "wrong_attempt"),
    (rescue_spent_an_attempt, "wrong_attempt"),
    (zombie_outcome, "wrong_attempt"),
    (one_rescue_more, "too_many_rescues"),
    (clock_back, "clock_went_back"),
    (same_event_id, "event_id_twice"),
    (audit_moves, "audit_changed_state"),
    (new_incarnation, "two_incarnations"),
    (lost, "acknowledged_and_lost"),
    (lost, "input_lost"),
    (never_ended, "never_ended"),
    (decided_twice, "input_decided_twice"),
    (invented_input, "input_invented"),
    (another_job, "another_job"),
    (poison_not_dead, "poison_not_dead"),
    (poison_and_processed, "processed_and_dead"),
    (dead_twice, "dead_letter_twice"),
    (dead_changed, "dead_letter_changed"),
    (dead_key_changed, "dead_letter_changed"),
    (dead_headers_changed, "dead_letter_changed"),
    (dead_without_cause, "dead_letter_without_cause"),
    (failed_without_letter, "dead_letters_wrong"),
    (letter_of_nobody, "dead_letters_wrong"),
    (not_completed, "not_on_completed"),
    (completed_twice, "completed_twice"),
    (completed_invented, "completed_invented"),
    (completed_other_status, "completed_disagrees"),
    (completed_other_attempts, "completed_disagrees"),
    (retry_too_early, "before_its_instant"),
    (run_at_ignored, "before_its_instant"),
    (row_missing, "row_missing"),
    (row_invented, "row_invented"),
    (row_other_state, "row_disagrees"),
    (position_behind, "position_behind"),
    (clock_row_behind, "position_behind"),
    (starts_out_of_order, "out_of_order"),
]


@pytest.mark.parametrize(("bend", "kind"), BENT, ids=[f"{b.__name__}-{k}" for b, k in BENT])
def test_each_bent_log_is_caught(bend: Callable[[History], None], kind: str) -> None:
    log = straight()
    bend(log)
    report = log.check()
    assert kind in report.kinds, report.text()


# --- limits and unique keys -----------------------------------------------------------------------


def limited(over: str, apart_ms: int) -> History:
    """Three jobs of one user, two allowed in 1,000 ms, the third `apart_ms` after the first."""
    log = History()
    log.expectations = Expectations(limits={"t": (Limit(2, 1_000, over),)})
    for n, at in enumerate((0, 10, apart_ms)):
        log.now_ms = at
        log.run("ann", f"a{n}")
    return log


@pytest.mark.parametrize("over", ["skip", "delay"])
def test_limit_broken_by_a_millisecond(over: str) -> None:
    assert limited(over, 1_000).check().is_clean
    assert limited(over, 999).check().kinds == {"limit_broken"}


@pytest.mark.parametrize(("most", "kinds"), [(1, {"too_many_at_once"}), (2, set())])
def test_one_more_at_once_than_may_be(most: int, kinds: set[str]) -> None:
    log = History()
    log.expectations = Expectations(concurrency={"t": most})
    for name in ("a1", "a2"):
        log.tell("ann", name, "requested", "pending", cause=log.ask("ann", name))
        log.tell("ann", name, "dispatched", "dispatched")
    for name in ("a1", "a2"):
        log.finish("ann", name)
    log.write_rows()
    assert log.check().kinds == kinds


def joined(
    status: str = "succeeded", into: str = "a1", *, is_left: bool = False,
    result: int | None = 7, run: int = 1,
) -> History:
    """A job shares the run of another one, and ends with it unless it is left behind."""
    log = History()
    for name in ("a1", "a2"):
        log.tell("ann", name, "requested", "pending", cause=log.ask("ann", name))
        if name == "a1":
            log.tell("ann", name, "dispatched", "dispatched")
    log.tell("ann", "a2", "deferred", "scheduled", reason="joined", data={"winner": "a1"})
    log.tell("ann", "a1", "attempt_succeeded", "running")
    log.tell("ann", "a1", "succeeded", "succeeded", data={"result": 7})
    if not is_left:
        told: Body = {"collapsed_into": {"job_id": into, "run": run, "status": status}}
        if result is None:
            told["collapsed_into"]["result_omitted"] = True
        else:
            told["result"] = result
        log.tell("ann", "a2", "skipped", "skipped", reason="collapsed", data=told)
    log.write_rows()
    return log


def test_who_shares_a_run_ends_with_it_and_as_it_says() -> None:
    assert joined().check().is_clean, joined().check().text()
    assert joined(result=None).check().is_clean
    assert joined("failed").check().kinds == {"collapsed_wrongly"}
    assert joined(result=8).check().kinds == {"collapsed_wrongly"}
    assert joined(run=2).check().kinds == {"collapsed_wrongly"}
    assert joined(into="a3").check().kinds == {"collapsed_into_another"}
    assert "left_behind" in joined(is_left=True).check().kinds


def test_limit_counts_only_first_dispatches() -> None:
    log = limited("skip", 1_000)
    log.tell("ann", "a9", "requested", "pending", cause=log.ask("ann", "a9"))
    log.now_ms = 2_500
    for _ in range(3):
        log.tell("ann", "a9", "dispatched", "dispatched")
        log.tell("ann", "a9", "returned", "pending", attempt=0)
    log.tell("ann", "a9", "dispatched", "dispatched")
    log.finish("ann", "a9")
    assert log.check().is_clean, log.check().text()


def test_skip_needs_a_used_up_limit() -> None:
    log = limited("skip", 1_500)
    log.tell("ann", "a9", "requested", "pending", cause=log.ask("ann", "a9"))
    log.tell("ann", "a9", "skipped", "skipped", reason="rate_limited")
    assert log.check().kinds == {"skipped_without_need"}
    log = limited("skip", 1_000)
    log.tell("ann", "a9", "requested", "pending", cause=log.ask("ann", "a9"))
    log.tell("ann", "a9", "skipped", "skipped", reason="rate_limited")
    assert log.check().is_clean, log.check().text()


def test_limit_row_must_agree() -> None:
    log = limited("skip", 1_000)
    log.write_rows()
    key = b"l" + json.dumps(["ann", "t"]).encode()
    log.rows[key] = json.dumps([0, [START_MS + 10, START_MS + 1_000]]).encode()
    assert log.check().is_clean, log.check().text()
    log.rows[key] = json.dumps([1, [START_MS + 10, START_MS + 1_000]]).encode()
    assert log.check().kinds == {"limit_row_disagrees"}
    log.rows[key] = json.dumps([0, [START_MS, START_MS + 1_000]]).encode()
    assert log.check().kinds == {"limit_row_disagrees"}


def second_of_a_key(log: History, kind: str, after: str, reason: str | None) -> History:
    log.tell("ann", "u1", "requested", "pending", cause=log.ask("ann", "u1", unique_key="k"))
    log.tell("ann", "u2", "requested", "pending", cause=log.ask("ann", "u2", unique_key="k"))
    log.tell("ann", "u2", kind, after, reason=reason)
    log.tell("ann", "u1", "dispatched", "dispatched")
    log.finish("ann", "u1")
    if kind == "dispatched":
        log.finish("ann", "u2")
    return log


def test_two_live_jobs_of_a_key() -> None:
    assert second_of_a_key(History(), "skipped", "skipped", "duplicate").check().is_clean
    report = second_of_a_key(History(), "dispatched", "dispatched", None).check()
    assert "two_live_jobs_of_a_key" in report.kinds


def test_skipped_as_duplicate_without_a_holder() -> None:
    log = History()
    log.run("ann", "u1", unique_key="k")
    log.tell("ann", "u2", "requested", "pending", cause=log.ask("ann", "u2", unique_key="k"))
    log.tell("ann", "u2", "skipped", "skipped", reason="duplicate")
    assert log.check().kinds == {"skipped_without_need"}


def family(child: str, ending: str) -> History:
    log = History()
    log.expectations = Expectations(children={"p": "child-of-"})
    cause = log.ask("ann", "p1")
    log.tell("ann", "p1", "requested", "pending", type="p", cause=cause)
    log.tell("ann", "p1", ending, ending, type="p")
    log.tell("ann", child, "requested", "pending")
    log.tell("ann", child, "skipped", "skipped")
    return log


def test_children_belong_to_parents_that_succeeded() -> None:
    assert "child_lost" in family("other", "succeeded").check().kinds
    assert "child_invented" in family("child-of-p1", "expired").check().kinds
    assert family("other", "expired").check().is_clean
    assert not {"child_lost", "child_invented"} & family("child-of-p1", "succeeded").check().kinds


# --- wording and independence ---------------------------------------------------------------------


def test_report_tells_the_story() -> None:
    log = straight()
    two_ends(log)
    text = log.check().text()
    assert "VIOLATED two_ends: 1 times" in text
    assert "job 'e1' of user 'eve', type t" in text
    assert "#4 succeeded running->succeeded" in text


def test_checker_imports_nothing_of_the_engine() -> None:
    for path in Path(__file__).parent.glob("*.py"):
        if path.name in HARNESS or path.name.startswith("test_"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [node.module or ""] if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                assert name.split(".")[0] not in ENGINE, f"{path.name} imports {name}"
                assert not name.startswith("tests.") or name.split(".")[2] + ".py" not in HARNESS
