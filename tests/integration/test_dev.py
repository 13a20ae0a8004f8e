"""`tidemill dev` as a user runs it: one command, a job, SQL, deaths, stops, and a second start.

Owns the proof that the stack as a whole starts, keeps itself alive and ends without a trace.
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import psutil
import pytest

from tests.waiting import wait_until
from tidemill import Client, Request
from tidemill.agents import exit_codes
from tidemill.agents.embedded.ports import free_port
from tidemill.agents.sink.main import NICENESS
from tidemill.agents.supervisor import BACKOFF_SECONDS, ChildProcess, Supervisor
from tidemill.sql import SqlError, query_rows

START_SECONDS = 90.0
SECONDS = 60.0
STOP_SECONDS = 10.0  # what the interface promises
READY = re.compile(r"^ready kafka=(127\.0\.0\.1:\d+) clickhouse=(http://\S+) http=(http://\S+)$")
JOBS = """
import pathlib
import time
from pydantic import BaseModel
from tidemill import Context, job

class Greeting(BaseModel):
    name: str

@job("greet", queue="default", max_attempts=3, timeout_seconds=30)
async def greet(payload: Greeting, ctx: Context) -> dict:
    return {"hello": payload.name}

@job("slow")
def slow(payload: dict) -> dict:
    time.sleep(payload["seconds"])
    return {"slept": payload["seconds"]}

@job("hold", process=True)
def hold(payload: dict) -> None:
    while not pathlib.Path(payload["until"]).exists():
        time.sleep(0.05)
"""

RELAY = """
@job("relay", timeout_seconds=30)
async def relay(payload: Greeting) -> dict:
    handle = await greet.enqueue(payload, user_id="u1")
    return (await handle.result(timeout=20)).result
