"""What a handler sees: ids, progress, the word to stop, children."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tidemill.agents.worker.context import (
    CHILDREN_MAX,
    Context,
    Signal,
    children_of,
    has_seen_cancel,
)
from tidemill.schemas.codec import Decoded, check_request
from tidemill.schemas.requests import ID_LENGTH_MAX, REQUEST_BYTES_MAX

JOB = {
    "user_id": "ann", "job_id": "j-1", "type": "t", "run": 2, "attempt": 3, "max_attempts": 5,
}


def context_of(told: list[dict[str, Any]] | None = None, **job: Any) -> Context:
    return Context(JOB | job, Signal(), (told if told is not None else []).append)


def test_who_and_which() -> None:
    ctx = context_of(traceparent="00-ab-cd-01")
    assert (ctx.user_id, ctx.job_id, ctx.type) == ("ann", "j-1", "t")
    assert (ctx.run, ctx.attempt, ctx.max_attempts) == (2, 3, 5)
    assert ctx.traceparent == "00-ab-cd-01"
    assert context_of().traceparent is None
    # The key is the same in every attempt and run.
    assert ctx.idempotency_key == context_of(run=1, attempt=1).idempotency_key
    assert ctx.log is ctx.log


def test_progress_is_clamped_and_cut() -> None:
    told: list[dict[str, Any]] = []
    ctx = context_of(told)
    ctx.progress(-5)
    ctx.progress(100.0000001, stage="s" * 500, message="m" * 5_000)
    assert told[0] == {"percent": 0.0}
    assert told[1]["percent"] == 100.0
    assert (len(told[1]["stage"]), len(told[1]["message"])) == (128, 500)
    with pytest.raises(ValueError, match="NaN"):
        ctx.progress(float("nan"))


def test_cancelled_remembers_that_it_was_seen() -> None:
    signal = Signal()
    ctx = Context(JOB, signal, lambda told: None)
    assert [ctx.cancelled] == [False]
    assert not has_seen_cancel(ctx)
    signal.is_set = True
    assert not has_seen_cancel(ctx)
    assert [ctx.cancelled] == [True]
    assert has_seen_cancel(ctx)
    assert not has_seen_cancel(None)


def test_children_are_requests_that_the_ledger_takes() -> None:
    ctx = context_of()
    assert children_of(ctx) is None
    payload = {"n": 1}
    first = ctx.enqueue("next", payload, run_at=datetime(2026, 1, 1, tzinfo=UTC), tags=["a"])
    payload["n"] = 2
    second = ctx.enqueue("next", user_id="bob", job_id="mine", priority="high", queue="q")
    assert (first, second) == ("j-1.2.0", "mine")
    children = children_of(ctx)
    assert children is not None
    assert [child["user_id"] for child in children] == ["ann", "bob"]
    assert children[0]["payload"] == {"n": 1}
    assert all(child["parent_job_id"] == "j-1" for child in children)
    assert all(isinstance(check_request(child), Decoded) for child in children)
    # Another attempt asks for the same jobs.
    assert context_of(attempt=4).enqueue("next", {}) == first


def test_a_childs_id_fits_whatever_the_parents_length() -> None:
    ctx = context_of(job_id="x" * ID_LENGTH_MAX)
    assert len(ctx.enqueue("next", {})) <= ID_LENGTH_MAX


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"type": "a b"}, "type"), ({"priority": "urgent"}, "priority"), ({"queue": "/"}, "queue"),
        ({"max_attempts": 0}, "max_attempts"), ({"payload": {"x": {1, 2}}}, "payload"),
        ({"payload": {"x": "y" * REQUEST_BYTES_MAX}}, "bytes"), ({"run_at": "soon"}, "run_at"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_child_that_would_be_refused_is_refused_here(given: dict[str, Any], words: str) -> None:
    ctx = context_of()
    with pytest.raises(ValueError, match=words):
        ctx.enqueue(**{"type": "next", **given})
    assert children_of(ctx) is None


def test_children_are_bounded() -> None:
    ctx = context_of()
    for _ in range(CHILDREN_MAX):
        ctx.enqueue("next")
    with pytest.raises(ValueError, match=str(CHILDREN_MAX)):
        ctx.enqueue("next")
