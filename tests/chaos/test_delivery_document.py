"""docs/DELIVERY.md names what is there: each crash point has its row, each named test exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tidemill.agents.crash import CRASH_POINTS

ROOT: Final = Path(__file__).resolve().parents[2]
TEXT: Final = (ROOT / "docs" / "DELIVERY.md").read_text()


def test_each_crash_point_has_one_row() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \|", TEXT, re.MULTILINE)
    assert sorted(rows) == sorted(CRASH_POINTS)


def test_each_crash_point_is_passed_somewhere() -> None:
    code = "".join(path.read_text() for path in (ROOT / "agents").rglob("*.py"))
    missing = [name for name in CRASH_POINTS if f'crash_point("{name}")' not in code]
    assert missing == []


def test_each_named_file_exists() -> None:
    named = set(re.findall(r"`((?:tests|agents)/[\w/]+\.py)`", TEXT))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
