"""What type checkers know of `@job`: which payload and which result a decorated function has.

Owns the types. Refuses to do anything at run time: there, all of this is `tidemill.typed_jobs.Job`.

Why they are so: one signature that binds the payload, the parameters and what a call gives stays
exact where a handler's own types have `Any` in them, such as `dict[str, Any]`. Checkers give up on
overloads there. So only `enqueue` tells coroutines from plain results.

A handler that takes its payload by keyword alone has no type here: put it first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    overload,
    runtime_checkable,
)

from tidemill.agents.worker.context import Context
from tidemill.requests import Request
from tidemill.typed_jobs import EnqueueOptions

if TYPE_CHECKING:
    from tidemill.client import AsyncClient, Client
    from tidemill.handles import TypedHandle

A = TypeVar("A")
R = TypeVar("R")
P_contra = TypeVar("P_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)
Y = ParamSpec("Y")


@runtime_checkable
class Job(Protocol[P_contra, R_co]):
    """A job type with its handler: what its payload is, and what the handler returns.

    `@job` makes it. It is called as the function was. The methods ask for jobs; in a handler, too,
    they send at once and to nobody's child.
    """

    @property
    def type(self) -> str:
        """The job type."""

    def request(self, payload: P_contra, **options: Unpack[EnqueueOptions]) -> Request:
        """A request for `Client.enqueue_many`, its payload checked. Raises InvalidRequest."""

    async def enqueue(
        self,
        payload: P_contra,
        *,
        client: Client | AsyncClient | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> TypedHandle[R_co]:
        """Ask for one job; returns once Kafka has it. Raises InvalidRequest, EnqueueFailed."""

    def enqueue_sync(
        self,
        payload: P_contra,
        *,
        client: Client | AsyncClient | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> TypedHandle[R_co]:
        """As `enqueue`, for programs without an event loop."""


class FunctionJob(Generic[P_contra, Y, T_co]):
    """A `Job` that may be called as its function.

    `P_contra` is the payload, `Y` are the function's parameters, `T_co` is what a call gives: for
    `async def` a coroutine.
    """

    if TYPE_CHECKING:
        __name__: str
        __qualname__: str
        __wrapped__: Callable[..., T_co]

        @property
        def type(self) -> str: ...

        def request(self, payload: P_contra, **options: Unpack[EnqueueOptions]) -> Request: ...

        @overload
        async def enqueue(
            self: FunctionJob[P_contra, Y, Awaitable[R]],
            payload: P_contra,
            *,
            client: Client | AsyncClient | None = None,
            **options: Unpack[EnqueueOptions],
        ) -> TypedHandle[R]: ...

        @overload
        async def enqueue(
            self: FunctionJob[P_contra, Y, R],
            payload: P_contra,
            *,
            client: Client | AsyncClient | None = None,
            **options: Unpack[EnqueueOptions],
        ) -> TypedHandle[R]: ...

        async def enqueue(self, *args: Any, **options: Any) -> Any: ...

        @overload
        def enqueue_sync(
            self: FunctionJob[P_contra, Y, Awaitable[R]],
            payload: P_contra,
            *,
            client: Client | AsyncClient | None = None,
            **options: Unpack[EnqueueOptions],
        ) -> TypedHandle[R]: ...

        @overload
        def enqueue_sync(
            self: FunctionJob[P_contra, Y, R],
            payload: P_contra,
            *,
            client: Client | AsyncClient | None = None,
            **options: Unpack[EnqueueOptions],
        ) -> TypedHandle[R]: ...

        def enqueue_sync(self, *args: Any, **options: Any) -> Any: ...

        @overload
        def __call__(self, *args: Y.args, **kwargs: Y.kwargs) -> T_co: ...

        # By keywords alone: the type of a call does not know the payload's own name.
        @overload
        def __call__(self, **kwargs: Any) -> T_co: ...

        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class JobDecorator(Protocol):
    """What `job(type, …)` returns. The payload comes first, or right after the context."""

    # A callable whose parameters are not known fits this one too, so its calls are not checked.
    @overload
    def __call__(
        self, function: Callable[Concatenate[Context, A, Y], R], /
    ) -> FunctionJob[A, ..., R]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[A, Y], R], /
    ) -> FunctionJob[A, Concatenate[A, Y], R]: ...
