"""Copies of this process: what must be told anew in them, and what must never be freed there.

Owns the list of objects that hold threads, locks or sockets, and the word to them in a copy that
`os.fork` made. Refuses to know what they do about it.

Only the thread that forked lives on in a copy. A lock that another thread held stays locked there,
a thread that was waited for never answers, and freeing a librdkafka client waits for its threads.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol


class Copied(Protocol):
    """Holds what a copy must not use."""

    def start_anew(self) -> None:
        """Called in a copy: let go of the parent's threads, locks and connections."""


_known: weakref.WeakSet[Copied] = weakref.WeakSet()


def tell_in_copies(thing: Copied) -> None:
    """From now on `thing` is told in each copy of this process, as long as it lives."""
    _known.add(thing)


def never_free(thing: object) -> None:
    """Keep an object of the parent's for as long as the copy lives, its end included."""
    if thing is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _tell() -> None:
    for thing in list(_known):
        thing.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell)
