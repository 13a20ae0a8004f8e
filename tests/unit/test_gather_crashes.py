"""Gathers through aborted groups and new owners at any point: each member once, the parent once."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from tests.unit.gather_kit import PARENT, Cluster, Facts, gathering, requests
from tidemill.schemas.words import State

PARALLEL = 5


def _handler(rng: Random, begun: Counter[str]) -> Any:
    fates: dict[str, Facts] = {}

    def handle(job: dict[str, Any]) -> Facts | None:
        if job["type"] != "m":
            return None
        if rng.random() < 0.5:
            return None
        begun[job["job_id"]] += 1
        drawn = rng.random()
        if drawn < 0.2:
            return fates.setdefault(
                job["job_id"],
                {"kind": "failed", "error": {"code": "X", "message": "", "retryable": False}},
            )
        return {"kind": "succeeded", "result": job["job_id"]}

    return handle


@pytest.mark.parametrize("seed", range(40))
def test_groups_abort_and_owners_change(seed: int) -> None:
    """`parallel` holds at each position of the parent's partition; counts are those of the rows."""
    rng = Random(seed)
    cluster = Cluster(partitions=rng.choice((1, 2, 3)))
    begun: Counter[str] = Counter()
    members = rng.randrange(1, 40)
    tolerate = rng.choice(({"count": members}, {"share": 0.1}, {"count": 0}))

    def look(_: int) -> None:
        gather = cluster.gather()
        if gather is None or gather.header is None:
            return
        header = gather.header
        known = sum(1 for index in range(header.released) if gather.counts(index))
        assert header.released - known == gather.live <= PARALLEL
        assert gather.done == sum(gather.counts(index) for index in range(header.members))

    cluster.on_commit = look
    cluster.ask()
    cluster.settle()
    told = gathering(requests(members), part=7, parallel=PARALLEL, tolerate=tolerate)
    cluster.say(PARENT, *told)
    cluster.handler = _handler(rng, begun)
    for _ in range(3_000):
        number = rng.randrange(cluster.partitions)
        cluster.group(number, is_committed=rng.random() < 0.8, most=rng.randrange(1, 4))
        cluster._work()
        if rng.random() < 0.1:
            cluster.restore(rng.randrange(cluster.partitions))
        cluster.now_ms += 5
        if cluster.verdict() is not None:
            break
    verdict = cluster.verdict()
    assert verdict is not None
    ends = cluster.ends()
    assert sorted(ends) == list(range(members))
    completed = Counter(one["job_id"] for one in cluster.completed)
    assert set(completed.values()) <= {1}
    for end in ends.values():
        if end.get("reason") == "not_released":
            assert completed[end["job_id"]] == 0
        else:
            assert completed[end["job_id"]] == 1
            (told_end,) = [one for one in cluster.completed if one["job_id"] == end["job_id"]]
            assert (told_end["status"], told_end["result"]) == (end["status"], end.get("result"))
    failed = sum(end["status"] != "succeeded" for end in ends.values())
    assert verdict["failed"] == failed
    assert cluster.story().count("resumed") == 1
    parent = cluster.job()
    assert parent is not None
    assert parent.state is State.DISPATCHED
    assert cluster.rows_of(b"w") == []
