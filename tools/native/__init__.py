"""Compiles the engine's core with mypyc, into a folder that `tidemill.schemas.native` finds.

Owns which modules are compiled, when that has to be done again, and what is said when it cannot be
done. Refuses to know when the result is used.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from tidemill.schemas.native import HOME, PLACES, folder_name, sources_of

CONTRACTS: Final = ("codec", "dead", "event_writer", "instants", "numbers", "batch_builder")
"""The modules of `schemas` that are compiled: the others are models of pydantic and vocabularies,
which stay what they are. All of `streams` is."""

TOP: Final = "tidemill"
"""The package of all packages. Its own `__init__` is no part of the core."""

STAMP: Final = "compiled-with.txt"
"""In each folder: the compiler, its options and the modules. Another text: compile again."""

OPTIMISATION: Final = "3"
LOG_LINES: Final = 40  # of the compiler's output that are shown when it fails


class BrokenBuild(RuntimeError):
    """There is a compiler, and it did not take the sources."""


def compiled_sources(home: Path) -> list[str]:
    """What is compiled, relative to `home`."""
    core = [name for name in sources_of(home) if name.startswith("streams/")]
    return [
        *(f"schemas/{name}.py" for name in CONTRACTS),
        *(name for name in core if not name.endswith("__init__.py")),
    ]


def module_name(source: str) -> str:
    """The name by which a source of `compiled_sources` is imported."""
    return f"{TOP}.{source.removesuffix('.py').replace('/', '.')}"


def missing_compiler() -> str | None:
    """What the C part of the build lacks, with the way out; None when all is there."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if os.name != "nt" and shutil.which(compiler) is None:
        return f"no C compiler ({compiler}); on Debian and Ubuntu: apt-get install gcc libc6-dev"
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").exists():
        return f"no Python.h in {headers}; on Debian and Ubuntu: apt-get install python3-dev"
    return None


def stamp(home: Path) -> str:
    """What else than the sources decides what comes out. Raises BrokenBuild without mypyc."""
    try:
        tools = [f"{name} {version(name)}" for name in ("mypy", "setuptools")]
    except PackageNotFoundError as error:
        raise BrokenBuild(f"{error.name} is not installed: `make native` brings it") from error
    return "\n".join([*tools, f"optimisation {OPTIMISATION}", *compiled_sources(home), ""])


def build(home: Path = HOME, place: Path | None = None) -> tuple[Path, bool]:
    """Compiles what lies below `home` into `place`; (the folder, whether there was work to do).

    Raises BrokenBuild with the end of the compiler's output.
    """
    place = place or home / PLACES[0]
    if is_built(target := place / folder_name(home), stamp(home)):
        return target, False
    place.mkdir(parents=True, exist_ok=True)
    scratch = place / f".building-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        # A copy: what is compiled is what is hashed, even when somebody edits meanwhile. The real
        # package above loads the client's names; the compiler sees an empty one.
        above = scratch / TOP
        for name in sources_of(home):
            (above / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(home / name, above / name)
        (above / "__init__.py").touch()
        target = place / folder_name(above)
        _compile(scratch)
        (scratch / "out" / STAMP).write_text(stamp(above), encoding="utf-8")
        if not is_built(target, stamp(above)):  # by somebody else in the meantime
            shutil.rmtree(target, ignore_errors=True)  # of another compiler, or of other options
            (scratch / "out").rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _remove_others(place, target)
    return target, True


def is_built(target: Path, expected: str) -> bool:
    """Whether that folder was made by this compiler, in this way."""
    try:
        return (target / STAMP).read_text(encoding="utf-8") == expected
    except OSError:
        return False


def _compile(scratch: Path) -> None:
    script = Path(__file__).with_name("extension.py")
    sources = [f"{TOP}/{source}" for source in compiled_sources(scratch / TOP)]
    done = subprocess.run(
        [sys.executable, str(script), OPTIMISATION, *sources],
        cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env={**os.environ, "MYPYPATH": ""},
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-LOG_LINES:])
        raise BrokenBuild(f"the compiler did not take the core:\n{tail}")


def _remove_others(place: Path, target: Path) -> None:
    """Folders of sources as they were; those of another Python stay."""
    kind = target.name.rpartition("-")[0]
    for folder in place.iterdir():
        if folder.name.rpartition("-")[0] == kind and folder != target:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """The exit code: 0 also without a C compiler, as everything works without; 1 when it fails."""
    lacks = missing_compiler()
    if lacks is not None:
        print(
            f"native: the core stays interpreted, a decision takes three times as long: {lacks}",
            flush=True,
        )
        return 0
    begun = time.monotonic()
    try:
        if not is_built(HOME / PLACES[0] / folder_name(HOME), stamp(HOME)):
            print("native: compiling the core, about 40 s …", flush=True)
        folder, is_new = build()
    except BrokenBuild as error:
        print(f"native: {error}", file=sys.stderr)
        return 1
    if is_new:
        print(f"native: compiled into {folder} in {time.monotonic() - begun:.0f} s")
    return 0
