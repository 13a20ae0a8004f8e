"""A wheel with the compiled core inside, when TIDEMILL_NATIVE=1 asks for one; else the pure wheel.

Owns what goes into the wheel and its tag. Refuses to know how the core is compiled: `tools.native`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledCore(BuildHookInterface):  # type: ignore[type-arg]
    def _is_wanted(self) -> bool:
        return os.environ.get("TIDEMILL_NATIVE") == "1" and self.target_name == "wheel"

    def dependencies(self) -> list[str]:
        """What the compiler needs, and the types that it reads."""
        return ["mypy>=1.15", "setuptools>=77", "orjson", "pydantic"] if self._is_wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or not self._is_wanted():
            return
        sys.path.insert(0, self.root)
        from tidemill.schemas.native import PLACES
        from tools import native

        if lacks := native.missing_compiler():
            raise native.BrokenBuild(f"TIDEMILL_NATIVE=1 asks for a compiled core: {lacks}")
        folder, _ = native.build()
        build_data["force_include"][str(folder)] = f"{PLACES[1]}/{folder.name}"
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
