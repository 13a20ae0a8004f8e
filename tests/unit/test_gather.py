"""Handlers that wait for members, over several partitions."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.unit.gather_kit import (
    PARENT,
    Cluster,
    Facts,
    awaiting,
    gathering,
    plain,
    requests,
)
from tests.unit.partition_kit import TOPICS
from tidemill.schemas.words import State
from tidemill.streams.envelope import message_headers
from tidemill.streams.gathers.parent import membership_of

DONE: Facts = {"kind": "succeeded", "result": {"ok": True}}
FATAL: Facts = {"kind": "failed", "error": {"code": "X", "message": "no", "retryable": False}}


def is_member(job: dict[str, Any]) -> bool:
    return bool(job["type"] == "m")


def all_done(job: dict[str, Any]) -> Facts | None:
    return DONE if is_member(job) else None


def statuses(cluster: Cluster) -> list[str]:
    return [end["status"] for _, end in sorted(cluster.ends().items())]


def members_out(cluster: Cluster) -> list[str]:
    return sorted(job["job_id"] for job in cluster.out.values() if is_member(job))


def test_a_parent_waits_for_its_members_and_gets_their_ends() -> None:
    cluster = awaiting(requests(7))
    job = cluster.job()
    assert job is not None
    assert (job.state, job.waits_for) == (State.AWAITING, ("suspension", "gather", "g"))
    assert members_out(cluster) == [f"parent.g.{n}" for n in range(7)]
    assert {job["user_id"] for job in cluster.out.values()} == {"u", "v", "w"}
    cluster.handler = all_done
    cluster.settle()
    assert cluster.verdict() == {"members": 7, "failed": 0, "is_tolerated": True}
    ends = cluster.ends()
    assert sorted(ends) == list(range(7))
    assert (ends[3]["user_id"], ends[3]["job_id"], ends[3]["type"]) == ("u", "parent.g.3", "m")
    assert (ends[3]["status"], ends[3]["result"]) == ("succeeded", {"ok": True})
    parent = cluster.out[PARENT]
    assert (parent["attempt"], parent["epoch"]) == (1, 2)
    assert cluster.story() == [
        "requested", "dispatched", "suspended", "progressed", "resumed", "dispatched"
    ]


def test_what_is_kept_goes_with_the_end_of_the_parent() -> None:
    cluster = awaiting(requests(5))
    cluster.handler = all_done
    cluster.settle()
    cluster.say(PARENT, {"kind": "succeeded", "result": 1})
    cluster.settle()
    assert cluster.rows_of(b"g") == cluster.rows_of(b"w") == cluster.rows_of(b"m") == []
    assert cluster.gather() is None


def test_no_more_than_parallel_are_out() -> None:
    cluster = awaiting(requests(20), parallel=4)
    assert len(members_out(cluster)) == 4
    for _ in range(5):
        for name in members_out(cluster):
            key = next(key for key in cluster.out if key[1] == name)
            cluster.say(key, DONE)
            del cluster.out[key]
            cluster.settle()
            gather = cluster.gather()
            assert gather is not None
            assert gather.live <= 4
    assert statuses(cluster) == ["succeeded"] * 20


@pytest.mark.parametrize(
    ("tolerate", "fails", "is_tolerated"),
    [
        ({"count": 2}, 2, True), ({"count": 2}, 3, False), ({"share": 0.2}, 2, True),
        ({"share": 0.2}, 3, False), ({"count": 0}, 1, False), ({"share": 1.0}, 10, True),
    ],
)
def test_failures_are_tolerated_as_count_or_share(
    tolerate: Facts, fails: int, is_tolerated: bool
) -> None:
    cluster = awaiting(requests(10), tolerate=tolerate)
    cluster.handler = lambda job: (
        None if not is_member(job) else FATAL if job["payload"]["n"] < fails else DONE
    )
    cluster.settle()
    verdict = cluster.verdict()
    assert verdict is not None
    assert verdict["is_tolerated"] is is_tolerated
    assert verdict["failed"] == fails
    assert cluster.ends()[0]["error"]["code"] == "X"


def test_beyond_tolerance_nobody_is_released_and_those_that_are_out_are_asked_to_stop() -> None:
    cluster = awaiting(requests(10), parallel=3)
    first, *others = members_out(cluster)
    key = next(key for key in cluster.out if key[1] == first)
    cluster.say(key, FATAL)
    del cluster.out[key]
    cluster.settle()
    job = cluster.job()
    assert job is not None
    assert job.state is State.AWAITING, "those that are out are waited for"
    assert members_out(cluster) == others
    for name in others:
        key = next(key for key in cluster.out if key[1] == name)
        member = cluster.job(key)
        assert member is not None
        assert member.is_cancel_requested
        cluster.say(key, FATAL)
    cluster.settle()
    assert cluster.verdict() == {"members": 10, "failed": 10, "is_tolerated": False}
    assert Counter(statuses(cluster)) == {"failed": 1, "cancelled": 9}
    reasons = Counter(end.get("reason") for end in cluster.ends().values())
    assert reasons == {"not_retryable": 1, "cancelled_by_command": 2, "not_released": 7}


def test_a_cancel_ends_the_parent_at_once_and_its_members_with_it() -> None:
    cluster = awaiting(requests(10), parallel=3)
    out = members_out(cluster)
    cluster.command("cancel")
    cluster.settle()
    assert cluster.story()[-1] == "cancelled"
    assert cluster.rows_of(b"g") == cluster.rows_of(b"w") == []
    for name in out:
        key = next(key for key in cluster.out if key[1] == name)
        member = cluster.job(key)
        assert member is not None
        assert member.is_cancel_requested
    cluster.handler = lambda job: FATAL if is_member(job) else None
    cluster.settle()
    assert {one["status"] for one in cluster.completed} == {"cancelled"}
    assert len(cluster.completed) == 4, "unreleased members are no jobs"
    assert cluster.story()[-1] == "cancelled"


def test_a_member_is_counted_once_whatever_becomes_of_it_later() -> None:
    cluster = awaiting(requests(3), tolerate={"count": 3})
    failed = next(key for key in cluster.out if key[1] == "parent.g.0")
    cluster.say(failed, FATAL)
    del cluster.out[failed]
    cluster.settle()
    cluster.command("redrive", failed)
    cluster.settle()
    assert failed in cluster.out
    cluster.handler = all_done
    cluster.settle()
    assert statuses(cluster) == ["failed", "succeeded", "succeeded"]


@pytest.mark.parametrize("word", ["skipped", "cancel", "expire"])
def test_other_ends_of_members(word: str) -> None:
    asked = requests(3)
    if word == "expire":
        asked[1]["expires_at"] = 1
    if word == "cancel":
        asked[1]["run_at"] = "2199-01-01T00:00:00Z"
    cluster = awaiting(asked, tolerate={"count": 1})
    if word == "cancel":
        cluster.command("cancel", ("v", "parent.g.1"))

    def handler(job: dict[str, Any]) -> Facts | None:
        if is_member(job) and word == "skipped" and job["payload"]["n"] == 1:
            return {"kind": "skipped", "reason": "nothing to do"}
        return all_done(job)

    cluster.handler = handler
    cluster.settle()
    status = {"skipped": "skipped", "cancel": "cancelled", "expire": "expired"}[word]
    assert statuses(cluster) == ["succeeded", status, "succeeded"]
    failed = 0 if word == "skipped" else 1
    assert cluster.verdict() == {"members": 3, "failed": failed, "is_tolerated": True}


def test_a_request_that_its_home_refuses_makes_that_member_failed() -> None:
    asked = requests(3)
    asked[1]["max_attempts"] = 0
    cluster = awaiting(asked, tolerate={"count": 1})
    cluster.handler = all_done
    cluster.settle()
    end = cluster.ends()[1]
    assert (end["status"], end["error"]["code"]) == ("failed", "INVALID_FIELD")
    assert "max_attempts" in end["error"]["message"]
    assert end["job_id"] == "parent.g.1"


def nested(depth: int) -> Any:
    deep: Any = 1
    for _ in range(depth):
        deep = [deep]
    return deep


@pytest.mark.parametrize(
    "asked",
    [
        requests(1, payload={"deep": nested(400)}),
        requests(1, payload={"grows": [1e15] * 200_000}),
        requests(30, payload={"text": "x" * 100_000}),
    ],
)
def test_a_list_that_cannot_be_kept_does_not_count(asked: list[Facts]) -> None:
    cluster = Cluster()
    cluster.ask()
    cluster.settle()
    cluster.say(PARENT, *gathering(asked))
    cluster.settle()
    assert cluster.events[-1]["reason"] == "missing_parts"
    assert members_out(cluster) == []


def test_what_a_worker_says_of_tolerance_beside_it_is_not_told() -> None:
    cluster = awaiting(requests(1), tolerate={"count": 1, "more": nested(300)})
    told = next(one for one in cluster.events if one["event"] == "suspended")
    assert told["data"]["tolerate"] == {"count": 1}


def forged(cluster: Cluster, home: int, body: dict[str, Any]) -> None:
    headers = message_headers(
        policy="gather", internal=TOPICS.internal, partition=0, number=1, needs="0.1.0"
    )
    cluster.put(TOPICS.internal, home, json.dumps(body).encode(), headers)


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "release"}, {"kind": "release", "of": ["u", "p", 1, "g", 1], "members": [[0]]},
        {"kind": "release", "of": ["u", "p", 1, "g", 1], "members": [[0, {"type": nested(400)}]]},
        {"kind": "release", "of": ["u", "p", 1, "g", 1], "members": [[0, {"user_id": {}}, None]]},
        {"kind": "stop", "of": ["u", "p", 1, "g", 1], "members": [[0, "u", 7]]},
        {"kind": "stop", "of": ["u", "p", 1, "g", 1], "members": [[0, "u", "j", None]]},
        {"kind": "ends", "of": ["u", "parent", 0, "g", 1], "ends": [[0, {"status": "failed"}]]},
        {"kind": "ends", "of": "g", "ends": []},
    ],
)
def test_a_message_that_no_ledger_has_written_stops_nothing(body: dict[str, Any]) -> None:
    cluster = awaiting(requests(2))
    for home in range(cluster.partitions):
        forged(cluster, home, body)
    cluster.handler = all_done
    cluster.settle()
    assert statuses(cluster) == ["succeeded", "succeeded"]


@pytest.mark.parametrize("end", [{}, {"status": []}, {"status": "failed", "x": nested(400)}])
def test_an_end_that_is_none_is_not_counted(end: dict[str, Any]) -> None:
    cluster = awaiting(requests(2))
    gather = cluster.gather()
    assert gather is not None
    of = list(membership_of(gather.head))
    forged(cluster, cluster.home("u"), {"kind": "ends", "of": of, "ends": [[0, end]]})
    cluster.handler = all_done
    cluster.settle()
    assert statuses(cluster) == ["succeeded", "succeeded"]


def test_a_member_that_is_nested_too_deep_has_failed() -> None:
    cluster = awaiting(requests(1, payload={"deep": nested(40)}))
    assert cluster.ends()[0]["error"]["code"] == "TOO_DEEP"


def test_a_job_that_asks_for_itself_does_not_wait_for_ever() -> None:
    cluster = awaiting([{"type": "t", "user_id": "u", "job_id": "parent", "payload": {}}])
    assert cluster.verdict() == {"members": 1, "failed": 1, "is_tolerated": False}
    assert cluster.ends()[0]["error"]["code"] == "INVALID_FIELD"


def test_the_same_body_joins_a_known_job_and_another_body_fails() -> None:
    cluster = Cluster()
    body = {"type": "m", "payload": {"n": 1}}
    cluster.ask("v", "mine", **body)
    cluster.ask()
    cluster.settle()
    asked = [
        {**body, "user_id": "v", "job_id": "mine"},
        {"type": "m", "payload": {"n": 2}, "user_id": "v", "job_id": "mine"},
        {**body, "user_id": "v", "job_id": "mine"},
    ]
    cluster.say(PARENT, *gathering(asked, tolerate={"count": 1}))
    cluster.settle()
    assert cluster.story(("v", "mine")) == [
        "requested", "dispatched", "duplicate_ignored", "conflict_ignored", "duplicate_ignored"
    ]
    cluster.handler = all_done
    cluster.settle()
    assert statuses(cluster) == ["succeeded", "failed", "succeeded"]
    assert cluster.ends()[1]["error"]["code"] == "ANOTHER_BODY"
    assert [one["job_id"] for one in cluster.completed] == ["mine"], "one job for both"


def test_a_job_that_has_ended_answers_at_once() -> None:
    cluster = Cluster()
    body = {"type": "m", "payload": {"n": 1}}
    cluster.handler = lambda job: (
        None if not is_member(job) else FATAL if job["job_id"] == "bad" else DONE
    )
    cluster.ask("v", "good", **body)
    cluster.ask("v", "bad", **body)
    cluster.ask()
    cluster.settle()
    asked = [{**body, "user_id": "v", "job_id": name} for name in ("good", "bad")]
    cluster.say(PARENT, *gathering(asked, tolerate={"count": 1}))
    cluster.settle()
    good, bad = cluster.ends()[0], cluster.ends()[1]
    assert (good["status"], good["result_omitted"]) == ("succeeded", True)
    assert (bad["status"], bad["error"]["code"]) == ("failed", "X")
    assert len(cluster.completed) == 2, "nothing ran twice"


def test_somebody_elses_job_is_not_cancelled_and_no_longer_waited_for() -> None:
    cluster = Cluster()
    body = {"type": "m", "payload": {"n": 1}}
    cluster.ask("v", "theirs", **body)
    cluster.ask()
    cluster.settle()
    asked = [{**body, "user_id": "v", "job_id": "theirs"}, *requests(1, job_id="own")]
    cluster.say(PARENT, *gathering(asked))
    cluster.settle()
    cluster.say(("u", "own"), FATAL)
    del cluster.out["u", "own"]
    cluster.settle()
    theirs = cluster.job(("v", "theirs"))
    assert theirs is not None
    assert not theirs.is_cancel_requested
    assert cluster.ends()[0]["reason"] == "no_longer_awaited"
    assert cluster.verdict() == {"members": 2, "failed": 2, "is_tolerated": False}
    assert cluster.rows_of(b"w") == []


def test_two_parents_share_a_job_and_the_last_one_cancels_it() -> None:
    cluster = Cluster()
    shared = requests(1, users=("v",), job_id="shared")
    for name in ("one", "two"):
        cluster.ask("u", name)
    cluster.settle()
    for name in ("one", "two"):
        cluster.say(("u", name), *gathering(shared))
        cluster.settle()
    cluster.command("cancel", ("u", "one"))
    cluster.settle()
    job = cluster.job(("v", "shared"))
    assert job is not None
    assert not job.is_cancel_requested
    cluster.command("cancel", ("u", "two"))
    cluster.settle()
    job = cluster.job(("v", "shared"))
    assert job is not None
    assert job.is_cancel_requested


def test_a_redrive_runs_what_did_not_succeed_and_no_more() -> None:
    cluster = awaiting(requests(6), parallel=4, tolerate={"count": 0})
    runs: Counter[str] = Counter()
    bad = {"parent.g.1"}

    def handler(job: dict[str, Any]) -> Facts | None:
        if not is_member(job):
            return None
        runs[job["job_id"]] += 1
        return FATAL if job["job_id"] in bad else DONE

    cluster.handler = handler
    cluster.settle()
    first = dict(cluster.ends())
    assert first[1]["status"] == "failed"
    error = {"code": "MEMBERS_FAILED", "message": "1 of 6", "retryable": False}
    cluster.say(PARENT, {"kind": "failed", "error": error})
    cluster.settle()
    assert cluster.story()[-1] == "failed"
    bad.clear()
    for number in range(cluster.partitions):
        cluster.restore(number)
    cluster.command("redrive")
    cluster.settle()
    assert cluster.out[PARENT].get("memory") is None, "the gather is to be asked for again"
    cluster.say(PARENT, *gathering(requests(6), parallel=4))
    cluster.settle()
    assert statuses(cluster) == ["succeeded"] * 6
    assert cluster.verdict() == {"members": 6, "failed": 0, "is_tolerated": True}
    for index, end in first.items():
        name = f"parent.g.{index}"
        if end["status"] == "succeeded":
            assert runs[name] == 1
        elif end["status"] == "failed":
            assert runs[name] == 2
    ids = {end["job_id"] for end in cluster.ends().values()}
    cancelled = {
        f"parent.g.{i}!2" for i, end in first.items()
        if end.get("reason") == "cancelled_by_command"
    }
    assert cancelled <= ids


def test_a_cancelled_member_gets_a_new_id_in_the_next_run() -> None:
    asked = requests(2)
    asked[0]["run_at"] = "2199-01-01T00:00:00Z"
    cluster = awaiting(asked)
    cluster.command("cancel", ("u", "parent.g.0"))
    cluster.handler = all_done
    cluster.settle()
    cluster.say(PARENT, {**FATAL})
    cluster.settle()
    cluster.command("redrive")
    cluster.settle()
    cluster.say(PARENT, *gathering(asked))
    cluster.settle()
    again = cluster.job(("u", "parent.g.0!2"))
    assert again is not None
    assert again.state is State.SCHEDULED


def test_a_tolerated_gather_comes_back_in_a_retry_of_the_same_run() -> None:
    cluster = awaiting(requests(2), definitions=plain("t", "m", max_attempts=3))
    cluster.handler = all_done
    cluster.settle()
    error = {"code": "X", "message": "no", "retryable": True}
    cluster.say(PARENT, {"kind": "failed", "error": error, "retry_after_ms": 0})
    cluster.settle()
    cluster.now_ms += 10_000
    cluster.settle()
    assert cluster.out[PARENT]["attempt"] == 2
    assert statuses(cluster) == ["succeeded", "succeeded"]


def test_the_first_list_of_a_name_wins() -> None:
    cluster = awaiting(requests(2))
    cluster.handler = all_done
    cluster.settle()
    epoch = cluster.out[PARENT]["epoch"]
    cluster.say(PARENT, *gathering(requests(5)))
    cluster.settle()
    assert cluster.out[PARENT]["epoch"] == epoch + 1, "it is over, and the handler goes on at once"
    assert len(cluster.ends()) == 2


def test_a_suspension_without_its_parts_does_not_count() -> None:
    cluster = Cluster()
    cluster.ask()
    cluster.settle()
    first, _, suspended = gathering(requests(4), part=2)
    cluster.say(PARENT, first, suspended)
    cluster.settle()
    job = cluster.job()
    assert job is not None
    assert job.state is State.DISPATCHED
    assert cluster.story()[-1] == "outcome_ignored"
    assert cluster.events[-1]["reason"] == "missing_parts"


def test_parts_of_an_attempt_that_was_lost_are_replaced() -> None:
    cluster = Cluster()
    cluster.ask()
    cluster.settle()
    lost, *_ = gathering(requests(4), part=2)
    cluster.say(PARENT, lost, {"kind": "returned", "reason": "rebalanced"})
    cluster.settle()
    told = gathering(requests(3), part=2)
    cluster.say(PARENT, *told, *told)
    cluster.settle()
    assert len(members_out(cluster)) == 3


def test_parts_of_a_handler_that_ends_otherwise_go() -> None:
    cluster = Cluster()
    cluster.ask()
    cluster.settle()
    part, *_ = gathering(requests(4))
    cluster.say(PARENT, part, FATAL)
    cluster.settle()
    assert cluster.story()[-1] == "failed"
    assert cluster.rows_of(b"g") == []


def test_several_gathers_of_one_job_by_name() -> None:
    cluster = awaiting(requests(2))
    cluster.handler = all_done
    cluster.settle()
    cluster.say(PARENT, *gathering(requests(3), name="h"))
    cluster.settle()
    assert len(cluster.ends("g")) == 2
    assert len(cluster.ends("h")) == 3
    assert cluster.ends("h")[0]["job_id"] == "parent.h.0"


def test_progress_is_told_at_most_once_a_second_with_an_estimate() -> None:
    cluster = awaiting(requests(10), tolerate={"count": 10})
    for number in range(10):
        cluster.now_ms += 300
        key = next(key for key in cluster.out if key[1] == f"parent.g.{number}")
        cluster.say(key, DONE if number else FATAL)
        cluster.settle()
    told = [one for one in cluster.events if one["event"] == "progressed"]
    assert 3 <= len(told) <= 4
    data = told[-2]["data"]
    assert (data["members"], data["failed"], data["released"]) == (10, 1, 10)
    assert data["message"].startswith(f"members {data['ended']} of 10, 1 failed, ends about ")
    assert data["percent"] == data["ended"] * 10
    assert data["ends_at"] > told[-2]["occurred_at"]


def test_an_end_that_comes_for_a_forgotten_parent_is_noted() -> None:
    cluster = awaiting(requests(1, users=("v",)))
    cluster.say(("v", "parent.g.0"), DONE)
    cluster.command("cancel")
    parent, member = cluster.home("u"), cluster.home("v")
    assert parent != member
    cluster.group(member)
    cluster.group(parent)
    cluster.settle()
    assert cluster.story()[-2:] == ["cancelled", "outcome_ignored"]
    assert cluster.events[-1]["reason"] == "no_longer_awaited"


def test_results_beyond_what_a_job_may_remember_are_left_out() -> None:
    cluster = awaiting(requests(30))
    large = {"kind": "succeeded", "result": "x" * 700_000}
    cluster.handler = lambda job: large if is_member(job) else None
    cluster.settle()
    ends = cluster.ends().values()
    kept = [end for end in ends if "result" in end]
    omitted = [end for end in ends if end.get("result_omitted")]
    assert len(kept) + len(omitted) == 30
    assert kept
    assert omitted
    job = cluster.job()
    assert job is not None


@pytest.mark.parametrize(
    "facts",
    [
        {"kind": "members", "name": "g", "part": 0}, {"kind": "members", "name": "g", "part": 0,
                                                      "requests": [7]},
        {"kind": "members", "name": "g", "part": "0", "requests": [{}]},
        {"kind": "members", "name": "g", "part": 0, "requests": [{"user_id": 7}]},
        {"kind": "suspended", "waits": {"kind": "gather", "name": "g", "parts": 1}},
        {"kind": "suspended", "waits": {"kind": "gather", "name": "g", "parts": 1, "members": 0,
                                        "parallel": None, "tolerate": None}},
        {"kind": "suspended", "waits": {"kind": "gather", "name": "g", "parts": 1, "members": 1,
                                        "parallel": 0, "tolerate": None}},
        {"kind": "suspended", "waits": {"kind": "gather", "name": "g", "parts": 1, "members": 1,
                                        "parallel": None, "tolerate": {"share": 2}}},
    ],
)
def test_what_no_worker_says_is_a_dead_letter(facts: Facts) -> None:
    cluster = Cluster()
    cluster.ask()
    cluster.settle()
    cluster.say(PARENT, facts)
    cluster.settle()
    job = cluster.job()
    assert job is not None
    assert job.state is State.DISPATCHED
    assert cluster.engines[cluster.home("u")].state.jobs
