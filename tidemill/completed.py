"""A job's end as programs see it, and the error for a result that does not fit its type.

Owns that error. Refuses to hold more: the end is the worker's own class, which handlers get too.
"""

from __future__ import annotations

from tidemill.agents.worker.completed import CompletedJob
from tidemill.requests import ClientError

__all__ = ["CompletedJob", "ResultMismatch"]


class ResultMismatch(ClientError, TypeError):
    """A job succeeded, and its result does not fit the handler's return annotation.

    `completed` is the end with the result as JSON values.
    """

    def __init__(self, message: str, completed: CompletedJob) -> None:
        super().__init__(message)
        self.completed = completed
