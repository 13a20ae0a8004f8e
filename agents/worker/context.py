"""What a handler sees of the attempt that it runs in.

Owns the handler's side: who and which attempt, progress, the word to stop, children. Refuses to
know where the handler runs: the same class serves the loop, a thread and a child process.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import orjson
import structlog
from pydantic import BaseModel

from tidemill.agents.worker.durations import Duration
from tidemill.agents.worker.gathering import Gather
from tidemill.agents.worker.requests import Request
from tidemill.agents.worker.suspending import Keep, Suspending
from tidemill.schemas.doors import Refused, encode_request
from tidemill.schemas.requests import ID_LENGTH_MAX, RESULT_BYTES_MAX

STAGE_LENGTH_MAX: Final = 128  # characters
MESSAGE_LENGTH_MAX: Final = 500  # characters
CHILDREN_MAX: Final = 1_000  # requests of one attempt; they travel in one outcome
CHILD_DIGEST_BYTES: Final = 8  # of a parent's id that is too long to stand in a child's


def valid_text(text: str) -> str:
    """Without what UTF-8 cannot hold, such as half a pair from a file's name."""
    return text.encode("utf-8", "replace").decode()


class Context:
    """One attempt, seen from inside. Passed to a handler as its second argument."""

    __slots__ = (
        "_children", "_children_bytes", "_job", "_log", "_on_progress", "_pid", "_saw_cancel",
        "_signal", "_suspending",
    )

    def __init__(
        self,
        job: Mapping[str, Any],
        signal: Signal,
        on_progress: Callable[[dict[str, Any]], None],
        keep: Keep | None = None,
    ) -> None:
        self._job = job
        self._signal = signal
        self._on_progress = on_progress
        self._children: list[dict[str, Any]] | None = None
        self._children_bytes = 0
        self._pid = os.getpid()
        self._log: Any = None
        self._saw_cancel = False
        self._suspending = Suspending(job.get("memory"), keep)

    @property
    def job_id(self) -> str:
        return str(self._job["job_id"])

    @property
    def user_id(self) -> str:
        return str(self._job["user_id"])

    @property
    def type(self) -> str:
        return str(self._job["type"])

    @property
    def attempt(self) -> int:
        """1 for the first."""
        return int(self._job["attempt"])

    @property
    def max_attempts(self) -> int:
        return int(self._job["max_attempts"])

    @property
    def run(self) -> int:
        """1 for the first; a redrive of an ended job is a new run."""
        return int(self._job["run"])

    @property
    def idempotency_key(self) -> str:
        """The same in every attempt and every run of this job, and of no other job.

        Give it to whatever has side effects: a handler may run more than once. Add `run` to it
        when a redrive is meant to act again.
        """
        return f"{self.user_id}/{self.job_id}"

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context that came with the request; None when there was none."""
        value = self._job.get("traceparent")
        return None if value is None else str(value)

    @property
    def cancelled(self) -> bool:
        """True when somebody asked to stop: clean up and return soon.

        A handler that saw True and returns ends as cancelled; its result is dropped.
        """
        self._refuse_in_copy()
        if self._signal.is_set:
            self._saw_cancel = True
        return self._signal.is_set

    @property
    def log(self) -> Any:
        """A structlog logger that carries the job's ids."""
        if self._log is None:
            self._log = structlog.get_logger("tidemill.job").bind(
                job_id=self.job_id, user_id=self.user_id, type=self.type, attempt=self.attempt
            )
        return self._log

    def progress(
        self, percent: float, *, stage: str | None = None, message: str | None = None
    ) -> None:
        """Tell how far the work is. Cheap: call it as often as you like, the latest wins."""
        self._refuse_in_copy()
        value = float(percent)
        if math.isnan(value):
            raise ValueError("percent must be a number from 0 to 100, not NaN")
        told: dict[str, Any] = {"percent": min(100.0, max(0.0, value))}
        if stage is not None:
            told["stage"] = valid_text(str(stage))[:STAGE_LENGTH_MAX]
        if message is not None:
            told["message"] = valid_text(str(message))[:MESSAGE_LENGTH_MAX]
        self._on_progress(told)

    def step(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)`, once: a later attempt of this job gets the stored result.

        In an `async def` handler it is awaited, and a plain function runs on a thread; elsewhere it
        returns the value. The result is durable when the call returns: JSON of at most 256 KiB,
        else the job fails as STEP_TOO_LARGE. A stored result comes back as plain JSON values. The
        function may run again when its worker is lost before: give it `step_key(name)`.
        """
        self._refuse_in_copy()
        return self._suspending.step(name, function, args)

    def sleep(self, name: str, duration: Duration) -> Any:
        """Wait without a slot: the attempt ends, and the handler runs anew when the time is over.

        `duration`: "10min", seconds or a timedelta, at most 366 days, from the first call on. What
        the handler did before comes back from its steps. Awaited in an `async def` handler. The
        exception that ends the attempt is a BaseException: let it pass.
        """
        self._refuse_in_copy()
        return self._suspending.sleep(name, duration)

    def gather(
        self,
        name: str,
        requests: Iterable[Request],
        parallel: int | None = None,
        tolerate: int | str | None = None,
    ) -> Any:
        """Ask for these jobs and wait for all of them, without a slot: a list of `CompletedJob`, in
        the order of the requests. Awaited in an `async def` handler.

        `requests`: `tidemill.Request`, or what `job.request(…)` makes; at most 20,000, and 16 MiB.
        Without `job_id` a member is named after its parent, this gather and its place. The first
        list given to a name counts: a later attempt gets its ends, whatever it asks for.
        `parallel`: how many are asked for at a time, None: all. `tolerate`: how many may fail, be
        cancelled or expire, 5 or "20%"; None: none. Beyond it raises MembersFailed, which names
        them and is final when it is not caught. Raises ValueError that names `requests[i].field`.
        """
        self._refuse_in_copy()
        return self._suspending.gather(Gather(name, requests, parallel, tolerate, self.user_id))

    def wait(self, name: str, model: Any = None, *, timeout: Duration | None = None) -> Any:
        """Wait without a slot for a signal: its value, read as `model`.

        `model`: a pydantic model, a dataclass or any type that pydantic reads; None: plain JSON.
        `timeout`: "24h", seconds or a timedelta, at most 366 days, from the first call on; None:
        for ever. The first signal of a name counts; one that came before the call is there at once.
        Awaited in an `async def` handler. Raises SignalTimeout, which is final when it is not
        caught. A value that does not fit fails the job as INVALID_SIGNAL.
        """
        self._refuse_in_copy()
        return self._suspending.wait(name, model, timeout)

    def step_key(self, name: str) -> str:
        """The idempotency key of one step: the same in every attempt and every run of this job."""
        return f"{self.idempotency_key}/{name}"

    def enqueue(
        self,
        type: str,
        payload: Mapping[str, Any] | BaseModel | None = None,
        *,
        user_id: str | None = None,
        job_id: str | None = None,
        queue: str | None = None,
        priority: str | None = None,
        run_at: datetime | int | str | None = None,
        expires_at: datetime | int | str | None = None,
        unique_key: str | None = None,
        max_attempts: int | None = None,
        timeout_seconds: float | None = None,
        source: str | None = None,
        tags: Sequence[str] = (),
        batch_id: str | None = None,
    ) -> str:
        """Ask for a job that is born when this one succeeds, in the same transaction; its job_id.

        `payload` is a dict, a pydantic model or a dataclass, as its handler takes it back.
        Without `job_id` the child is named after its parent and its place, so that another attempt
        asks for the same children. Raises ValueError that names the field which is wrong.
        """
        self._refuse_in_copy()
        self._suspending.refuse_in_step()
        children = self._children if self._children is not None else []
        if len(children) >= CHILDREN_MAX:
            raise ValueError(
                f"one attempt may ask for {CHILDREN_MAX} jobs; let a child ask for the others"
            )
        given: dict[str, Any] = {
            "type": type,
            "user_id": self.user_id if user_id is None else user_id,
            "job_id": self._child_id(len(children)) if job_id is None else job_id,
            "payload": payload,
            "queue": queue,
            "priority": priority,
            "run_at": run_at,
            "expires_at": expires_at,
            "unique_key": unique_key,
            "max_attempts": max_attempts,
            "timeout_seconds": timeout_seconds,
            "source": source,
            "tags": tags if tags != () else None,
            "batch_id": batch_id,
            "parent_job_id": self.job_id,
        }
        child = _checked_child({k: v for k, v in given.items() if v is not None})
        self._children_bytes += len(child)
        if self._children_bytes > RESULT_BYTES_MAX:
            self._children_bytes -= len(child)
            raise ValueError(
                f"enqueue: field 'payload': with this one the jobs of this attempt have "
                f"{self._children_bytes + len(child)} bytes, at most {RESULT_BYTES_MAX} are taken; "
                "store the data elsewhere and send a reference, or let a child ask for the others"
            )
        children.append(orjson.loads(child))
        self._children = children
        return str(given["job_id"])

    def _refuse_in_copy(self) -> None:
        """What is said in a process that the handler forked would reach nobody."""
        if os.getpid() != self._pid:
            raise RuntimeError(
                "this process is a copy that the handler forked: nobody hears what its context "
                "says here; return it to the handler, or use a tidemill.Client of its own"
            )

    def _child_id(self, index: int) -> str:
        name = f"{self.job_id}.{self.run}.{index}"
        if len(name) <= ID_LENGTH_MAX:
            return name
        digest = hashlib.blake2b(self.job_id.encode(), digest_size=CHILD_DIGEST_BYTES).hexdigest()
        return f"{digest}.{self.run}.{index}"


class Signal:
    """The word to stop, set by the worker and read by the handler."""

    __slots__ = ("is_set",)

    def __init__(self) -> None:
        self.is_set = False


def children_of(context: Context | None) -> list[dict[str, Any]] | None:
    """What the handler asked for; None when nothing."""
    return None if context is None else context._children


def suspending_of(context: Context | None) -> Suspending | None:
    """What the handler has waited for and remembered; None: it has no context."""
    return None if context is None else context._suspending


def has_seen_cancel(context: Context | None) -> bool:
    """Whether the handler read `cancelled` as True."""
    return context is not None and context._saw_cancel


def _checked_child(given: dict[str, Any]) -> bytes:
    """What travels is what was checked: later changes by the handler do not count."""
    try:
        return encode_request(given)
    except Refused as error:
        raise ValueError(f"enqueue: {error}") from None
