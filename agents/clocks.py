"""The clocks that our own code reads, as Python had them before any code of users ran.

Owns these clocks, and giving them to the modules below us. Refuses to know what they are read
for. Little is imported here: a process that shall stay small uses them.

Tests of users freeze time, and some of their code does so in production: mocks put functions of
their own into the module `time`, freezegun also into every loaded module in which a name stands for
one of Python's. A worker whose clocks stand still sends no beat, ends no attempt and leaves its
group. So ours are objects of another kind, which none of them takes for Python's, and the modules
below us get the same, those of Python too on which a worker hangs.

What cannot be held off: time-machine replaces the code of `time.time` itself, in C. It leaves the
monotonic clock alone, so nothing stands still, and `tidemill.agents.worker.surroundings` tells of
it.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Final

#: Seconds of a clock that never goes back, the same for all processes of a machine.
monotonic: Final = partial(time.monotonic)
#: Seconds since 1970.
wall: Final = partial(time.time)
wall_ns: Final = partial(time.time_ns)
sleep: Final = partial(time.sleep)

_gmtime: Final = partial(time.gmtime)
_strftime: Final = partial(time.strftime)

_CLOCKS: Final = {
    id(getattr(time, name)): partial(getattr(time, name))
    for name in (
        "gmtime", "localtime", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns",
        "sleep", "strftime", "time", "time_ns",
    )
}
_MODULE: Final = SimpleNamespace(
    **{name: _CLOCKS.get(id(value), value) for name, value in vars(time).items()}
)
BELOW_US: Final = ("aiokafka", "asyncio", "faust", "logging", "mode", "subprocess")


def wall_ms() -> int:
    """Epoch ms."""
    return int(wall() * 1000)


def wall_text() -> str:
    """Now in UTC, as log lines have it."""
    seconds, microseconds = divmod(wall_ns() // 1000, 1_000_000)
    return f"{_strftime('%Y-%m-%dT%H:%M:%S', _gmtime(seconds))}.{microseconds:06}Z"


def keep() -> None:
    """The modules below us read our clocks from here on; to call before code of users runs."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in BELOW_US and isinstance(module, ModuleType):
            _keep_in(vars(module))


def _keep_in(names: dict[str, object]) -> None:
    for name, value in list(names.items()):
        if value is time:
            names[name] = _MODULE
        elif (kept := _CLOCKS.get(id(value))) is not None:
            names[name] = kept
