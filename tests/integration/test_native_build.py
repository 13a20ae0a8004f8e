"""The build of the compiled core, on packages that compile within seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tidemill.schemas.native import HOME, PLACES, VARIABLE, folder_name
from tools import native

TINY: Final = """from typing import Final
ANSWER: Final = {answer}
def answer() -> int:
    return {returned}
"""


PACKAGE: Final = """from tidemill.schemas.native import prefer_compiled
prefer_compiled(__name__, __path__)
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages of the same names that compile within seconds."""
    monkeypatch.setattr(native, "OPTIMISATION", "0")
    packages = {"schemas": native.CONTRACTS, "streams": ("engine",), "streams/inner": ("deep",)}
    (tmp_path / "tidemill").mkdir()
    (tmp_path / "tidemill" / "__init__.py").touch()
    for package, names in packages.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(PACKAGE)
        for name in names:
            text = TINY.format(answer=42, returned="ANSWER")
            (tmp_path / package / f"{name}.py").write_text(text)
        if "/" not in package:
            (tmp_path / "tidemill" / package).symlink_to(f"../{package}")
    shutil.copy(HOME / "schemas" / "native.py", tmp_path / "schemas")
    return tmp_path


def answered(home: Path, module: str) -> tuple[str, str]:
    """(the ending of the module's file, its answer) in a process that imports it."""
    code = f"import tidemill.streams.{module} as it; print(it.__file__, it.answer())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=home, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(home), VARIABLE: ""}, check=True,
    )
    file, _, answer = done.stdout.strip().rpartition(" ")
    return Path(file).suffix, answer


def needs_compiler() -> None:
    if (lacks := native.missing_compiler()) is not None:
        pytest.skip(lacks)


def test_the_build_is_made_once_and_replaces_the_old_one(tiny: Path) -> None:
    needs_compiler()
    first, is_new = native.build(tiny)
    assert is_new
    assert first.name == folder_name(tiny)
    assert native.build(tiny) == (first, False)
    for edited in ("streams/engine.py", "streams/inner/deep.py"):
        (tiny / edited).write_text(TINY.format(answer=43, returned="ANSWER"))
        second, is_new = native.build(tiny)
        assert is_new
        assert [folder.name for folder in first.parent.iterdir()] == [second.name]
        assert native.is_built(second, native.stamp(tiny))
        assert not native.is_built(second, "another compiler")
        assert list((second / native.TOP / edited).parent.glob(f"{Path(edited).stem}.*"))


def test_stale_code_of_a_subfolder_never_runs(tiny: Path) -> None:
    needs_compiler()
    native.build(tiny)
    for module in ("engine", "inner.deep"):
        assert answered(tiny, module) == (".so", "42")
    (tiny / "streams" / "inner" / "deep.py").write_text(TINY.format(answer=43, returned="ANSWER"))
    # All of the core: the compiler copies constants from one module into another.
    assert answered(tiny, "inner.deep") == (".py", "43")
    assert answered(tiny, "engine") == (".py", "42")
    native.build(tiny)
    assert answered(tiny, "inner.deep") == (".so", "43")


def test_a_build_that_fails_says_why_and_leaves_nothing(tiny: Path) -> None:
    needs_compiler()
    (tiny / "streams" / "engine.py").write_text(TINY.format(answer=42, returned="'text'"))
    with pytest.raises(native.BrokenBuild, match="Incompatible return value"):
        native.build(tiny)
    assert list((tiny / PLACES[0]).iterdir()) == []


def test_a_wheel_carries_the_core_when_asked_to(tmp_path: Path) -> None:
    needs_compiler()
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", tmp_path, HOME],
        env={**os.environ, VARIABLE: "1"}, check=True, timeout=170,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert not wheel.name.endswith("-none-any.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    said = subprocess.run(
        [sys.executable, "-c", "import tidemill.streams.lifecycle as it; print(it.__file__)"],
        env={**os.environ, VARIABLE: "1", "PYTHONPATH": str(tmp_path)}, cwd=tmp_path, text=True,
        capture_output=True, timeout=60, check=True,
    ).stdout
    packages = tmp_path / native.TOP
    assert said.startswith(str(packages / PLACES[1] / folder_name(packages)))
