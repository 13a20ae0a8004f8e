"""Copies of the worker that a handler forks: their signals are their own, and none acts as us.

Owns what is done around `fork` in a worker, and the end of a copy that comes back out of its
handler. Refuses to know what handlers fork for.

Signals reach Python through one pair of sockets, which a copy shares: a SIGTERM that ended a helper
was read by the worker's loop and stopped the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from typing import Final

EXIT_COPY: Final = 143  # of a copy that comes back: 128 + SIGTERM, as if it had been told to end
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_LINE: Final = b"tidemill: a copy of the worker, forked by a handler, came back from it and ends\n"


class _Copy:
    """Of this process."""

    is_one = False
    is_watching = False


_copy: Final = _Copy()


def watch_forks(loop: asyncio.AbstractEventLoop) -> None:
    """From now on copies of this process get their own signals; call it on the loop's thread."""
    if _copy.is_watching or not hasattr(os, "register_at_fork"):
        return
    _copy.is_watching = True
    masks = threading.local()
    loop_thread = threading.get_ident()

    def before() -> None:
        # A signal that comes before the copy is ready for it would be lost, or reach the worker.
        masks.former = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def after() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.former)

    def in_copy() -> None:
        _copy.is_one = True
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if threading.get_ident() == loop_thread:
            # It may come back into the loop, by way of a task of the handler's.
            with contextlib.suppress(RuntimeError):
                loop.call_soon(leave_if_copy)
        after()

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=in_copy)


def leave_if_copy(raised: BaseException | None = None) -> None:
    """End this process when it is a copy: only the worker itself may go on after a handler."""
    if not _copy.is_one:
        return
    if isinstance(raised, SystemExit):
        code = raised.code
        os._exit(code if isinstance(code, int) else int(code is not None))
    with contextlib.suppress(OSError):
        os.write(2, _LINE)
    os._exit(EXIT_COPY)
