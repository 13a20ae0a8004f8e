"""What code of users may change for its whole process, and every later job then meets: the working
folder, the umask, the locale, the clock, the three standard streams.

Owns the look at them, the one line of each change, and putting back. Refuses to know who changed
them: who looks right after a job knows, who looks now and then names those that ran.

A child of `process=True` runs one job at a time, so what a job changed is put back after it. The
worker itself runs many at once, and one of them may need what it has set: there a change is told
of, once a kind, and stays. A clock that was replaced in C, which reaches ours too
(`tidemill.agents.clocks`), is told of as well: instants of attempts are wrong by as much.
"""

from __future__ import annotations

import contextlib
import ctypes
import locale
import logging
import os
from collections.abc import Callable
from typing import Any, Final

from tidemill.agents import clocks, own_streams

CLOCK_ERROR_SECONDS: Final = 2.0  # between two questions of a moment the clock may go on
MASK_OF_LOOK: Final = 0o077  # while the umask is read, which cannot be read without being set

logger = logging.getLogger("tidemill.worker")


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""  # it was removed


def _locale() -> str:
    return locale.setlocale(locale.LC_ALL)


def _umask() -> int:
    mask = os.umask(MASK_OF_LOOK)
    os.umask(mask)
    return mask


class _Timespec(ctypes.Structure):
    """Of C's `clock_gettime`."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _find_system_clock() -> Any:
    try:
        return ctypes.CDLL(None).clock_gettime
    except (OSError, TypeError, AttributeError):
        return None


_system_clock: Final = _find_system_clock()
_CLOCK_REALTIME: Final = 0
_by_reference: Final = ctypes.byref


def clock_error_seconds() -> float:
    """How far our wall clock is from the system's; 0 where nobody can say. A microsecond."""
    found = _Timespec()
    if _system_clock is None or _system_clock(_CLOCK_REALTIME, _by_reference(found)) != 0:
        return 0.0
    return float(clocks.wall() - (found.seconds + found.nanoseconds / 1e9))


def _set_locale(name: str) -> None:
    with contextlib.suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, name)


def _set_folder(path: str) -> None:
    with contextlib.suppress(OSError):  # it may be gone
        os.chdir(path)


class Surroundings:
    """As they were when this was made. `has_others`: other jobs run beside, so nothing is put back,
    and the umask is not looked at: reading it would change it for a moment."""

    def __init__(self, *, has_others: bool) -> None:
        self._has_others = has_others
        self._told: set[str] = set()
        own_streams.fill()  # a process may have been started without them
        self._folder = _folder()
        self._locale = _locale()
        self._umask = -1 if has_others else _umask()

    def look(self, who: Callable[[], str]) -> None:
        """Tell of what has changed, once a kind; put back what may be. `who` names handlers.

        A handler may have replaced the very functions that look: nothing hangs on this.
        """
        try:
            self._look(who)
        except Exception as error:  # noqa: BLE001
            if "look" not in self._told:
                self._told.add("look")
                logger.warning(
                    "nobody can see what jobs change in this process (%s): %r", who(), error
                )

    def _look(self, who: Callable[[], str]) -> None:
        folder, words = _folder(), _locale()
        if folder != self._folder:
            self._tell("working folder", self._folder, folder or "one that is removed", who)
            if not self._has_others:
                _set_folder(self._folder)
        if words != self._locale:
            self._tell("locale", self._locale, words, who)
            if not self._has_others:
                _set_locale(self._locale)
        if closed := own_streams.fill():
            self._tell_closed(closed, who)
        error = clock_error_seconds()
        if abs(error) > CLOCK_ERROR_SECONDS:
            self._tell_clock(error, who)
        if self._has_others:
            return
        mask = _umask()
        if mask != self._umask:
            self._tell("umask", f"{self._umask:03o}", f"{mask:03o}", who)
            os.umask(self._umask)

    def _tell(self, kind: str, before: str, now: str, who: Callable[[], str]) -> None:
        if kind in self._told:
            return
        self._told.add(kind)
        what = (
            "it stays, since other jobs run beside; later ones meet it"
            if self._has_others else "it is put back after each job"
        )
        logger.warning(
            "the %s of this process is changed, from %r to %r (%s): %s. Give a handler "
            "process=True for what is global", kind, before, now, who(), what,
        )

    def _tell_closed(self, closed: list[int], who: Callable[[], str]) -> None:
        if "streams" not in self._told:
            self._told.add("streams")
            logger.warning(
                "code in this process has closed descriptor %s (%s): an empty file stands there "
                "now, since the next connection would have got what is printed",
                " and ".join(map(str, closed)), who(),
            )

    def _tell_clock(self, error: float, who: Callable[[], str]) -> None:
        if "clock" not in self._told:
            self._told.add("clock")
            logger.warning(
                "code in this process has replaced its clock, which is %.0f s off (%s): jobs run "
                "on, and what is told of their begin, end and duration is wrong while this lasts. "
                "Replace the clock in tests, not in a worker", error, who(),
            )
