"""Copies of a process that has clients: each is safe to use, and none waits without a bound.

Each case runs in a process of its own, which forks while its client has threads and connections.
No broker is there: what the copy does must end by the client's own bound, and the copy must end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0  # far above what any case takes; a hang fails here

HEAD = """
import asyncio, os, sys, threading, time
from tidemill.client import AsyncClient, Client, JobHandle, Request
from tidemill.requests import ClientError, JobIds

def handle(number):
    return JobHandle(str(number), "u", "t", "jobs.requested", 1)

client = Client("127.0.0.1:1", timeout_seconds=0.3)
asynchronous = AsyncClient("127.0.0.1:1", timeout_seconds=0.3)

def fails(call):
    try:
        call()
    except (ClientError, TimeoutError):
        return
    raise AssertionError("it did not fail")

def use(client):
    fails(lambda: client.enqueue("t", user_id="u"))
    fails(lambda: client.enqueue_many([Request(type="t", user_id="u")]))
    fails(lambda: client.wait(handle(1), timeout=0.1))
    fails(lambda: client.cancel("u", "j"))
    client.close()

async def use_async(client):
    for call in (
        client.enqueue("t", user_id="u"), client.wait(handle(1), timeout=0.1),
        client.enqueue_many([Request(type="t", user_id="u")]),
    ):
        try:
            await call
        except (ClientError, TimeoutError):
            continue
        raise AssertionError("it did not fail")
    await client.close()

def begin(call):
    thread = threading.Thread(target=lambda: fails(call), daemon=True)
    thread.start()
    return thread

def in_copy(call):
    if (pid := os.fork()) == 0:
        try:
            call()
            code = 0
        except SystemExit:
            raise  # of a copy of this copy
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        sys.exit(code)  # not os._exit: the interpreter frees what it has
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""

CASES = {
    "unused": "in_copy(lambda: use(client)); use(client)",
    "used": "use2 = fails(lambda: client.enqueue('t', user_id='u')); "
            "in_copy(lambda: use(client)); use(client)",
    "in use": "threads = [begin(lambda: client.enqueue('t', user_id='u')), "
              "begin(lambda: client.wait(handle(2), timeout=1)), "
              "begin(lambda: client.enqueue_many([Request(type='t', user_id='u')]))]\n"
              "while client._core._sender._single is None or client._core._sender._bulk is None "
              "or client._core._completions._thread is None: time.sleep(0.01)\n"
              "in_copy(lambda: use(client))\n"
              "[thread.join() for thread in threads]; use(client)",
    "while a lock is held": "locks = (client._core._sender._lock, client._core._ids._lock, "
                            "client._core._sender._bulk_lock, client._core._completions._lock)\n"
                            "[lock.acquire() for lock in locks]\n"
                            "in_copy(lambda: use(client))",
    "not touched in the copy": "fails(lambda: client.enqueue('t', user_id='u')); "
                               "in_copy(lambda: None); use(client)",
    "copy of a copy": "fails(lambda: client.enqueue('t', user_id='u')); "
                      "in_copy(lambda: (fails(lambda: client.enqueue('t', user_id='u')), "
                      "in_copy(lambda: use(client))))",
    "closed": "client.close(); in_copy(lambda: fails(lambda: client.enqueue('t', user_id='u')))",
    "asynchronous":
                    "in_copy(lambda: asyncio.run(use_async(asynchronous)))\n"
                    "asyncio.run(use_async(asynchronous))",
    "ids": "ids = JobIds(); ids.next()\n"
           "read, write = os.pipe()\n"
           "in_copy(lambda: os.write(write, '\\n'.join(ids.next() for _ in range(500)).encode()))\n"
           "mine = {ids.next() for _ in range(500)}\n"
           "theirs = set(os.read(read, 1 << 16).decode().split())\n"
           "assert len(theirs) == 500 and not mine & theirs",
}


@pytest.fixture(scope="module")
def started() -> dict[str, subprocess.Popen[str]]:
    """All at once: they mostly wait."""
    return {
        name: subprocess.Popen(
            [sys.executable, "-c", HEAD + case], cwd=ROOT, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={**os.environ, "TIDEMILL_NATIVE": "0"},
        )
        for name, case in CASES.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_a_copy_of_a_client_is_safe_to_use(
    name: str, started: dict[str, subprocess.Popen[str]]
) -> None:
    process = started[name]
    try:
        told, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, told[-3_000:]
