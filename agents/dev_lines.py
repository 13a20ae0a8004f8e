"""What the terminal of `tidemill dev` shows, and when.

Owns which lines of the roles are kept back while the stack starts, and the list of handlers.
Refuses to know how a line is coloured and where it is written. The log files have every line.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tidemill.agents.supervisor import Echo

KEPT_LINES_MAX: Final = 40  # of one role, shown when it dies before the stack is ready
LISTED_AT_ONCE_MAX: Final = 3  # handlers with a line each before `ready`; more come after it
# What is told of a start that goes well: elections, restores, servers. From others' libraries even
# errors: a broker that has just started answers some first questions with "not yet".
_OF_STARTS: Final = re.compile(
    r"\[(?:debug|info|warning) *\].*\[(?:tidemill\.(?:runtime|ledger|sink|api|kafka)|uvicorn)"
    r"|\[\w+ *\].*\[(?:aiokafka|faust|mode)\b"
)


class QuietStart:
    """Passes lines on, but those of a start that goes well."""

    def __init__(self, echo: Echo) -> None:
        self._echo = echo
        self._kept: dict[str, deque[str]] = {}
        self.is_starting = True

    def __call__(self, name: str, line: str) -> None:
        """A line of a role."""
        if self.is_starting and _is_of_start(line):
            self._kept.setdefault(name, deque(maxlen=KEPT_LINES_MAX)).append(line)
            return
        self._echo(name, line)

    def tell_kept(self, name: str) -> None:
        """Something is wrong with this role: show what was kept back."""
        for line in self._kept.pop(name, ()):
            self._echo(name, line)


def _is_of_start(line: str) -> bool:
    if not line.startswith("{"):
        return _OF_STARTS.search(line) is not None
    try:
        told = json.loads(line)
        text = f"[{told['level']}] [{told['logger']}]"
    except (ValueError, KeyError, TypeError):
        return False
    return _OF_STARTS.search(text) is not None


def tell_handlers(
    handlers: Sequence[Mapping[str, Any]], say: Callable[[str], None], *, is_ready: bool
) -> None:
    """The list of handlers: before `ready` in few lines, after it in full."""
    if len(handlers) <= LISTED_AT_ONCE_MAX:
        if not is_ready:
            _tell_each(handlers, say)
    elif is_ready:
        _tell_each(handlers, say)
    else:
        say(f"{len(handlers)} handlers: {', '.join(str(each['type']) for each in handlers)}")


def _tell_each(handlers: Sequence[Mapping[str, Any]], say: Callable[[str], None]) -> None:
    width = max((len(str(each["type"])) for each in handlers), default=0)
    for each in handlers:
        attempts = each["max_attempts"]
        limits = "; ".join(each["limits"]) or "no limits"
        say(
            f"handler {each['type']:<{width}}  queue {each['queue']}, {each['kind']}, "
            f"{attempts} attempt{'s' if attempts != 1 else ''} of {each['timeout_seconds']:g} s, "
            f"{limits}"
        )
