"""The comparison of two cores finds what differs, and nothing where nothing does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest

from tests.twins.__main__ import HERE, compare
from tests.twins.tape import Tape
from tests.twins.worlds import record_random

INPUTS: Final = 400  # at least; one world of each kind has more


@pytest.fixture(scope="module")
def tape() -> Tape:
    made = Tape()
    record_random(made, INPUTS)
    return made


def _copy_of_the_core(folder: Path) -> Path:
    """As a wheel has it, without what needs more than the core."""
    package = folder / "tidemill"
    for part in ("schemas", "streams"):
        shutil.copytree(HERE / part, package / part, ignore=shutil.ignore_patterns("_native"))
    (package / "__init__.py").touch()
    return folder


def test_the_same_core_says_the_same(tape: Tape, tmp_path: Path) -> None:
    core = _copy_of_the_core(tmp_path / "core")
    assert compare(core, tape, tmp_path, rows_may_differ=False)


@pytest.mark.parametrize(
    ("module", "text", "other"),
    [
        ("backoff.py", "2 * fraction - 1", "2 * fraction - 2"),  # an event
        ("rows.py", "LIVE: Final = 2 ", "LIVE: Final = 3 "),  # a row, read back by its writer
        ("partition.py", "record.offset <= self", "record.offset < self"),  # what is taken twice
    ],
)
def test_another_core_is_found(
    tape: Tape, tmp_path: Path, module: str, text: str, other: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    core = _copy_of_the_core(tmp_path / "core")
    (path,) = core.glob(f"tidemill/streams/**/{module}")
    source = path.read_text(encoding="utf-8")
    assert text in source
    path.write_text(source.replace(text, other), encoding="utf-8")
    assert not compare(core, tape, tmp_path, rows_may_differ=False)
    assert not capsys.readouterr().out.splitlines()[1].startswith("new: 0 ")
