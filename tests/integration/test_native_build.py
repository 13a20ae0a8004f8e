"""The build of the compiled core, on packages that compile within seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from schemas.native import PLACES, folder_name
from tools import native

TINY: Final = """from typing import Final
ANSWER: Final = {answer}
def answer() -> int:
    return {returned}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Packages of the same names that compile within seconds."""
    for package, names in {"schemas": native.CONTRACTS, "streams": ("engine",)}.items():
        (tmp_path / package).mkdir()
        for name in ("__init__", *names):
            text = TINY.format(answer=42, returned="ANSWER")
            (tmp_path / package / f"{name}.py").write_text(text)
    return tmp_path


def needs_compiler() -> None:
    if (lacks := native.missing_compiler()) is not None:
        pytest.skip(lacks)


def test_the_build_is_made_once_and_replaces_the_old_one(tiny: Path) -> None:
    needs_compiler()
    first, is_new = native.build(tiny)
    assert is_new
    assert first.name == folder_name(tiny)
    assert native.build(tiny) == (first, False)
    engine = tiny / "streams" / "engine.py"
    engine.write_text(TINY.format(answer=43, returned="ANSWER"))
    second, is_new = native.build(tiny)
    assert is_new
    assert [folder.name for folder in first.parent.iterdir()] == [second.name]
    assert native.is_built(second, native.stamp(tiny))
    assert not native.is_built(second, "another compiler")


def test_a_build_that_fails_says_why_and_leaves_nothing(tiny: Path) -> None:
    needs_compiler()
    (tiny / "streams" / "engine.py").write_text(TINY.format(answer=42, returned="'text'"))
    with pytest.raises(native.BrokenBuild, match="Incompatible return value"):
        native.build(tiny)
    assert list((tiny / PLACES[0]).iterdir()) == []


