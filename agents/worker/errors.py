"""What a handler raises to steer its job, and what is wrong with a definition or a module.

Owns the exceptions that cross the line between a user's code and the worker, in both directions.
Refuses to know how they become outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tidemill.schemas.words import ErrorCode

if TYPE_CHECKING:
    from tidemill.agents.worker.completed import CompletedJob

CODE_LENGTH_MAX: Final = 64  # characters of an error's code; codes are grouped by in SQL
REASON_LENGTH_MAX: Final = 128  # characters of a skip's reason; reasons are grouped by in SQL
RETRY_AFTER_SECONDS_MAX: Final = 30 * 86_400.0  # seconds; a longer wait is a request with `run_at`


class TidemillError(Exception):
    """Root of what Tidemill raises in a user's process."""


class JobDefinitionError(TidemillError):
    """A `@job` that cannot work. The text names the function, the reason and the way out."""


class ModuleLoadError(TidemillError):
    """A module that cannot be loaded or defines no job. The text says what to do."""


class MissingModule(ModuleLoadError):
    """There is no such file or module."""


class Steer(TidemillError):
    """Root of what a handler raises on purpose; logged without a stack trace."""


def _checked_code(code: object) -> str:
    if not isinstance(code, str) or not code:
        raise TypeError(f"code must be a text such as 'CARD_DECLINED', not {code!r}")
    return code[:CODE_LENGTH_MAX]


class Retry(Steer):
    """This attempt failed; try again, after `after_seconds` when given, else after the backoff.

    The attempt counts: when it was the last one, the job fails.
    """

    def __init__(
        self,
        message: str = "",
        *,
        after_seconds: float | None = None,
        code: str = ErrorCode.HANDLER_ERROR,
    ) -> None:
        if after_seconds is not None:
            after_seconds = float(after_seconds)
            if not (math.isfinite(after_seconds) and after_seconds >= 0):
                raise ValueError(f"after_seconds must be 0 or more, not {after_seconds}")
            after_seconds = min(after_seconds, RETRY_AFTER_SECONDS_MAX)
        super().__init__(message or "the handler asked for a retry")
        self.after_seconds = after_seconds
        self.code = _checked_code(code)


class NonRetryable(Steer):
    """This job cannot succeed; it fails now, whatever attempts are left."""

    def __init__(self, message: str = "", *, code: str = ErrorCode.HANDLER_ERROR) -> None:
        self.code = _checked_code(code)
        super().__init__(message or f"the handler gave up with {self.code}")


class MembersFailed(NonRetryable):
    """More members of a `ctx.gather` have failed than it tolerates. A handler that lets it pass has
    failed; one that catches it may go on."""

    def __init__(
        self, message: str = "", *, failed: Sequence[CompletedJob] = (),
        code: str = ErrorCode.MEMBERS_FAILED,
    ) -> None:
        super().__init__(message or "members have failed", code=code)
        #: The ends of those that failed, were cancelled or have expired, in the requests' order.
        #: Members that were not asked for any more are no part of it.
        self.failed: list[CompletedJob] = list(failed)


class SignalTimeout(NonRetryable, TimeoutError):
    """No signal came within the time-out of `ctx.wait`. A handler that lets it pass has failed;
    one that catches it may go on. It comes again in every later attempt and run of the job."""

    def __init__(self, message: str = "", *, code: str = ErrorCode.SIGNAL_TIMEOUT) -> None:
        super().__init__(message or "no signal came in time", code=code)


class Skip(Steer):
    """There is nothing to do: the job ends as `skipped` with this reason."""

    def __init__(self, reason: object) -> None:
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError("reason must say why the job is skipped; give a short text")
        super().__init__(reason)
        self.reason = reason[:REASON_LENGTH_MAX]