"""

ODD_FOLDER = "-R&D, M\u00fcller's \"50%20\" #1? a\\b ${x} \U0001f600\nzwei"

pytestmark = pytest.mark.timeout(300)


class Dev:
    """One run of the command, with its lines."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._log = (folder / "dev.log").open("a+")
        self.log = folder / "dev.log"
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tidemill", "dev", *words],
            cwd=folder, stdout=subprocess.PIPE, stderr=self._log, text=True,
            # The barest of locales: names of folders and lines of jobs must not depend on it.
            env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}, umask=0o002,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        self.lines.extend(line.rstrip("\n") for line in self.popen.stdout)

    def wait_ready(self) -> tuple[str, str, str]:
        wait_until(
            lambda: self._stdout() or self.popen.poll() is not None, START_SECONDS, self.told
        )
        match = READY.match(self._stdout() or "")
        assert match is not None, self.told()
        return match[1], match[2], match[3]

    def _stdout(self) -> str | None:
        return self.lines[0] if self.lines else None

    def told(self) -> str:
        """What it wrote to stderr."""
        return self.log.read_text(errors="replace")

    def child(self, *words: str) -> psutil.Process:
        """The process of a role, by words of its command line."""
        for process in psutil.Process(self.popen.pid).children():
            try:
                if all(word in process.cmdline() for word in words):
                    return process
            except psutil.Error:
                # It ended while we looked, such as one that this test has just killed.
                continue
        raise AssertionError(f"no child with {words}")

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.popen.pid).children(recursive=True)

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Stop it; seconds until it had ended."""
        begun = time.monotonic()
        self.popen.send_signal(number)
        self.popen.wait(SECONDS)
        return time.monotonic() - begun

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self._reader.join(SECONDS)
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        self._log.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_jobs.py").write_text(JOBS)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Any]:
    runs: list[Dev] = []
    ports = [str(free_port()) for _ in range(3)]

    def begin(*words: str) -> Dev:
        run = Dev(
            folder, *words, "--kafka-port", ports[0], "--clickhouse-port", ports[1],
            "--http-port", ports[2],
        )
        runs.append(run)
        return run

    yield begin
    for run in runs:
        run.close()


def in_sql(clickhouse: str, job_id: str) -> str | None:
    rows = query_rows(
        clickhouse, "SELECT status FROM jobs WHERE job_id = {job:String}", {"job": job_id}
    )
    return str(rows[0]["status"]) if rows else None


def test_a_job_from_request_to_sql_then_deaths_and_a_second_start(
    start: Any, folder: Path
) -> None:
    dev = start("my_jobs.py", f"--data={ODD_FOLDER}")
    kafka, clickhouse, http = dev.wait_ready()
    assert len(dev.lines) == 1
    assert_comes_last(dev.child("tidemill", "stack"))
    with Client(kafka) as client:
        handle = client.enqueue("greet", user_id="u1", payload={"name": "Ada"})
        assert client.wait(handle, SECONDS).result == {"hello": "Ada"}
        wait_until(lambda: in_sql(clickhouse, handle.job_id), SECONDS, "not in ClickHouse")

        # A role that dies is started again, with a line that says so.
        for role in ("worker", "ledger", "stack"):
            dev.child("tidemill", role).send_signal(signal.SIGKILL)
        again = client.enqueue("greet", user_id="u1", payload={"name": "Bob"})
        assert client.wait(again, SECONDS).result == {"hello": "Bob"}
        for role in ("worker", "ledger", "stack"):
            assert f"{role} ended by SIGKILL" in dev.told()
            assert "starting it again in" in dev.told()

        def answers() -> str | None:
            try:
                return in_sql(clickhouse, again.job_id)
            except SqlError:
                return None

        wait_until(answers, SECONDS, "not in ClickHouse after the deaths")

    assert_slips_are_told(kafka)
    waiting = start_slow_job(kafka)
    descendants = dev.descendants()
    assert dev.stop(signal.SIGINT) < STOP_SECONDS
    assert dev.popen.returncode == exit_codes.OK
    assert not [one for one in descendants if is_alive(one)]

    # All of it is in that very folder, and its owner's alone.
    assert {entry.name for entry in folder.iterdir()} <= {
        ODD_FOLDER, "my_jobs.py", "dev.log", "__pycache__"
    }
    assert stat.S_IMODE((folder / ODD_FOLDER).stat().st_mode) == 0o700
    assert open_to_others(folder / ODD_FOLDER) == []
    (folder / ODD_FOLDER).chmod(0o755)
    (folder / ODD_FOLDER / "dev.lock").chmod(0o644)

    # The next start goes on from the same folder, and mends it.
    second = start("my_jobs.py", f"--data={ODD_FOLDER}")
    kafka, clickhouse, http = second.wait_ready()
    with Client(kafka, clickhouse=clickhouse) as client:
        assert client.wait(handle, SECONDS).status == "succeeded"
        assert client.wait(waiting, SECONDS).status == "succeeded"
    assert http.startswith("http://127.0.0.1:")
    assert second.stop() < STOP_SECONDS
    assert open_to_others(folder / ODD_FOLDER) == []


def assert_slips_are_told(kafka: str) -> None:
    """A type that no worker told of is named with the known ones, and the job is asked for."""
    found = subprocess.run(
        [sys.executable, "-m", "tidemill", "enqueue", "greeet", "--user", "u", "--kafka", kafka,
         "--run-at", "+5m", "--job-id", "a-slip"],
        capture_output=True, text=True, check=True,
    )
    assert "no worker has told of type 'greeet'; known: greet" in found.stderr
    assert json.loads(found.stdout)["job_id"] == "a-slip"


def open_to_others(folder: Path) -> list[str]:
    """The folder and what is below it, as far as group or others may use it."""
    found = (path for path in (folder, *folder.rglob("*")) if not path.is_symlink())
    return [str(path) for path in found if path.stat().st_mode & 0o077]


def assert_comes_last(sink: psutil.Process) -> None:
    """The sink yields to other roles, which have sessions of their own: Linux weighs those first,
    where it groups them at all."""
    assert sink.nice() == NICENESS
    group = Path(f"/proc/{sink.pid}/autogroup")
    if group.exists() and (text := group.read_text().strip()):
        assert text.endswith(f"nice {NICENESS}")


def start_slow_job(kafka: str) -> Any:
    with Client(kafka) as client:
        return client.enqueue("slow", user_id="u1", payload={"seconds": 6})


def test_a_broker_that_dies_comes_back_and_a_killed_supervisor_leaves_nobody(
    start: Any, folder: Path
) -> None:
    dev = start("my_jobs.py")
    kafka, _, _ = dev.wait_ready()
    dev.child("kafka.Kafka").send_signal(signal.SIGKILL)
    with Client(kafka) as client:
        handle = client.enqueue("greet", user_id="u1", payload={"name": "Ada"})
        assert client.wait(handle, SECONDS).status == "succeeded"
    assert "broker ended by SIGKILL" in dev.told()

    descendants = dev.descendants()
    assert len(descendants) >= 4
    dev.popen.kill()
    wait_until(
        lambda: not [one for one in descendants if is_alive(one)], 20.0,
        lambda: f"orphans: {[one for one in descendants if is_alive(one)]}",
    )


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_what_is_in_the_way_is_told_with_the_option(start: Any, folder: Path) -> None:
    dev = start()
    dev.wait_ready()
    second = start("--data", "other")
    assert second.popen.wait(SECONDS) == exit_codes.IN_USE
    assert "--kafka-port" in second.told()
    same_folder = Dev(
        folder, "--kafka-port", "0", "--clickhouse-port", "0", "--http-port", "0"
    )
    assert same_folder.popen.wait(SECONDS) == exit_codes.IN_USE
    assert "--data" in same_folder.told()
    same_folder.close()
    dev.stop()
    other_count = start("--partitions", "2")
    assert other_count.popen.wait(SECONDS) == exit_codes.CONFLICT
    assert "--partitions 2" in other_count.told()


def test_a_module_that_does_not_load_is_said_before_anything_starts(
    start: Any, folder: Path
) -> None:
    (folder / "broken.py").write_text("import my_jobs\n\n\ndef inner():\n    1 / 0\n\ninner()\n")
    for modules in (("broken.py",), ("my_jobs.py", "broken")):
        dev = start(*modules)
        assert dev.popen.wait(SECONDS) == exit_codes.MODULES
        told = dev.told()
        assert "ZeroDivisionError" in told
        assert f"{folder / 'broken.py'}:5" in told
        assert "line 7, in <module>" in told  # the trace
        assert "broker" not in told
        assert not dev.lines
        assert not list((folder / ".tidemill" / "kafka").iterdir())
        dev.log.write_text("")


@pytest.mark.parametrize(
    ("text", "words"),
    [("import os\nos._exit(13)\n", "exit code 13"),
     ("from tidemill import job\n@job('a', queue='x.y')\ndef a(p): ...\n"
      "@job('b', queue='x_y')\ndef b(p): ...\n", "'x.y' and 'x_y'"),
     ("x = 1\n", "defines no job"),
     ("from tidemill import job\n@job('a b')\ndef a(p): ...\n", "the type must be")],
)
def test_what_is_wrong_in_a_module_ends_the_command(
    start: Any, folder: Path, text: str, words: str
) -> None:
    (folder / "odd.py").write_text(text)
    dev = start("odd.py")
    assert dev.popen.wait(SECONDS) == exit_codes.MODULES
    assert words in dev.told()
    assert "broker" not in dev.told()


@pytest.mark.parametrize("name", ["kafka", "clickhouse", "logs"])
def test_a_folder_that_cannot_be_written_is_said_at_once(
    start: Any, folder: Path, name: str
) -> None:
    (folder / ".tidemill").mkdir()
    (folder / ".tidemill" / name).write_text("a file in the folder's place")
    dev = start()
    assert dev.popen.wait(SECONDS) == exit_codes.CONFIG
    assert f".tidemill/{name}' cannot be used" in dev.told()


def test_a_damaged_database_ends_the_command(start: Any, folder: Path) -> None:
    clickhouse = folder / ".tidemill" / "clickhouse"
    clickhouse.mkdir(parents=True)
    for name in ("data", "metadata", "store"):
        (clickhouse / name).write_text("rubbish")
    dev = start()
    # At once and with its reason, not after a round of starts.
    assert dev.popen.wait(SECONDS) == exit_codes.DAMAGED
    assert "the stack cannot start" in dev.told()
    assert f"move {clickhouse} away" in dev.told()
    assert "starting it again" not in dev.told()


def test_code_is_loaded_again_when_a_file_changes(start: Any, folder: Path) -> None:
    (folder / "words.py").write_text("HELLO = 'hello'\n")
    jobs = folder / "my_jobs.py"
    jobs.write_text("from words import HELLO\n" + JOBS.replace('"hello"', "HELLO") + RELAY)
    dev = start("my_jobs.py", "--reload")
    kafka, _, _ = dev.wait_ready()
    begun = [line for line in dev.told().splitlines() if "ready kafka" not in line]
    before_ready = begun[: 1 + next(n for n, line in enumerate(begun) if "stack is ready" in line)]
    assert len(before_ready) <= 8, before_ready
    for word in ("greet", "slow", "hold", "queue default", "3 attempts"):
        assert word in "\n".join(begun)
    with Client(kafka) as client:

        def answer() -> Any:
            handle = client.enqueue("greet", user_id="u1", payload={"name": "Ada"})
            return client.wait(handle, SECONDS).result

        def relayed() -> Any:
            """Asked for by a handler, which finds the Kafka that its worker was given."""
            handle = client.enqueue("relay", user_id="u1", payload={"name": "Ada"})
            return client.wait(handle, SECONDS).result

        assert answer() == relayed() == {"hello": "Ada"}
        # A module that the given one imports, and a job that runs meanwhile.
        slow = client.enqueue("slow", user_id="u2", payload={"seconds": 3})
        (folder / "words.py").write_text("HELLO = 'hallo'\n")
        wait_until(lambda: "runs the new code" in dev.told(), SECONDS, dev.told)
        assert answer() == relayed() == {"hallo": "Ada"}
        assert client.wait(slow, SECONDS).status == "succeeded"
        # What cannot be loaded changes nothing.
        good = jobs.read_text()
        jobs.write_text(good + "def (\n")
        wait_until(lambda: "goes on with the code" in dev.told(), SECONDS, dev.told)
        assert "SyntaxError" in dev.told()
        assert answer() == {"hallo": "Ada"}
        # The worker dies meanwhile: it waits for the file.
        dev.child("tidemill", "worker").send_signal(signal.SIGKILL)
        wait_until(lambda: "it waits for a change" in dev.told(), SECONDS, dev.told)
        jobs.write_text(good.replace("HELLO:", "HELLO + '!':"))
        wait_until(lambda: dev.told().count("runs the new code") == 2, SECONDS, dev.told)
        assert answer() == {"hallo!": "Ada"}
    assert dev.stop() < STOP_SECONDS


def test_roles_apart_with_instances(kafka: str, topic_prefix: str, folder: Path) -> None:
    env = {**os.environ, "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": topic_prefix}
    tidemill = [sys.executable, "-m", "tidemill"]
    subprocess.run([*tidemill, "topics", "apply"], env=env, check=True, timeout=SECONDS)
    plan = subprocess.run(
        [*tidemill, "topics", "plan", "--json"], env=env, check=True, timeout=SECONDS,
        capture_output=True, text=True,
    )
    assert json.loads(plan.stdout) == []
    with (folder / "roles.log").open("a+") as log:
        roles = started_roles(env, folder, log, ("worker", "my_jobs.py", "--instances", "2"))
        try:
            done = subprocess.run(
                [*tidemill, "enqueue", "greet", "--user", "u", "--json", '{"name": "Ada"}',
                 "--wait", "--timeout", str(SECONDS)],
                env=env, timeout=SECONDS * 2, capture_output=True, text=True, check=False,
            )
            assert done.returncode == exit_codes.OK, done.stderr + (
                folder / "roles.log"
            ).read_text()
            assert json.loads(done.stdout)["result"] == {"hello": "Ada"}
            assert len(psutil.Process(roles[1].pid).children()) == 2
        finally:
            for role in roles:
                role.terminate()
            codes = [role.wait(SECONDS) for role in roles]
    assert codes == [exit_codes.OK, exit_codes.OK]


def started_roles(
    env: Mapping[str, str], folder: Path, log: TextIO, worker: Sequence[str]
) -> list[subprocess.Popen[bytes]]:
    """A ledger and a worker, as processes of their own."""
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tidemill", *words],
            env=env, cwd=folder, stderr=log, stdout=log,
        )
        for words in (("ledger",), worker)
    ]


def test_quick_jobs_pass_slow_processes_of_the_same_queue(
    kafka: str, topic_prefix: str, folder: Path
) -> None:
    env = {**os.environ, "TIDEMILL_KAFKA": kafka, "TIDEMILL_TOPIC_PREFIX": topic_prefix}
    subprocess.run(
        [sys.executable, "-m", "tidemill", "topics", "apply"], env=env, check=True, timeout=SECONDS
    )
    opened = folder / "open"
    held = [
        Request(type="hold", user_id=f"u{number}", payload={"until": str(opened)})
        for number in range(200)
    ]
    quick = [
        Request(type="greet", user_id=f"u{number}", payload={"name": "Ada"})
        for number in range(200)
    ]
    # Seven slots: the slow ones would take all that may be out, were slots counted together.
    slots = ("--concurrency", "4", "--threads", "2", "--processes", "1")
    with (
        (folder / "roles.log").open("a+") as log,
        Client(kafka, topic_prefix=topic_prefix) as client,
    ):
        roles = started_roles(env, folder, log, ("worker", "my_jobs.py", *slots))
        try:
            slow = client.enqueue_many(held)
            for handle in client.enqueue_many(quick):
                assert client.wait(handle, SECONDS).status == "succeeded"
            opened.touch()
            for handle in slow:
                assert client.wait(handle, SECONDS).status == "succeeded"
        finally:
            opened.touch()
            for role in roles:
                role.terminate()
            codes = [role.wait(SECONDS) for role in roles]
    assert codes == [exit_codes.OK, exit_codes.OK]


def test_a_child_that_keeps_dying_is_started_ever_later(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(said.append)
    child = ChildProcess(
        "brief", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "brief.log",
        lambda name, line: None,
    )
    supervisor.add(child, 0)
    supervisor.open_gate()

    def look() -> bool:
        supervisor.look()
        return len(said) >= 3

    wait_until(look, SECONDS, lambda: str(said))
    supervisor.stop({0: 1.0}, lambda: False)
    for line, delay in zip(said, BACKOFF_SECONDS, strict=False):
        assert "brief ended with exit code 3" in line
        assert f"starting it again in {delay:g} s" in line
