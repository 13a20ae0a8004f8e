"""Whether another installed package hides one of ours.

Owns the check: `agents`, `streams` and `schemas` are generic names. Refuses to import any of them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

OUR_PACKAGES: Final = ("agents", "streams", "schemas")
_HOME: Final = Path(__file__).resolve().parent.parent


class ShadowedPackage(ImportError):
    """Another package is found under the name of one of ours."""


def shadowed() -> dict[str, str]:
    """Our package -> where Python finds another one instead; {} when all is well."""
    found = {}
    for name in OUR_PACKAGES:
        spec = importlib.util.find_spec(name)
        places = list(spec.submodule_search_locations or []) if spec is not None else []
        if _HOME / name not in [Path(place).resolve() for place in places]:
            found[name] = ", ".join(places) or "nowhere"
    return found


def check_not_shadowed() -> None:
    """Raise ShadowedPackage with the way out."""
    for name, place in shadowed().items():
        raise ShadowedPackage(
            f"the package {name!r} is found at {place}, not beside tidemill at {_HOME}; uninstall "
            "the other one, rename it, or install tidemill in a virtual environment of its own"
        )
