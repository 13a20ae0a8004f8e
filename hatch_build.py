"""What goes into a wheel: `tidemill`, the folders behind its links, and the compiled core if asked.

Owns the wheel's content and its tag. Refuses to know how the core is compiled: `tools.native`.

`tidemill/schemas`, `streams` and `agents` are relative links to the folders at the top. Hatchling
reads each folder once, by whichever of its two paths comes first, so the links are excluded and
the folders are added here by name.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LINKED = ("schemas", "streams", "agents")


class Packages(BuildHookInterface):  # type: ignore[type-arg]
    def _is_compiled(self) -> bool:
        return os.environ.get("TIDEMILL_NATIVE") == "1" and self.target_name == "wheel"

    def dependencies(self) -> list[str]:
        """What the compiler needs, and the types that it reads."""
        if not self._is_compiled():
            return []
        return ["mypy>=1.15", "setuptools>=77", "orjson", "pydantic"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        if version == "editable":
            make_links(root)
            return
        for path in wheel_sources(root):
            build_data["force_include"][str(root / path)] = f"tidemill/{path}"
        if self._is_compiled():
            self._compile(root, build_data)

    def _compile(self, root: Path, build_data: dict[str, Any]) -> None:
        make_links(root)  # the compiler is a program of this checkout
        sys.path.insert(0, self.root)
        from tidemill.schemas.native import PLACES
        from tools import native

        if lacks := native.missing_compiler():
            raise native.BrokenBuild(f"TIDEMILL_NATIVE=1 asks for a compiled core: {lacks}")
        folder, _ = native.build()
        build_data["force_include"][str(folder)] = f"tidemill/{PLACES[1]}/{folder.name}"
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def wheel_sources(root: Path) -> list[str]:
    """The files of the linked packages, relative to the root."""
    return [
        path.relative_to(root).as_posix()
        for name in LINKED
        for path in sorted((root / name).rglob("*"))
        if path.is_file() and not any(map(_is_made, path.relative_to(root).parts))
    ]


def _is_made(name: str) -> bool:
    """Whether a file or folder is what a tool has left there."""
    return name in ("__pycache__", "_native") or name.startswith(".") or name.endswith(".pyc")


def make_links(root: Path) -> None:
    """The links that git keeps and an unpacked sdist lacks."""
    for name in LINKED:
        link = root / "tidemill" / name
        if not link.exists():
            link.symlink_to(f"../{name}", target_is_directory=True)
