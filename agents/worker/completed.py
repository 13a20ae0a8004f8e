"""A job's end as programs see it: the record on `jobs.completed`, with the type of its result.

Owns the type parameter, and what only the end of a member may say. The fields and what they mean
are those of the record (`tidemill.schemas.events`). Refuses to know how an end is found.
"""

from __future__ import annotations

from typing import Any, Generic

from pydantic import Field
from typing_extensions import TypeVar

from tidemill.schemas import events

V = TypeVar("V", default=Any)


class CompletedJob(events.CompletedJob, Generic[V]):
    """The end of one run. `CompletedJob[dict | None]` has a `result` of that type.

    `result` is None unless `status` is succeeded.
    """

    result: V
    result_omitted: bool = Field(
        default=False,
        description="Of a member in `ctx.gather`: it has a result, and all results that its parent "
        "remembers are too large to hold it. The member's own end has it.",
    )
