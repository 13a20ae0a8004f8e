"""The three standard streams of a role's process, and what of them stays ours.

Owns our copies of stdin, stdout and stderr. Refuses to know what is said over them.

User code shares the process with us. What it starts inherits descriptors 0, 1 and 2: a `cat`
without input would take the words of our supervisor, and a closed or replaced stdout would hide
that we are ready. So descriptor 0 becomes empty, and ours are copies that nothing inherits.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final, TextIO

_DESCRIPTORS: Final = "/dev/fd"
STDIN, STDOUT, STDERR = 0, 1, 2


class _Own:
    """Of this process; None: `keep` was not called, or somebody else has the stream."""

    words: TextIO | None = None
    out: TextIO | None = None
    log: TextIO | None = None


_own: Final = _Own()


def keep() -> None:
    """First thing in a role that runs user code: from here on our streams are our own."""
    if _own.words is not None:
        return
    _own.words = _take_stdin()
    if sys.stdout is sys.__stdout__:
        _own.out = _copy_of(STDOUT)
    if sys.stderr is sys.__stderr__:
        _own.log = _copy_of(STDERR)


def _take_stdin() -> TextIO:
    empty = os.open(os.devnull, os.O_RDONLY)
    try:
        kept = os.dup(STDIN)
    except OSError:  # there is none
        kept = os.dup(empty)
    if empty != STDIN:
        os.dup2(empty, STDIN)
        os.close(empty)
    return os.fdopen(kept, "r", encoding="utf-8", errors="replace")


def _copy_of(descriptor: int) -> TextIO | None:
    try:
        return os.fdopen(
            os.dup(descriptor), "w", buffering=1, encoding="utf-8", errors="backslashreplace"
        )
    except OSError:  # there is none
        return None


def fill() -> list[int]:
    """Give those of the three descriptors that are closed an empty file; which ones.

    The next file or connection that anybody opens would get such a number, and what is printed
    would go into it.
    """
    closed = [number for number in (STDIN, STDOUT, STDERR) if not _is_open(number)]
    for number in closed:
        empty = os.open(os.devnull, os.O_RDWR)
        if empty == number:
            os.set_inheritable(empty, True)
            continue
        if not _is_open(number):  # nobody was quicker
            os.dup2(empty, number)
        os.close(empty)
    return closed


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def inheritable() -> set[int]:
    """Descriptors past the three that every program inherits which is started without care."""
    found = set()
    for name in os.listdir(_DESCRIPTORS) if os.path.isdir(_DESCRIPTORS) else ():
        with contextlib.suppress(OSError):  # the one that reads the folder is closed by now
            if int(name) > STDERR and os.get_inheritable(int(name)):
                found.add(int(name))
    return found


def keep_from_programs(known: set[int]) -> None:
    """What was opened by C code since `known` was looked up is not for programs of handlers."""
    for descriptor in inheritable() - known:
        with contextlib.suppress(OSError):
            os.set_inheritable(descriptor, False)


def words() -> TextIO:
    """Where a supervisor speaks to us."""
    return sys.stdin if _own.words is None else _own.words


def out() -> TextIO:
    """Where we speak to a supervisor."""
    return sys.stdout if _own.out is None else _own.out


def log() -> TextIO:
    """Where our lines go."""
    return sys.stderr if _own.log is None else _own.log
