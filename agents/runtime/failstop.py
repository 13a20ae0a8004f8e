"""Ending the process: at once, with a reason in the log, or surely within some seconds.

Owns the ways out for a process that can no longer be trusted, and for one that is done but runs
other people's code; refuses to decide when that is.
"""

from __future__ import annotations

import logging
import sys
import threading
from os import _exit
from typing import NoReturn

from tidemill.agents import clocks, exit_codes
from tidemill.agents.runtime.errors import final_code

EXIT_FAIL_STOP = exit_codes.FAIL_STOP

logger = logging.getLogger("tidemill.runtime")


def fail_stop(
    reason: str, error: BaseException | None = None, code: int | None = None
) -> NoReturn:
    """Log ``reason`` and end the process without any clean-up: no ack, no commit, no flush.

    `code` tells a supervisor whether another start may help; None: the error says it.

    What was in flight is either committed by Kafka's transaction or will be done again by the next
    owner, so an abrupt end is always safe and a half-working process never is.
    """
    try:
        logger.critical("fail-stop: %s", reason, exc_info=error)
        _flush_logs()
        print(f"fail-stop: {reason}", file=sys.stderr, flush=True)
    finally:  # a handler may have closed any stream
        _exit(code or final_code(error) or EXIT_FAIL_STOP)


def leave_within(seconds: float, code: int) -> None:
    """All work is done and durable: the process ends with ``code``, also when threads hold it up.

    Python waits at its end for threads that were left behind, such as a call of `asyncio.to_thread`
    that never returns. What registered with `atexit` gets these seconds.
    """
    threading.Thread(target=_leave, args=(seconds, code), name="tidemill-exit", daemon=True).start()


def _leave(seconds: float, code: int) -> None:
    clocks.sleep(seconds)
    ours = threading.main_thread()
    left = [each.name for each in threading.enumerate() if not each.daemon and each is not ours]
    logger.warning("the process ends without its threads, which do not end: %s", ", ".join(left))
    _flush_logs()
    _exit(code)


def _flush_logs() -> None:
    for handler in logging.getLogger().handlers:
        handler.flush()
