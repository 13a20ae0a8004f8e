"""A ledger that meets rows of a newer version at its start ends, and takes nothing over.

The claim and the state topic are stand-ins here; `tests/unit/test_tables.py` holds which rows are
too new, and `tests/integration` that a restore reads a real topic.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Final

import orjson
import pytest

from tests.unit.core_kit import NOW, after, submit
from tests.unit.partition_kit import Scene, plain, request
from tidemill.agents import exit_codes
from tidemill.agents.ledger import group_committer as committer_
from tidemill.agents.ledger import main as main_
from tidemill.agents.ledger.main import Ledger
from tidemill.agents.settings import LedgerSettings
from tidemill.streams.store import rows

Row = tuple[bytes | None, bytes | None]
PARTITION: Final = 2
_JOB: Final = after(None, submit())
_POSITION: Final = {"applied": {"jobs.requested": 4}, "clock": NOW, "accepted": 1}


class Ended(Exception):
    """In place of the process's end."""


class FreeClaim:
    """Nobody else wants the partition."""

    def __init__(self, *_: object) -> None:
        self.is_taken = False

    async def take(self) -> None:
        self.is_taken = True


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []

    def end(reason: str, *_: object, code: int = 0) -> None:
        found.append((reason, code))
        raise Ended

    async def nothing(self: Ledger) -> None: ...

    monkeypatch.setattr(committer_, "fail_stop", end)
    monkeypatch.setattr(main_, "Claim", FreeClaim)
    monkeypatch.setattr(Ledger, "_start", nothing)
    return found


def _reading(monkeypatch: pytest.MonkeyPatch, *found: Row) -> Ledger:
    def read(*_: object) -> Iterator[list[Row]]:
        yield list(found)

    monkeypatch.setattr(main_, "read_compacted", read)
    return Ledger(LedgerSettings())


def _position(**facts: Any) -> Row:
    return b"p", orjson.dumps({**_POSITION, **facts})


def _job_of_version(number: int) -> Row:
    value = rows.live_value(_JOB)
    _, _, rest = value.partition(b",")
    return rows.key_of(_JOB.spec), b"[%d,%b" % (number, rest)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ((b"~" + b"x" * 16, b"[1]"), "a row of the kind '~'"),
        (_job_of_version(99), "a job's row of version 99"),
        ((b"c" + b"x" * 16, b'[9,"u","j"]'), "a kept cancel's row of version 9"),
    ],
    ids=("kind", "job", "cancel"),
)
@pytest.mark.parametrize("needs", [None, "7.1.0"])
async def test_rows_of_a_newer_version_end_the_ledger_with_its_code(
    row: Row, said: str, needs: str | None, ends: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = _position() if needs is None else _position(needs=needs)
    ledger = _reading(monkeypatch, place, row)
    with pytest.raises(Ended):
        await ledger.restore(PARTITION)
    ((reason, code),) = ends
    assert code == exit_codes.TOO_OLD == 79
    assert f"tidemill-state[{PARTITION}]" in reason
    assert said in reason
    wanted = "a later version of Tidemill" if needs is None else "Tidemill 7.1.0 or later"
    assert wanted in reason
    assert f"this is {version('tidemill')}" in reason
    assert not ledger._runners, "nothing of the partition is taken over"


async def test_a_row_that_was_replaced_since_ends_nothing(
    ends: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(plain())
    scene.group(NOW, request("j"))
    key, _ = _job_of_version(99)
    newer: Row = (key, b'[99,"pending"]\n')
    ledger = _reading(monkeypatch, newer, (key, None), *scene.rows.items())
    runner = await ledger.restore(0)
    assert list(runner.partition.state.jobs) == [("u", "j")]
    assert not ends
