"""An installation brings the one name `tidemill`: beside an application with our folders' names.

Each way to install has an environment of its own, which takes its libraries from this one: editable
from a checkout, and a wheel that is built from an unpacked sdist, which holds no links.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Final

import pytest

from tests.tidy.sources import ROOT, tracked_files
from tests.waiting import wait_until

SECONDS: Final = 90.0
pytestmark = pytest.mark.timeout(400)

APPLICATION: Final = {
    "schemas/__init__.py": "",
    "schemas/orders.py": (
        "from pydantic import BaseModel\n\n\nclass Order(BaseModel):\n    pieces: int\n"
    ),
    "streams/__init__.py": "PRICE = 3\n",
    "agents/__init__.py": "",
    "agents/handlers.py": '''
from schemas.orders import Order
from streams import PRICE
from tidemill import Context, job


@job("price")
async def price(payload: Order, ctx: Context) -> dict[str, int]:
    return {"price": PRICE * payload.pieces}


@job("price_apart", process=True)
def price_apart(payload: Order) -> dict[str, int]:
    return {"price": PRICE * payload.pieces}
''',
    # Runs beside `dev`, on a queue of its own.
    "agents/other.py": '''
from streams import PRICE
from tidemill import job


@job("other", queue="other")
def other(payload: dict[str, int]) -> int:
    return PRICE + payload["more"]
''',
    "produce.py": '''
import json
import sys

from schemas.orders import Order
from tidemill import Client

with Client(sys.argv[1]) as client:
    asked = [client.enqueue(name, user_id="ada", payload=Order(pieces=2))
             for name in ("price", "price_apart")]
    asked.append(client.enqueue("other", user_id="ada", payload={"more": 1}, queue="other"))
    print(json.dumps([client.wait(each, 60).result for each in asked]))
''',
    "web.py": '''
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.request import urlopen

import uvicorn
from fastapi import FastAPI

from schemas.orders import Order
from tidemill import AsyncClient


@asynccontextmanager
async def opened(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncClient(sys.argv[1]) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=opened)


@app.get("/price/{pieces}")
async def price(pieces: int) -> object:
    client = app.state.client
    asked = await client.enqueue("price", user_id="web", payload=Order(pieces=pieces))
    return (await client.wait(asked, 60)).result


door = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
thread.start()
try:
    # The socket listens already: the answer comes once the server runs.
    print(urlopen(f"http://127.0.0.1:{door.getsockname()[1]}/price/5", timeout=60).read().decode())
finally:
    server.should_exit = True
    thread.join()
''',
}
STRANGER: Final = """
from tidemill import AsyncClient, Client, Context, RateLimit, job
from tidemill.schemas.topics import Topics


@job("greet", limits=[RateLimit("3/min", over="skip")])
async def greet(payload: dict[str, str], ctx: Context) -> str:
    return f"{payload['name']}: {ctx.attempt}"


def ask(client: Client) -> str:
    return client.enqueue("greet", user_id="ada", payload={"name": "Ada"}).job_id


async def ask_later(client: AsyncClient) -> str:
    return (await client.enqueue("greet", user_id="ada")).job_id


names: list[str] = [spec.name for spec in Topics().fixed()]
"""
WRONG: Final = """
from tidemill import Client
from tidemill.schemas.topics import Topics

with Client() as client:
    number: int = client.enqueue("greet", user_id=3)
