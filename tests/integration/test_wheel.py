"""The wheel alone, in an environment of its own and far from the sources, runs a job."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from tests.tidy.sources import ROOT
from tests.waiting import wait_until

# Most of it goes by while pip unpacks a gigabyte.
pytestmark = pytest.mark.timeout(600)

LOCK = ROOT / "locks" / "dev.txt"
HANDLERS = '''
from pydantic import BaseModel

from tidemill import Context, job


class Greeting(BaseModel):
    name: str


@job("greet", queue="default", max_attempts=3, timeout_seconds=30)
async def greet(payload: Greeting, ctx: Context) -> dict:
    return {"hello": payload.name}
'''


def run(*command: str | Path, cwd: Path, timeout: float, **variables: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**clean_environment(), **variables}, capture_output=True, text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean_environment() -> dict[str, str]:
    """Without what would let the sources or this environment leak into the other one."""
    leaks = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in leaks}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, ROOT, cwd=folder, timeout=120)
    (built,) = folder.glob("tidemill-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment that holds the wheel and what the lock names."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder, timeout=60)
    python = folder / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--no-compile")
    run(*pip, "--require-hashes", "-r", ROOT / "locks" / "run.txt", cwd=folder, timeout=400)
    run(*pip, "--no-deps", wheel, cwd=folder, timeout=60)
    return python.parent


def test_wheel_holds_the_packages_and_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tidemill"}
    assert {"tidemill/py.typed", "tidemill/agents/embedded/jars.json"} <= set(names)
    migration = re.compile(r"tidemill/agents/clickhouse/migrations/.+\.sql")
    assert any(migration.fullmatch(name) for name in names)
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests/")]


def test_wheel_alone_runs_a_job(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "my_jobs.py").write_text(HANDLERS)
    where = run(
        installed / "python", "-c", "import tidemill.agents; print(tidemill.__file__)",
        cwd=tmp_path, timeout=60,
    )
    assert Path(where.strip()).is_relative_to(installed.parent)
    run(installed / "tidemill", "new", "first_jobs", cwd=tmp_path, timeout=60)
    command: list[str | Path] = [installed / "tidemill", "dev", "my_jobs.py", "first_jobs"]
    command += ["--demo", "--data", tmp_path / "data"]
    for port in ("--kafka-port", "--clickhouse-port", "--http-port"):
        command += [port, "0"]
    with (
        (tmp_path / "dev.log").open("w") as log,
        subprocess.Popen(
            command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, stderr=log,
            text=True, start_new_session=True,
        ) as dev,
    ):
        try:
            kafka = ready_kafka(dev, tmp_path / "dev.log")
            try:
                answer = run(
                    installed / "tidemill", "enqueue", "greet", "--user", "ada",
                    "--json", '{"name": "Ada"}', "--wait", "--kafka", kafka,
                    cwd=tmp_path, timeout=90,
                )
            except AssertionError as error:
                error.add_note((tmp_path / "dev.log").read_text()[-10_000:])
                raise
            assert json.loads(answer)["result"] == {"hello": "Ada"}
            own = run(
                installed / "python", "first_jobs.py", cwd=tmp_path, timeout=90,
                TIDEMILL_KAFKA=kafka,
            )
            assert own.startswith("succeeded text='Hello, Ada!'")
            log_text = (tmp_path / "dev.log").read_text
            wait_until(lambda: "jobs of every fate" in log_text(), 60, log_text)
            dev.send_signal(signal.SIGTERM)
            assert dev.wait(20) == 0, (tmp_path / "dev.log").read_text()
        finally:
            if dev.poll() is None:
                dev.kill()


def test_what_new_writes_is_tested_at_once(installed: Path, tmp_path: Path) -> None:
    """With no more than the wheel, what the lock names, and pytest."""
    python = installed / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", "pytest", "-c",
        pytest_alone(tmp_path), cwd=tmp_path, timeout=120)
    run(installed / "tidemill", "new", "first_jobs", cwd=tmp_path, timeout=60)
    told = run(installed / "pytest", "-q", cwd=tmp_path, timeout=60)
    assert "4 passed" in told


def pytest_alone(folder: Path) -> Path:
    """The lock's version of pytest, as constraints without hashes."""
    versions = re.findall(r"^(?:pytest|pluggy|iniconfig)==\S+", LOCK.read_text(), re.MULTILINE)
    path = folder / "constraints.txt"
    path.write_text("\n".join(versions))
    return path


def ready_kafka(dev: subprocess.Popen[str], log: Path) -> str:
    """The address of Kafka in the line that says that requests are served."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    assert dev.stdout is not None
    output = dev.stdout

    def read() -> None:
        for line in output:
            lines.put(line)

    threading.Thread(target=read, daemon=True).start()

    def address() -> str | None:
        assert dev.poll() is None, f"dev ended:\n{log.read_text()}"
        while not lines.empty():
            if match := re.search(r"^ready kafka=(\S+)", lines.get()):
                return match.group(1)
        return None

    found = wait_until(address, 150, lambda: f"no ready line:\n{log.read_text()[-3000:]}")
    assert found is not None
    return found
