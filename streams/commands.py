"""What may be asked of the core, one class a question, imperative.

Owns the arguments of `decisions.decide`. Refuses to know where a command came from: a record, a
timer and a silent worker all end up here. Nobody changes a command; they are not frozen only
because making a frozen one costs four times as much, and there are three of them a job. Those that
every job needs are plain classes: of a dataclass only the fields are compiled, not the making.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tidemill.schemas.codec import Decoded, Refusal
from tidemill.schemas.words import Reason
from tidemill.streams.job import JobKey, Worker
from tidemill.streams.job_type import JobType
from tidemill.streams.policies.base import Verdict
from tidemill.streams.store.finished import Ended

Cause = tuple[str, int, int]
"""(topic, partition, offset) of the input that led here."""


class Submit:
    """Accept a request. `job_id` is the request's own or the one derived from its origin."""

    __slots__ = ("cause", "decoded", "ended", "job_id", "row_key", "said")

    def __init__(
        self,
        decoded: Decoded,
        job_id: str,
        cause: Cause | None,  # None: a schedule's tick
        row_key: bytes | None = None,
        ended: Ended | None = None,
        said: dict[str, Verdict] | None = None,
    ) -> None:
        self.decoded = decoded
        self.job_id = job_id
        self.cause = cause
        self.row_key = row_key  # of the job's state row, when it has been made already
        self.ended = ended  # what is remembered of the job, when it has ended
        self.said = said  # by id, answers of policies that need not be asked


@dataclass(slots=True)
class Refuse:
    """End a job whose request cannot be taken, so that its owner learns why."""

    refusal: Refusal
    user_id: str
    job_id: str
    cause: Cause


@dataclass(slots=True)
class Resolve:
    """The type of a deferred job became known, or did not in time (None)."""

    job_type: JobType | None


@dataclass(slots=True)
class Dispatch:
    """A slot is free for this job."""


class Obey:
    """A policy has said of a waiting job that it waits for something else, or that it ends."""

    __slots__ = ("verdict",)

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


@dataclass(slots=True)
class Rescue:
    """The attempt's worker is gone, or its dispatch never reached one. `detail`: how it ended."""

    reason: Reason
    detail: str | None = None


class Report:
    """A worker says what became of an attempt: the dict of a `tidemill.schemas.wire.Outcome`."""

    __slots__ = ("cause", "outcome", "worker")

    def __init__(self, outcome: dict[str, Any], worker: Worker, cause: Cause) -> None:
        self.outcome = outcome
        self.worker = worker
        self.cause = cause


@dataclass(slots=True)
class Cancel:
    """Somebody wants the job to end, whether or not anybody has asked for it yet."""

    key: JobKey
    actor: str | None
    reason: str | None
    cause: Cause | None  # None: a later tick of its schedule


@dataclass(slots=True)
class Redrive:
    """Somebody wants a failed job to run again."""

    key: JobKey
    actor: str | None
    reason: str | None
    cause: Cause


@dataclass(slots=True)
class Signal:
    """Somebody has a value for the handler that waits by that name, or will wait."""

    key: JobKey
    name: str
    value: bytes  # JSON text
    actor: str | None
    cause: Cause


@dataclass(slots=True)
class Resume:
    """The instant is there for which an awaiting job sleeps, or until which it waits at most."""


@dataclass(slots=True)
class Gathered:
    """All members of that gather are known ended, for which an awaiting job waits."""

    name: str


@dataclass(slots=True)
class Tell:
    """How far a job is that waits for members."""

    data: dict[str, Any]


@dataclass(slots=True)
class Forget:
    """A kept cancel or signal goes, for `reason`: nobody asked for it in time, or too many are
    kept."""

    reason: Reason
    cause: Cause
    data: dict[str, Any] | None = None  # of what is forgotten, for readers


CoreCommand = (
    Submit | Refuse | Resolve | Dispatch | Obey | Rescue | Report | Cancel | Redrive | Forget
    | Resume | Signal | Gathered | Tell
)