topics: int = Topics().fixed()
"""


def environment() -> dict[str, str]:
    """Without what would let the sources or this environment leak into another one."""
    leaks = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in leaks}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-5_000:]}"
    return done.stdout


def python_with(folder: Path, *words: str | Path) -> Path:
    """The Python of a new environment in which pip has installed what `words` say."""
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # The libraries of this environment, without its .pth files, which name this checkout. Read
    # first, as capitals are: the hook of an editable install needs one of them.
    (packages / "LIBRARIES.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--quiet", "--python", python, "install", "--no-deps")
    run(*pip, "--no-build-isolation", "--no-compile", "--ignore-installed", *words, cwd=folder)
    return python


def clone(folder: Path) -> Path:
    """What git would check out: tracked files, and the links."""
    for path in tracked_files():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / path)
    for name in ("schemas", "streams", "agents"):
        shutil.copyfile(ROOT / "tidemill" / name, folder / "tidemill" / name, follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist of a fresh clone, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    source = clone(folder / "clone")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=source)
    (archive,) = folder.glob("tidemill-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module", params=["editable", "wheel"])
def python(
    request: pytest.FixtureRequest, unpacked: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    if request.param == "editable":
        # Of a copy of the clone: `cp -r` keeps links.
        run("cp", "-r", unpacked.parent / "clone", folder / "copy", cwd=folder)
        return python_with(folder, "--editable", folder / "copy")
    return python_with(folder, unpacked)


@pytest.fixture
def application(tmp_path: Path) -> Path:
    for name, text in APPLICATION.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_an_sdist_holds_each_file_once(unpacked: Path) -> None:
    files = [path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file()]
    assert Path("streams/lifecycle.py") in files
    assert Path("tidemill/py.typed") in files
    assert [str(path) for path in files if path.parts[:2] in {
        ("tidemill", "schemas"), ("tidemill", "streams"), ("tidemill", "agents")
    }] == []


def test_an_sdist_can_be_installed_editable(unpacked: Path, tmp_path: Path) -> None:
    shutil.copytree(unpacked, tmp_path / "source")
    python = python_with(tmp_path, "--editable", tmp_path / "source")
    found = run(python, "-c", "import tidemill.streams as it; print(it.__file__)", cwd=tmp_path)
    assert found.strip() == str(tmp_path / "source/tidemill/streams/__init__.py")


@pytest.mark.parametrize("name", ["schemas", "streams", "agents", "tools", "tests"])
def test_nothing_else_is_at_the_top(python: Path, tmp_path: Path, name: str) -> None:
    code = (
        "import importlib.util, tidemill.schemas, tidemill.streams, tidemill.agents\n"
        f"print(importlib.util.find_spec({name!r}))"
    )
    assert run(python, "-c", code, cwd=tmp_path) == "None\n"


def test_an_application_may_have_packages_of_our_folders_names(
    python: Path, application: Path
) -> None:
    tidemill = python.with_name("tidemill")
    ports = [word for name in ("kafka", "clickhouse", "http") for word in (f"--{name}-port", "0")]
    dev = Role(application, "dev", tidemill, "dev", "agents/handlers.py", *ports)
    with dev:
        kafka = dev.told(r"ready kafka=(\S+)")
        with Role(
            application, "worker", tidemill, "worker", "agents.other", "--kafka", kafka,
            "--log-format", "json",
        ) as worker:
            worker.told('("role_ready")')
            answers = json.loads(run(python, "produce.py", kafka, cwd=application))
            assert answers == [{"price": 6}, {"price": 6}, 4]
            assert json.loads(run(python, "web.py", kafka, cwd=application)) == {"price": 15}
            assert worker.stop() == 0
        assert dev.stop() == 0


class Role:
    """A process of the application's folder, and what it has written."""

    def __init__(self, folder: Path, name: str, *words: str | Path) -> None:
        self._file = folder / f"{name}.log"
        with self._file.open("wb") as log:
            self._popen = subprocess.Popen(
                words, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )

    def __enter__(self) -> Role:
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()

    def told(self, pattern: str) -> str:
        """The first group of what it has written like that."""

        def found() -> re.Match[str] | None:
            match = re.search(pattern, self._file.read_text())
            assert match or self._popen.poll() is None, self._file.read_text()[-5_000:]
            return match

        match = wait_until(found, SECONDS, lambda: self._file.read_text()[-5_000:])
        assert match is not None
        return match[1]

    def stop(self) -> int:
        self._popen.send_signal(signal.SIGTERM)
        return self._popen.wait(SECONDS)


@pytest.fixture(scope="module")
def typed(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel: a checker finds what is in its folders."""
    return python_with(tmp_path_factory.mktemp("typed"), unpacked)


def checked(python: Path, folder: Path, text: str) -> list[str]:
    """What mypy says of a stranger's module."""
    (folder / "stranger.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", python,
         "--cache-dir", folder / "cache", "--no-error-summary", "stranger.py"],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=170, check=False,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_strangers_module_is_checked_against_our_types(typed: Path, tmp_path: Path) -> None:
    assert checked(typed, tmp_path, STRANGER) == []
    told = "\n".join(checked(typed, tmp_path, WRONG))
    assert 'Argument "user_id" to "enqueue" of "Client" has incompatible type "int"' in told
    assert 'expression has type "JobHandle", variable has type "int"' in told
    assert re.search(r"stranger.py:7: error: .*variable has type \"int\"", told)
