"""docs/decisions: one short file a decision, each with a number of its own, all in the map."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.tidy.sources import ROOT

FOLDER: Final = ROOT / "docs" / "decisions"
MAP: Final = ROOT / "docs" / "ARCHITECTURE.md"
PARTS: Final = ("Context", "Decision", "Cost", "Revisit when")
DECISION_WORDS_MAX: Final = 650  # a page
MAP_WORDS_MAX: Final = 2_000  # two pages, and the names of the decisions
FILES: Final = sorted(FOLDER.iterdir())


def lacks(text: str) -> list[str]:
    """The parts that a decision has not, or not in their order."""
    at = 0
    missing: list[str] = []
    for part in PARTS:
        found = re.compile(rf"^(?:\*\*|## ){part}\b", re.MULTILINE).search(text, at)
        if found is None:
            missing.append(part)
        else:
            at = found.end()
    return missing


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_a_decision_is_a_short_file_of_four_parts_in_the_map(path: Path) -> None:
    text = path.read_text()
    assert re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", path.name)
    assert lacks(text) == []
    assert len(text.split()) <= DECISION_WORDS_MAX
    assert f"(decisions/{path.name})" in MAP.read_text()


def test_each_has_a_number_of_its_own() -> None:
    numbers = [path.name[:4] for path in FILES]
    assert sorted(set(numbers)) == numbers


def test_the_map_stays_one() -> None:
    assert len(MAP.read_text().split()) <= MAP_WORDS_MAX


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_missing_is_caught(part: str) -> None:
    whole = "\n".join(f"**{name}.** x" for name in PARTS)
    assert lacks(whole) == []
    assert part in lacks(whole.replace(part, "Else"))
