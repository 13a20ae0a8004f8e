"""A stranger's module, checked by `mypy --strict` with no settings of ours.

What is right passes, and each line that says `# E: code` is an error of that code, and no other is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy.sources import ROOT
from tidemill.new_module import write_new

pytestmark = pytest.mark.timeout(240)
SECONDS = 200.0  # a machine that builds mypy's cache for pydantic first

HEAD = '''
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypedDict, TypeVar, assert_type

from pydantic import BaseModel

from tidemill import Client, CompletedJob, Context, Job, JobHandle, Request, TypedHandle, job


class Day(BaseModel):
    day: str


class Other(BaseModel):
    n: int = 1


class Sum(BaseModel):
    total: int


@dataclass
class Point:
    x: int


class Shape(TypedDict):
    sides: int


@job("a")
async def coroutine(payload: Day, ctx: Context) -> Sum:
    return Sum(total=1)


@job("b", process=True)
def plain(payload: Day) -> Sum:
    return Sum(total=1)


@job("c")
async def of_dicts(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    return payload


@job("d")
def of_bare_dicts(payload: dict[str, int]) -> int:
    return payload["n"]


@job("e")
def named_context(payload: Point, *, ctx: Context) -> list[str]:
    return []


@job("f")
async def context_first(ctx: Context, payload: Shape) -> str | None:
    return None


@job("g")
async def more(payload: Day | Other, ctx: Context | None = None, retries: int = 3) -> None: ...


Q = ParamSpec("Q")
T = TypeVar("T")


def timed(function: Callable[Q, Awaitable[T]]) -> Callable[Q, Awaitable[T]]:
    return function


@job("h")
@timed
async def decorated(payload: Day, ctx: Context) -> int:
    return 1


class Called:
    def __call__(self, payload: Day, ctx: Context) -> int:
        return 1


def first_given(number: int, payload: Day) -> str:
    return ""


def erased(function: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    return function


@job("k")
@erased
async def of_any_parameters(payload: Day, ctx: Context) -> int:
    return 1


called = job("i")(Called())
partial = job("j")(functools.partial(first_given, 1))
'''

RIGHT = '''
async def right(ctx: Context, client: Client, given: dict[str, Any]) -> None:
    handle = await coroutine.enqueue(Day(day="x"), user_id="u", job_id="j", tags=["a"])
    assert_type(handle, TypedHandle[Sum])
    assert_type(await handle.result(timeout=3), CompletedJob[Sum | None])
    assert_type((await handle.result()).result, Sum | None)
    assert_type(handle.result_sync().result, Sum | None)
    assert_type(client.wait(handle).result, Sum | None)
    assert_type(plain.enqueue_sync(Day(day="x"), user_id="u"), TypedHandle[Sum])
    assert_type(await of_dicts.enqueue({"a": 1}, user_id="u"), TypedHandle[dict[str, Any]])
    assert_type(await of_dicts.enqueue(given, user_id="u"), TypedHandle[dict[str, Any]])
    assert_type(of_bare_dicts.enqueue_sync({"n": 1}, user_id="u"), TypedHandle[int])
    assert_type(named_context.enqueue_sync(Point(1), user_id="u"), TypedHandle[list[str]])
    assert_type(await context_first.enqueue({"sides": 3}, user_id="u"), TypedHandle[str | None])
    assert_type(await more.enqueue(Other(), user_id="u"), TypedHandle[None])
    assert_type(await decorated.enqueue(Day(day=""), user_id="u"), TypedHandle[int])
    assert_type(await called.enqueue(Day(day=""), user_id="u", client=client), TypedHandle[int])
    assert_type(partial.request(Day(day=""), user_id="u", priority="low"), Request)
    # Called as before.
    assert_type(await coroutine(Day(day="x"), ctx), Sum)
    assert_type(await coroutine(payload=Day(day="x"), ctx=ctx), Sum)
    assert_type(plain(Day(day="x")), Sum)
    assert_type(named_context(Point(1), ctx=ctx), list[str])
    assert_type(await context_first(ctx, {"sides": 1}), str | None)
    assert_type(await more(Day(day="x"), retries=2), None)
    assert_type(partial(Day(day="x")), str)
    assert_type(await of_any_parameters(Day(day="x"), ctx), int)
    assert_type(await of_any_parameters.enqueue(Day(day=""), user_id="u"), TypedHandle[int])
    # As types.
    typed: Job[Day, Sum] = coroutine
    also: Job[Day, Sum] = plain
    assert_type(await typed.enqueue(Day(day="x"), user_id="u"), TypedHandle[Sum])
    assert_type(also.type, str)
    # Untyped ones are as they were.
    untyped = client.enqueue("a", user_id="u")
    assert_type(untyped, JobHandle)
    print(client.wait(untyped).result["x"], (await untyped.result()).result["x"])
    ends: list[CompletedJob] = [client.wait(untyped), client.wait(handle)]
    client.enqueue_many([coroutine.request(Day(day="x"), user_id="u")])
'''

WRONG = '''
async def wrong(ctx: Context, handle: TypedHandle[Sum]) -> None:
    await coroutine.enqueue(Other(), user_id="u")  # E: call-overload
    await coroutine.enqueue({"day": "x"}, user_id="u")  # E: call-overload
    await coroutine.enqueue(user_id="u")  # E: call-overload
    await coroutine.enqueue(Day(day="x"))  # E: call-overload
    await coroutine.enqueue(Day(day="x"), user_id=5)  # E: call-overload
    await coroutine.enqueue(Day(day="x"), user_id="u", prio="high")  # E: call-overload
    await coroutine.enqueue(Day(day="x"), user_id="u", priority="urgent")  # E: call-overload
    plain.enqueue_sync("x", user_id="u")  # E: arg-type
    of_bare_dicts.enqueue_sync({"n": "x"}, user_id="u")  # E: dict-item
    await context_first.enqueue({"corners": 3}, user_id="u")  # E: call-overload
    plain.request(Other(), user_id="u")  # E: arg-type
    await coroutine(Other(), ctx)  # E: call-overload
    await coroutine(Day(day="x"))  # E: call-overload
    print((await handle.result()).result.total)  # E: union-attr
    print(handle.result_sync().status.nothing)  # E: attr-defined
    other: Job[Other, Sum] = coroutine  # E: assignment
    result: Job[Day, int] = coroutine  # E: assignment
    number: TypedHandle[int] = handle  # E: assignment
'''


def checked(folder: Path, *files: str) -> subprocess.CompletedProcess[str]:
    """What `mypy --strict` says of a stranger's files."""
    # Kept from one run to the next: pydantic's part takes longer than all else.
    cache = ROOT / ".cache" / "mypy-of-strangers"
    # As a wheel brings it, one package and no other: a checkout's own install is hidden from mypy.
    assert (ROOT / "tidemill" / "py.typed").is_file()
    site = cache / "site"
    site.mkdir(parents=True, exist_ok=True)
    package = site / "tidemill"
    if not package.is_symlink():
        package.symlink_to(ROOT / "tidemill")
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), "--no-pretty",
         "--no-error-summary", *files],
        cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False,
        env={**os.environ, "MYPYPATH": str(site), "COLUMNS": "500"},
    )


def test_mypy_finds_nothing_in_what_new_writes(tmp_path: Path) -> None:
    written = write_new("my_jobs", tmp_path)
    done = checked(tmp_path, *(path.name for path in written if path.suffix == ".py"))
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_mypy_knows_payload_and_result(tmp_path: Path) -> None:
    module = tmp_path / "stranger.py"
    module.write_text(HEAD + RIGHT + WRONG)
    done = checked(tmp_path, module.name)
    told = re.findall(r"^stranger\.py:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    lines = enumerate(module.read_text().splitlines(), 1)
    expected = {(number, code[1]) for number, line in lines
                if (code := re.search(r"# E: ([a-z-]+)$", line))}
    assert {(int(number), code) for number, code in told} == expected, done.stdout + done.stderr
    assert len(expected) == WRONG.count("# E:")
