"""A job's end as programs see it: the record on `jobs.completed`, with the type of its result.

Owns the type parameter and the error for a result that does not fit it. The fields and what they
mean are those of the record (`tidemill.schemas.events`). Refuses to know how an end is found.
"""

from __future__ import annotations

from typing import Any, Generic

from typing_extensions import TypeVar

from tidemill.requests import ClientError
from tidemill.schemas import events

V = TypeVar("V", default=Any)


class CompletedJob(events.CompletedJob, Generic[V]):
    """The end of one run. `CompletedJob[dict | None]` has a `result` of that type.

    `result` is None unless `status` is succeeded.
    """

    result: V


class ResultMismatch(ClientError, TypeError):
    """A job succeeded, and its result does not fit the handler's return annotation.

    `completed` is the end with the result as JSON values.
    """

    def __init__(self, message: str, completed: CompletedJob) -> None:
        super().__init__(message)
        self.completed = completed
