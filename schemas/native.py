"""Whether the engine's core runs compiled: finds what `python -m tools.native` made, if it fits.

Owns the fingerprint of the sources and the choice between them and their compiled form. Refuses to
know how they are compiled (`tools.native`).

The sources are the truth. A compiled core stands in a folder named after the bytes of every source
of `schemas` and `streams`, so that an edited source never runs as what it was before: its folder is
not found, and the core is interpreted. All of both packages count, not only what is compiled: the
compiler copies constants from one module into another.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import MutableSequence
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Final

VARIABLE: Final = "TIDEMILL_NATIVE"
"""0: interpreted. 1: compiled, or the start fails. Unset: compiled when that is there and fits."""

PACKAGES: Final = ("schemas", "streams")
"""Folders below HOME, and packages of `tidemill`."""

HOME: Final = Path(__file__).resolve().parent.parent
"""The folder of those folders: the root of a checkout, `tidemill` of a wheel."""

PLACES: Final = (".cache/native", "schemas/_native")
"""Where a compiled core is looked for, below HOME: in a checkout, in a wheel."""

LIBRARY: Final = "tidemill_core__mypyc"
"""The module that holds the code of all compiled modules; each of them is only a door to it."""

_NO_SOURCES: Final = ("__pycache__", "_native")  # folders of what is made of sources
_SUFFIX: Final = EXTENSION_SUFFIXES[0]  # such as ".cpython-311-x86_64-linux-gnu.so"


class NativeCoreMissing(ImportError):
    """A compiled core was asked for, and there is none that fits the sources."""


class Core:
    """The core of this process: where its compiled form is, or why it is interpreted."""

    def __init__(self) -> None:
        self.wish = os.environ.get(VARIABLE, "")
        self.folder: Path | None = None
        self.why = f"{VARIABLE}=0" if self.wish == "0" else "not compiled: run `make native`"
        if self.wish in ("", "1"):
            self._find()

    def _find(self) -> None:
        places = [place for name in PLACES if (place := HOME / name).is_dir()]
        if not places:
            return
        name = folder_name(HOME)
        for place in places:
            folder = place / name
            if folder.is_dir():
                self._load(folder)
                return
        self.why = "what is compiled does not fit the sources: run `make native`"

    def _load(self, folder: Path) -> None:
        try:
            spec = spec_from_file_location(LIBRARY, folder / f"{LIBRARY}{_SUFFIX}")
            if spec is None or spec.loader is None:
                raise ImportError(f"Python cannot load files that end in {_SUFFIX}")
            library = module_from_spec(spec)
            spec.loader.exec_module(library)
        except ImportError as error:  # made for another system
            self.why = f"{folder} cannot be loaded: {error}"
            return
        sys.modules[LIBRARY] = library
        self.folder = folder
        self.why = ""

    @property
    def is_native(self) -> bool:
        return self.folder is not None

    def __str__(self) -> str:
        return "native" if self.is_native else f"interpreted ({self.why})"


def folder_name(home: Path) -> str:
    """The name of the folder that fits the sources below `home` and this Python."""
    total = hashlib.sha256()
    for name in sources_of(home):
        source = (home / name).read_bytes()
        total.update(f"{name} {len(source)}\n".encode())
        total.update(source)
    return f"{_SUFFIX.split('.')[1]}-{total.hexdigest()[:32]}"


def sources_of(home: Path) -> list[str]:
    """Every source of both packages below `home`, those of their folders too: relative paths."""
    found: list[str] = []
    for package in PACKAGES:
        for folder, folders, names in os.walk(home / package):
            folders[:] = [one for one in folders if one not in _NO_SOURCES and one[0] != "."]
            inside = Path(folder).relative_to(home).as_posix()
            found += [f"{inside}/{name}" for name in names if name.endswith(".py")]
    return sorted(found)  # folders are listed in another order on another file system


core: Final = Core()


def prefer_compiled(package: str, path: MutableSequence[str], *, demand: bool = False) -> None:
    """Lets the modules of `package` be found in their compiled form first, where there is one. Each
    folder of a package asks for itself, by its whole name.

    `demand`: raise NativeCoreMissing when TIDEMILL_NATIVE asks for what is not there.
    """
    if core.folder is not None:
        path.insert(0, str(core.folder.joinpath(*package.split("."))))
    elif demand and core.wish not in ("", "0", "1"):
        raise NativeCoreMissing(f"{VARIABLE}={core.wish!r} is neither 0 nor 1; or leave it unset")
    elif demand and core.wish == "1":
        raise NativeCoreMissing(
            f"{VARIABLE}=1 asks for a compiled core, but: {core.why}, or unset {VARIABLE} to run "
            "interpreted"
        )
