"""Jobs in unit tests: the engine and a worker in one thread, on a virtual clock, without Kafka.

Owns the public names; they are loaded when first used, so that the plugin of pytest costs nothing.
Refuses to know how tests are run (`tidemill.pytest_plugin`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tidemill.testing.engine import Engine
    from tidemill.testing.jobs import EngineError, EngineJob

_HOMES: Final = {
    "Engine": "tidemill.testing.engine",
    "EngineError": "tidemill.testing.jobs",
    "EngineJob": "tidemill.testing.jobs",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tidemill.testing' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "tidemill"):
            raise
        raise ModuleNotFoundError(
            f"tidemill.testing needs {missing}: pip install 'tidemill[testing]'", name=missing
        ) from error
    globals()[name] = value
    return value


__all__ = ["Engine", "EngineError", "EngineJob"]
