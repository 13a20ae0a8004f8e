"""Time that stands still, as freezegun and mocks make it: functions of Python's own are replaced in
every loaded module in which a name stands for one of them.

Owns the replacing and the putting back. Refuses to know who reads a clock.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

AT: Final = 1_577_836_800.0  # 2020-01-01
#: freezegun leaves these alone, and so do we: threads wait by them.
LEFT: Final = ("threading", "queue", "multiprocessing", "_pytest", "pytest_timeout")
_REAL: Final = {
    name: getattr(time, name)
    for name in ("monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "time", "time_ns")
}
_REAL_DATETIME: Final = datetime.datetime


class _Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _Frozen:
        found: _Frozen = cls.fromtimestamp(AT, tz)
        return found


def _fake(name: str) -> Callable[[], Any]:
    def fake_time() -> Any:
        return int(AT * 1e9) if name.endswith("_ns") else AT

    return fake_time


_FAKES: Final[dict[int, Any]] = {
    id(_REAL_DATETIME): _Frozen, **{id(real): _fake(name) for name, real in _REAL.items()},
}


class Freezer:
    """Time that may be made to stand still, and to go on."""

    def __init__(self) -> None:
        self._changes: list[tuple[ModuleType, str, Any]] = []

    @property
    def names(self) -> list[str]:
        """Where something was replaced."""
        return [f"{module.__name__}.{attribute}" for module, attribute, _ in self._changes]

    def freeze(self) -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith((*LEFT, __name__)) or not hasattr(module, "__dict__"):
                continue
            for attribute, value in list(vars(module).items()):
                if (fake := _FAKES.get(id(value))) is not None:
                    self._changes.append((module, attribute, value))
                    setattr(module, attribute, fake)

    def thaw(self) -> None:
        for module, attribute, value in self._changes:
            setattr(module, attribute, value)
        self._changes.clear()
