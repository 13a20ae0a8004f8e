"""Typed calls on real parts: from programs of every kind, and from inside handlers of every kind.

Each case runs in a process of its own, as a user's program, beside a ledger and one worker. The
worker learns its Kafka from its command line alone, so what its handlers ask for finds it there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.forking import COPY
from tests.integration.roles import Roles
from tests.tidy.sources import ROOT

pytestmark = pytest.mark.timeout(300)
SECONDS = 90.0  # far above what any case takes; a hang fails here
EXIT_SECONDS_MAX = 20.0  # of a program that leaves its default client to the end of the process

MODULE = '''
import os
from pydantic import BaseModel
from tidemill import Context, NonRetryable, TypedHandle, job


class Add(BaseModel):
    a: int
    b: int


class Sum(BaseModel):
    total: int
    pid: int


@job("add", timeout_seconds=30)
async def add(payload: Add) -> Sum:
    return Sum(total=payload.a + payload.b, pid=os.getpid())


@job("add.thread", timeout_seconds=30)
def add_in_thread(payload: Add) -> Sum:
    return Sum(total=payload.a + payload.b, pid=os.getpid())


@job("add.process", process=True, timeout_seconds=30)
def add_in_process(payload: Add, ctx: Context) -> Sum:
    return Sum(total=payload.a + payload.b, pid=os.getpid())


@job("ask")
async def ask(payload: Add, ctx: Context) -> Sum:
    handle = await add.enqueue(payload, user_id=ctx.user_id, job_id=f"{ctx.job_id}.mine")
    return (await handle.result(timeout=30)).result


@job("ask.thread")
def ask_in_thread(payload: Add, ctx: Context) -> Sum:
    handle = add.enqueue_sync(payload, user_id=ctx.user_id, job_id=f"{ctx.job_id}.mine")
    return handle.result_sync(timeout=30).result


@job("ask.process", process=True, timeout_seconds=60)
def ask_in_process(payload: Add, ctx: Context) -> Sum:
    handle = add.enqueue_sync(payload, user_id=ctx.user_id, job_id=f"{ctx.job_id}.mine")
    return handle.result_sync(timeout=30).result


@job("ask.and.fail", max_attempts=1)
async def ask_and_fail(payload: Add, ctx: Context) -> None:
    await add.enqueue(payload, user_id=ctx.user_id, job_id=f"{ctx.job_id}.sent")
    ctx.enqueue("add", payload, job_id=f"{ctx.job_id}.child")
    raise NonRetryable("no", code="NO")


@job("odd")
async def odd(payload: Add) -> Sum:
    return {"total": "many", "pid": 1}


@job("fail", max_attempts=1)
async def fail(payload: Add) -> Sum:
    raise NonRetryable("no", code="NO")
'''

HEAD = """
import asyncio, atexit, multiprocessing, os, pickle, sys, threading, time, weakref
from concurrent.futures import ThreadPoolExecutor
import tidemill
from tidemill import *
from typed_calls import *
"""

CASES = {
    "async, sync and each kind of handler": """
async def main():
    for each in (add, add_in_thread, add_in_process):
        handle = await each.enqueue(Add(a=1, b=2), user_id="u1")
        assert isinstance(handle, TypedHandle) and handle.type == each.type
        done = await handle.result(timeout=30)
        assert (done.status, type(done.result), done.result.total) == ("succeeded", Sum, 3), done
    again = [await add.enqueue(Add(a=1, b=1), user_id="u1", job_id="same") for _ in range(3)]
    ends = await asyncio.gather(*(handle.result(timeout=30) for handle in again))
    assert {end.job_id for end in ends} == {"same"}
asyncio.run(main())
for each in (add, add_in_thread, add_in_process):
    assert each.enqueue_sync(Add(a=2, b=2), user_id="u1").result_sync(timeout=30).result.total == 4
with Client() as client:  # `wait` knows the type too
    assert client.wait(add.enqueue_sync(Add(a=2, b=3), user_id="u1"), 30).result.total == 5
    untyped = client.enqueue("add", user_id="u1", payload={"a": 1, "b": 5})
    assert untyped.result_sync(timeout=30).result["total"] == 6
    many = client.enqueue_many(add.request(Add(a=n, b=n), user_id="u1") for n in range(5))
    assert [each.result_sync(timeout=30).result["total"] for each in many] == [0, 2, 4, 6, 8]
""",
    "loops that come and go": """
async def begin():
    return await add.enqueue(Add(a=1, b=2), user_id="u2")
async def end(handle):
    return (await handle.result(timeout=30)).result.total
handles = [asyncio.run(begin()) for _ in range(3)]
assert [asyncio.run(end(handle)) for handle in handles] == [3, 3, 3]
assert [handle.result_sync(timeout=30).result.total for handle in handles] == [3, 3, 3]
async def abandoned():
    asyncio.ensure_future(begin())
    asyncio.ensure_future(end(handles[0]))
    await asyncio.sleep(0)
asyncio.run(abandoned())
async def both():
    return await end(await begin())
