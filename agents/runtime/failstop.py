"""Ending the process at once, with a reason in the log.

Owns the one way out for a process that can no longer be trusted; refuses to decide when that is.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

# EX_SOFTWARE of sysexits.h: a supervisor starts the role again with a backoff.
EXIT_FAIL_STOP = 70

logger = logging.getLogger("tidemill.runtime")


def fail_stop(reason: str, error: BaseException | None = None) -> NoReturn:
    """Log ``reason`` and end the process without any clean-up: no ack, no commit, no flush.

    What was in flight is either committed by Kafka's transaction or will be done again by the next
    owner, so an abrupt end is always safe and a half-working process never is.
    """
    logger.critical("fail-stop: %s", reason, exc_info=error)
    for handler in logging.getLogger().handlers:
        handler.flush()
    print(f"fail-stop: {reason}", file=sys.stderr, flush=True)
    os._exit(EXIT_FAIL_STOP)
