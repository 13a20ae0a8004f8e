"""Handlers that do to their process what users' code does: fork, read stdin, change what is global.

Each returns what it saw; the tests look at the worker afterwards.
"""

from __future__ import annotations

import asyncio
import ctypes
import decimal
import locale
import logging
import logging.config
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from pydantic import BaseModel, Field

from tests.unit.freezing import Freezer
from tidemill import Context, NonRetryable, job

OUTSIDE_SECONDS = 600.0  # longer than any test
JOIN_SECONDS = 20.0

# What a module may do while it is imported.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
logging.basicConfig(force=True, level=logging.CRITICAL)
socket.setdefaulttimeout(5.0)
sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives


class Order(BaseModel):
    order_id: str = Field(alias="orderId")


def idle() -> None:
    time.sleep(OUTSIDE_SECONDS)


def by_multiprocessing() -> int | None:
    helper = multiprocessing.get_context("fork").Process(target=idle)
    helper.start()
    helper.terminate()
    helper.join(JOIN_SECONDS)
    return helper.exitcode


def by_os_fork() -> int | None:
    pid = os.fork()
    if pid == 0:
        idle()
    os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def by_preexec() -> int | None:
    helper = subprocess.Popen(["sleep", "600"], preexec_fn=lambda: None)
    helper.terminate()
    return helper.wait(JOIN_SECONDS)


def by_popen() -> int | None:
    helper = subprocess.Popen(["sleep", "600"])
    helper.terminate()
    return helper.wait(JOIN_SECONDS)


def by_interrupt() -> int | None:
    helper = subprocess.Popen(["sleep", "600"])
    helper.send_signal(signal.SIGINT)
    return helper.wait(JOIN_SECONDS)


FORKS: dict[str, Callable[[], int | None]] = {
    "multiprocessing": by_multiprocessing, "fork": by_os_fork, "preexec": by_preexec,
    "popen": by_popen, "interrupt": by_interrupt,
}


@job("fork.thread")
def fork_in_thread(payload: dict[str, str]) -> int | None:
    return FORKS[payload["how"]]()


@job("fork.async")
async def fork_on_loop(payload: dict[str, str]) -> int | None:
    return FORKS[payload["how"]]()


@job("fork.process", queue="heavy", process=True)
def fork_in_process(payload: dict[str, str]) -> int | None:
    return FORKS[payload["how"]]()


def copy_of(how: str, context: Context) -> None:
    """In a copy: what it says of its context, by its exit code, or out of the handler."""
    try:
        if how == "enqueue":
            context.enqueue("t")
        elif how == "progress":
            context.progress(5)
        elif how == "raise":
            raise ValueError("the copy comes back")
        elif how == "exit":
            sys.exit(7)
    except RuntimeError:
        os._exit(9)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@job("copy.thread")
def copy_in_thread(payload: dict[str, str], ctx: Context) -> int:
    if (pid := os.fork()) == 0:
        copy_of(payload["how"], ctx)
        return 0
    return ended(pid)


@job("copy.async")
async def copy_on_loop(payload: dict[str, str], ctx: Context) -> int:
    if (pid := os.fork()) == 0:
        copy_of(payload["how"], ctx)
        await asyncio.sleep(0)
        return 0
    return ended(pid)


@job("copy.task")
async def copy_in_task(payload: dict[str, str], ctx: Context) -> int:
    async def fork() -> int:
        if (pid := os.fork()) == 0:
            copy_of(payload["how"], ctx)
            await asyncio.sleep(0)
            await asyncio.sleep(OUTSIDE_SECONDS)
        return ended(pid)

    return await asyncio.create_task(fork())


def read_stdin() -> object:
    return subprocess.run(["cat"], capture_output=True, timeout=JOIN_SECONDS).stdout.decode()


def open_files() -> object:
    """Descriptors that a program inherits although nobody passes them."""
    folder = Path("/proc/self/fd")
    kept = [fd for fd in folder.iterdir() if fd.exists() and os.get_inheritable(int(fd.name))]
    return sorted(int(fd.name) for fd in kept if int(fd.name) > 2)


def change_folder() -> object:
    os.chdir("/")
    return os.getcwd()


def silence_logging() -> object:
    logging.disable(logging.CRITICAL)
    logging.config.dictConfig({"version": 1, "root": {"level": "CRITICAL", "handlers": []}})
    return "silent"


def double_logging() -> object:
    logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))
    return "doubled"


def take_signals() -> object:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return "taken"


def change_others() -> object:
    locale.setlocale(locale.LC_ALL, "C")
    os.umask(0o777)
    random.seed(5)
    warnings.simplefilter("error")
    os.environ.clear()
    sys.path.clear()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.close(1)
    asyncio.set_event_loop_policy(None)
    return asyncio.run(asyncio.sleep(0, "changed"))


def freeze_time() -> object:
    Freezer().freeze()
    return time.time()


def break_logging() -> object:
    def needs_a_request(*words: Any, **more: Any) -> Any:
        raise LookupError("no request is served now")

    logging.setLogRecordFactory(needs_a_request)
    logging.getLogger("aiokafka").addFilter(needs_a_request)
    return "broken"


def throw_at_threads() -> object:
    """As tools do that end threads from outside."""
    others = [each.ident for each in threading.enumerate() if each is not threading.main_thread()]
    for ident in others:
        if ident is not None and ident != threading.get_ident():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(ident), ctypes.py_object(SystemExit)
            )
    return "thrown"


def use_processes_on_a_loop() -> object:
    async def run() -> int:
        helper = await asyncio.create_subprocess_exec("true")
        return await helper.wait()

    return asyncio.run(run())


CHANGES: dict[str, Callable[[], object]] = {
    each.__name__: each for each in (
        read_stdin, open_files, change_folder, silence_logging, double_logging, change_others,
        use_processes_on_a_loop, freeze_time, break_logging, throw_at_threads,
    )
}


@job("change.thread")
def change_in_thread(payload: dict[str, str]) -> object:
    return CHANGES[payload["how"]]()


@job("change.process", queue="heavy", process=True)
def change_in_process(payload: dict[str, str]) -> object:
    return CHANGES[payload["how"]]()


@job("signals.async")
async def signals_on_loop(payload: dict[str, str]) -> object:
    return take_signals()


@job("fault")
async def fault(payload: dict[str, str]) -> None:
    raise ValueError(f"seen in the log {payload['word']}")


@job("group")
async def group(payload: dict[str, Any]) -> None:
    async def give_up() -> None:
        raise NonRetryable("no such card", code="CARD_UNKNOWN")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(give_up())


@job("travel")
def travel(payload: Order, context: Optional[Context] = None) -> dict[str, Any]:  # noqa: UP045
    assert context is not None
    context.enqueue("travel", payload)
    return {"order": payload, "price": decimal.Decimal("1.50"), "seen": {b"x"}}