with ThreadPoolExecutor(6) as pool:  # several loops at once
    assert list(pool.map(lambda n: asyncio.run(both()), range(18))) == [3] * 18
assert asyncio.run(end(asyncio.run(begin()))) == 3
""",
    "one client a process, for all threads": """
ready = threading.Barrier(8)
def one(n):
    ready.wait()
    return default_client(), add.enqueue_sync(Add(a=n, b=1), user_id=f"u{n}")
with ThreadPoolExecutor(8) as pool:
    made = list(pool.map(one, range(8)))
assert len({id(client) for client, _ in made}) == 1
assert [handle.result_sync(timeout=30).result.total for _, handle in made] == [*range(1, 9)]
first = default_client()
first.close()
assert first.is_closed
assert add.enqueue_sync(Add(a=1, b=1), user_id="u3").result_sync(timeout=30).result.total == 2
assert default_client() is not first
""",
    "a copy of the process": """
parent = default_client()
before = add.enqueue_sync(Add(a=1, b=2), user_id="u4")
def in_copy():
    assert default_client() is not parent
    assert before.result_sync(timeout=30).result.total == 3
    assert add.enqueue_sync(Add(a=1, b=3), user_id="u4").result_sync(timeout=30).result.total == 4
    async def main():
        handle = await add.enqueue(Add(a=1, b=4), user_id="u4")
        return (await handle.result(timeout=30)).result.total
    assert asyncio.run(main()) == 5
pids = [copy(in_copy), copy(in_copy), copy(lambda: None), copy(lambda: join(copy(in_copy)))]
assert add.enqueue_sync(Add(a=1, b=5), user_id="u4").result_sync(timeout=30).result.total == 6
[join(pid) for pid in pids]
assert default_client() is parent
assert before.result_sync(timeout=30).result.total == 3
""",
    "a fork while others send": """
stop, begun = threading.Event(), threading.Barrier(4)
def run(n):
    begun.wait()
    while not stop.is_set():
        asyncio.run(add.enqueue(Add(a=n, b=0), user_id=f"u{n}"))
threads = [threading.Thread(target=run, args=(n,)) for n in range(3)]
[each.start() for each in threads]; begun.wait()
def in_copy():
    assert add.enqueue_sync(Add(a=1, b=3), user_id="u5").result_sync(timeout=60).result.total == 4
pids = [copy(in_copy) for _ in range(3)]
[join(pid) for pid in pids]
stop.set(); [each.join() for each in threads]
""",
    "handles that travel": """
handle = add.enqueue_sync(Add(a=1, b=2), user_id="u6")
there = pickle.loads(pickle.dumps(handle))
assert there == handle and there.result_sync(timeout=30).result == handle.result_sync(30).result
with multiprocessing.get_context("spawn").Pool(1) as pool:
    assert pool.apply(TypedHandle.result_sync, (handle, 30.0)).result.total == 3
    # The job itself travels by its name, and is called there.
    assert pool.apply(add_in_thread, (Add(a=2, b=2),)).total == 4
    assert pool.apply(Job.enqueue_sync, (add, Add(a=2, b=3)), {"user_id": "u6"}).type == "add"
""",
    "another client": """
with Client() as client:
    handle = add.enqueue_sync(Add(a=1, b=2), user_id="u7", client=client)
    assert handle.result_sync(timeout=30).result.total == 3
    async def main():
        async with AsyncClient() as other:
            handle = await add.enqueue(Add(a=1, b=3), user_id="u7", client=other)
            assert (await other.wait(handle, 30)).result.total == 4
            return await handle.result(timeout=30)
    assert asyncio.run(main()).result.total == 4
try:
    handle.result_sync(timeout=1)
except ClientError as error:
    assert "closed" in str(error), error
else:
    raise AssertionError
gone = weakref.ref(client._core)
del client
import gc; gc.collect()
assert gone() is None, "a handle keeps its client alive"
try:
    handle.result_sync(timeout=1)
except ClientError as error:
    assert "is gone" in str(error), error
""",
    "in a handler": """
for number, each in enumerate((ask, ask_in_thread, ask_in_process)):
    done = each.enqueue_sync(
        Add(a=1, b=number), user_id="u8", job_id=f"a{number}").result_sync(timeout=60)
    assert done.status == "succeeded" and done.result.total == 1 + number, done
    again = add.enqueue_sync(Add(a=1, b=number), user_id="u8", job_id=f"a{number}.mine")
    assert again.result_sync(timeout=30).result.total == 1 + number
# What a handler has enqueued by itself is sent, and is nobody's child: the failure takes only the
# child with it.
failed = ask_and_fail.enqueue_sync(Add(a=4, b=4), user_id="u8", job_id="f")
assert failed.result_sync(timeout=30).error.code == "NO"
with Client() as client:
    sent = JobHandle("f.sent", "u8", "add", "", failed.enqueued_at)
    assert client.wait(sent, timeout=30).result["total"] == 8
    child = JobHandle("f.child", "u8", "add", "", failed.enqueued_at)
    try:
        client.wait(child, timeout=0.5)
    except WaitTimeout:
        pass
    else:
        raise AssertionError("the child of a failed job was born")
