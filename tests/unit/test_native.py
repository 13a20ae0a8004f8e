"""The compiled core: used when it fits the sources, never when it does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.mutations import MUTATIONS, scratch_copy
from tidemill.agents import exit_codes
from tidemill.schemas.native import HOME, LIBRARY, PACKAGES, PLACES, VARIABLE, core, folder_name
from tools import native

BUILT: Final = HOME / PLACES[0] / folder_name(HOME)
SAY: Final = (
    "from tidemill.schemas.native import core; import tidemill.streams.lifecycle as it; "
    "print(core, it.__file__, sep='|')"
)


def started(home: Path, wish: str = "") -> subprocess.CompletedProcess[str]:
    """A process that imports the core of `home`."""
    return subprocess.run(
        [sys.executable, "-c", SAY], cwd=home, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(home), VARIABLE: wish}, check=False,
    )


def said(home: Path, wish: str = "") -> tuple[str, str]:
    """(native or interpreted, the end of the module's file) of such a process."""
    done = started(home, wish)
    assert done.returncode == 0, done.stderr
    status, _, file = done.stdout.strip().partition("|")
    return status.partition(" ")[0], Path(file).suffix


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The core's packages by themselves, below a `tidemill` that has no more."""
    (tmp_path / "tidemill").mkdir()
    (tmp_path / "tidemill" / "__init__.py").touch()
    for package in PACKAGES:
        shutil.copytree(
            HOME / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
        (tmp_path / "tidemill" / package).symlink_to(f"../{package}")
    return tmp_path


@pytest.fixture
def compiled(home: Path) -> Path:
    """The same, with what was compiled for these sources."""
    if not BUILT.is_dir():
        pytest.skip("the core is not compiled; `make native` does it where a C compiler is")
    shutil.copytree(BUILT, home / PLACES[0] / BUILT.name)
    return home


def test_a_core_that_is_there_is_the_one_that_runs() -> None:
    assert core.is_native == (BUILT.is_dir() and os.environ.get(VARIABLE) != "0")
    for source in native.compiled_sources(HOME):
        file = import_module(native.module_name(source)).__file__ or ""
        assert file.endswith(tuple(EXTENSION_SUFFIXES)) == core.is_native, file


def test_it_runs_compiled_when_that_fits(compiled: Path) -> None:
    assert said(compiled) == ("native", ".so")
    assert said(compiled, "1") == ("native", ".so")
    assert said(compiled, "0") == ("interpreted", ".py")


def test_each_package_of_the_core_asks_for_its_compiled_form() -> None:
    """One that does not would run interpreted, and nobody would see it."""
    packages = [HOME / "schemas" / "__init__.py", *(HOME / "streams").rglob("__init__.py")]
    silent = [str(path) for path in packages if "prefer_compiled(__name__" not in path.read_text()]
    assert silent == []
    folders = {path.parent for path in (HOME / "streams").rglob("*.py")}
    assert folders == {path.parent for path in packages[1:]}


@pytest.mark.parametrize("change", ["edited", "added", "removed", "renamed", "moved up"])
def test_a_change_in_a_subfolder_is_another_core(home: Path, change: str) -> None:
    below = home / "streams" / "below" / "deeper"
    below.mkdir(parents=True)
    source = below / "rule.py"
    source.write_text("RULE = 1\n")
    before = folder_name(home)
    if change == "edited":
        source.write_text("RULE = 2\n")
    elif change == "added":
        (below / "other.py").touch()
    elif change == "removed":
        source.unlink()
    else:
        source.rename(below / "law.py" if change == "renamed" else below.parent / "rule.py")
    assert folder_name(home) != before


def test_what_is_made_of_sources_is_no_source(home: Path) -> None:
    before = folder_name(home)
    for folder in ("streams/__pycache__", "schemas/_native/x/tidemill"):
        (home / folder).mkdir(parents=True)
        (home / folder / "left.py").touch()
    assert folder_name(home) == before


@pytest.mark.parametrize(
    "edited",
    [
        "streams/policies/expiry.py", "schemas/wire.py", "streams/__init__.py",
        "streams/store/rows.py",
    ],
)
def test_an_edited_source_is_never_masked(compiled: Path, edited: str) -> None:
    with (compiled / edited).open("a") as file:
        file.write("\n")
    assert said(compiled) == ("interpreted", ".py")
    done = started(compiled, "1")
    assert "NativeCoreMissing" in done.stderr
    assert "make native" in done.stderr


def test_a_mutated_copy_runs_interpreted(tmp_path: Path) -> None:
    """Also when what was compiled is carried along."""
    for mutation in MUTATIONS:
        copy = scratch_copy(HOME, tmp_path / mutation.name, mutation.patches)
        if any(patch.path.startswith(PACKAGES) for patch in mutation.patches):
            if BUILT.is_dir():
                shutil.copytree(BUILT, copy / PLACES[0] / BUILT.name)
            assert folder_name(copy) != BUILT.name
        assert said(copy) == ("interpreted", ".py")


def test_a_role_that_must_be_compiled_says_what_is_missing(tmp_path: Path) -> None:
    copy = scratch_copy(HOME, tmp_path, ())
    done = subprocess.run(
        [sys.executable, "-m", "tidemill", "ledger", "--kafka", "127.0.0.1:1"], cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), VARIABLE: "1"}, capture_output=True, text=True,
        timeout=60, check=False,
    )
    assert done.returncode == exit_codes.CONFIG
    assert "make native" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_word_is_refused(home: Path) -> None:
    assert "'yes' is neither 0 nor 1" in started(home, "yes").stderr


def test_what_cannot_be_loaded_is_not_used(home: Path) -> None:
    folder = home / PLACES[0] / folder_name(home)
    folder.mkdir(parents=True)
    (folder / f"{LIBRARY}{EXTENSION_SUFFIXES[0]}").write_bytes(b"made for another machine")
    assert said(home) == ("interpreted", ".py")
    assert "cannot be loaded" in started(home, "1").stderr


def test_no_compiler_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native.main() == 0
    said = capsys.readouterr().out
    assert "interpreted" in said
    assert "no C compiler (no-such-compiler)" in said
