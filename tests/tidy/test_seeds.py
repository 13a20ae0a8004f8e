"""docs/SEEDS.md: each requirement of a seed that has a system has a row, and its tests exist."""

from __future__ import annotations

import ast
import re
from typing import Final

import pytest

from tests.tidy.sources import ROOT, imported, sources, sources_of

# How many requirements each seed has that a system meets.
WANTED: Final = {"R3": 9, "R4": 9}
ROW: Final = re.compile(r"^\| (R\d)\.(\d+) \|(.*)\|$", re.MULTILINE)
TEST: Final = re.compile(r"`(tests/[\w/]+\.py)`")
PLACE: Final = re.compile(r"`(systems/[\w/.]+)`")

ROWS: Final = {
    (seed, int(number)): rest
    for seed, number, rest in ROW.findall((ROOT / "docs/SEEDS.md").read_text(encoding="utf-8"))
}


def test_each_requirement_has_a_row() -> None:
    for seed, count in WANTED.items():
        assert sorted(n for s, n in ROWS if s == seed) == list(range(1, count + 1))


@pytest.mark.parametrize("key", ROWS, ids=lambda key: f"{key[0]}.{key[1]}")
def test_a_row_names_places_and_tests_that_are_there(key: tuple[str, int]) -> None:
    seed, number = key
    place, tests, _ = (cell.strip() for cell in ROWS[key].split(" | "))
    assert PLACE.findall(place)
    assert [path for path in PLACE.findall(place) if not (ROOT / path).exists()] == []
    named = TEST.findall(tests)
    assert named
    begin = f"test_{seed.lower()}_{number}_"
    for path in named:
        (source,) = [each for each in sources() if str(each.path) == path]
        functions = [
            node.name for node in ast.walk(source.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        assert [name for name in functions if name.startswith(begin)], f"{path}: no {begin}…"


def test_a_system_imports_of_ours_what_is_public() -> None:
    """`import tidemill`, its modules without an underscore, and nothing of its inner packages."""
    inner = ("agents", "streams", "schemas", "cli")
    found = [
        f"{source.at(node)}: {name}"
        for source in sources_of("systems")
        for node, name in imported(source.tree)
        if [*name.split("."), ""][0] == "tidemill" and [*name.split("."), ""][1] in inner
    ]
    assert found == []