""",
    "ends that are not as the handler says": """
try:
    odd.enqueue_sync(Add(a=1, b=2), user_id="u9").result_sync(timeout=30)
except ResultMismatch as error:
    assert "field 'result.total'" in str(error), error
    assert error.completed.result == {"total": "many", "pid": 1}
else:
    raise AssertionError
done = fail.enqueue_sync(Add(a=1, b=2), user_id="u9").result_sync(timeout=30)
assert (done.status, done.result, done.error.code) == ("failed", None, "NO")
for wrong in ({"a": 1}, Sum(total=1, pid=1), {"a": "x", "b": 1}):
    try:
        add.enqueue_sync(wrong, user_id="u9")
    except InvalidRequest as error:
        assert "field 'payload" in str(error)
    else:
        raise AssertionError(wrong)
""",
}


@pytest.fixture(scope="module")
def served(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the handlers, with a ledger and a worker that serves them."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "typed_calls.py").write_text(MODULE)
    env = environment(kafka)
    with ExitStack() as ending:
        roles = Roles(folder, env, ending, command_seconds=SECONDS)
        applied = roles.tidemill("topics", "apply")
        assert applied.returncode == 0, applied.stderr
        roles.begin("ledger", "ledger")
        bare = {name: value for name, value in env.items() if name not in SETTINGS}
        roles.env = bare
        roles.begin(
            "worker", "worker", "typed_calls.py", "--kafka", kafka,
            "--topic-prefix", SETTINGS["TIDEMILL_TOPIC_PREFIX"],
        )
        yield folder


SETTINGS = {"TIDEMILL_KAFKA": "", "TIDEMILL_TOPIC_PREFIX": "typed-calls."}


def environment(kafka: str) -> dict[str, str]:
    return {**os.environ, **SETTINGS, "TIDEMILL_KAFKA": kafka, "TIDEMILL_NATIVE": "0",
            "PYTHONPATH": str(ROOT)}


def run(text: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A program of a user's, with a main module that others can import."""
    script = folder / f"case_{abs(hash(text))}.py"
    script.write_text(f"{COPY}{HEAD}\nif __name__ == '__main__':\n" + "".join(
        f"    {line}\n" for line in text.strip().splitlines()
    ))
    return subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=env, capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )


@pytest.mark.parametrize("name", CASES)
def test_a_program_that_calls_typed(name: str, served: Path, kafka: str) -> None:
    begun = time.monotonic()
    done = run(CASES[name], served, environment(kafka))
    logs = "".join(path.read_text()[-3_000:] for path in served.glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    assert time.monotonic() - begun < SECONDS


INTERRUPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell starts us aside
caught = threading.Event()
def interrupt():
    while not caught.wait(1.0):
        os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
"""

UNREACHABLE = {
    "never used": "",
    "made and not used": "default_client()",
    "interrupted": INTERRUPT + """try:
    add.enqueue_sync(Add(a=1, b=2), user_id="u")
except KeyboardInterrupt:
    caught.set()
    sys.exit(0)
""",
    "interrupted among many": INTERRUPT + """def send(n):
    asyncio.run(add.enqueue(Add(a=n, b=2), user_id=f"u{n}"))
threads = [threading.Thread(target=send, args=(n,), daemon=True) for n in range(30)]
[each.start() for each in threads]
try:
    [each.join() for each in threads]
except KeyboardInterrupt:
    caught.set()
    sys.exit(0)
""",
    "cancelled": """
async def main():
    async with asyncio.timeout(0.5):
        await add.enqueue(Add(a=1, b=2), user_id="u")
try:
    asyncio.run(main())
except TimeoutError:
    sys.exit(0)
""",
    "refused before a broker is asked": """
try:
    add.enqueue_sync({"a": 1}, user_id="u")
except InvalidRequest as error:
    assert "payload.b" in str(error)
    sys.exit(0)
""",
}


@pytest.mark.parametrize("name", UNREACHABLE)
def test_a_process_ends_soon_whatever_became_of_its_client(name: str, tmp_path: Path) -> None:
    (tmp_path / "typed_calls.py").write_text(MODULE)
    begun = time.monotonic()
    done = run(UNREACHABLE[name] or "pass", tmp_path, environment("127.0.0.1:1"))
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < EXIT_SECONDS_MAX


def test_a_module_of_handlers_loads_no_kafka_client(tmp_path: Path) -> None:
    (tmp_path / "typed_calls.py").write_text(MODULE)
    done = subprocess.run(
        [sys.executable, "-c", "import sys, typed_calls as t\n"
         "t.add.request(t.Add(a=1, b=2), user_id='u')\n"
         "print(sorted({name.split('.')[0] for name in sys.modules} "
         "& {'confluent_kafka', 'aiokafka', 'faust'}))"],
        cwd=tmp_path, env=environment("127.0.0.1:1"), capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
