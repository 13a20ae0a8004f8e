"""The checker's own test of how many members may be out at once."""

from __future__ import annotations

import json

import pytest

from tests.chaos.gathers import GatherFold
from tests.chaos.rawlog import RawRecord
from tests.chaos.report import Report

OF = ("u", "p", 1, "g", 1)


def fold(parallel: int | None) -> GatherFold:
    """Two members are released by message 1, one more by message 2; an end comes at offset 4."""
    made = GatherFold(Report())
    made.opened[OF] = {"parallel": parallel}

    def message(offset: int, origin: str, **body: object) -> None:
        headers = (
            ("tidemill-origin", origin.encode()), ("tidemill-kind", b"message"),
            ("tidemill-policy", b"gather"),
        )
        value = json.dumps({"of": OF, **body}).encode()
        made.feed(RawRecord("jobs.internal", 0, offset, 1, None, value, headers))

    message(0, "jobs.internal/0/1", kind="release", members=[[0], [1]])
    end = {"user_id": "u", "job_id": "m", "status": "succeeded"}
    message(4, "jobs.internal/1/1", kind="ends", ends=[[0, end]])
    message(5, "jobs.internal/0/2", kind="release", members=[[2]])
    return made


@pytest.mark.parametrize(
    ("parallel", "groups", "kinds"),
    [
        (2, [(1, -1), (2, 4)], set()),
        (2, [(1, -1), (1, 4), (2, 4)], set()),
        (2, [(1, -1), (2, 3), (2, 4)], {"too_many_members"}),
        (1, [(1, -1), (2, 4)], {"too_many_members"}),
        (None, [(1, -1), (2, 3)], set()),
    ],
)
def test_at_each_position(
    parallel: int | None, groups: list[tuple[int, int]], kinds: set[str]
) -> None:
    made = fold(parallel)
    made.check_parallel({0: groups})
    assert made.report.kinds == kinds
