"""What can go wrong with a call of a model, each as the error that ends a job's attempt.

A handler lets them pass: Tidemill reads them as `Retry` or `NonRetryable`. Refuses to know how an
answer is read.
"""

from __future__ import annotations

from tidemill import NonRetryable, Retry


class ModelRateLimited(Retry):
    """HTTP 429. The job waits as long as Retry-After says, else its own backoff."""

    def __init__(self, message: str, *, after_seconds: float | None = None) -> None:
        super().__init__(message, after_seconds=after_seconds, code="MODEL_RATE_LIMITED")


class ModelUnavailable(Retry):
    """No connection, HTTP 5xx, a stream that was cut, or an answer that is none."""

    def __init__(self, message: str, *, after_seconds: float | None = None) -> None:
        super().__init__(message, after_seconds=after_seconds, code="MODEL_UNAVAILABLE")


class ModelTimeout(Retry):
    """The call's deadline passed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="MODEL_TIMEOUT")


class ModelOutputInvalid(Retry):
    """The answer does not fit the schema. `text` is what came."""

    def __init__(self, message: str, *, text: str = "") -> None:
        super().__init__(message, code="MODEL_OUTPUT_INVALID")
        self.text = text


class ModelRefused(NonRetryable):
    """Another HTTP 4xx: a wrong key, model or request. Asking again changes nothing."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="MODEL_REFUSED")
