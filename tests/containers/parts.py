"""The two servers of docker-compose.yml as containers of a test run.

Owns what a container is told (image, environment, ports, files), taken from docker-compose.yml so
that the two never differ, its start, and when it counts as ready. Refuses to know which tests run.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import yaml
from confluent_kafka import KafkaException

from tidemill.agents import topics
from tidemill.agents.clickhouse.engine import EngineError, open_engine
from tidemill.agents.embedded.ports import free_port

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

ROOT: Final = Path(__file__).resolve().parents[2]
LOOPBACK: Final = "127.0.0.1"
KAFKA_PORT: Final = 9092  # inside the container
CLICKHOUSE_PORT: Final = 8123  # inside the container
READY_SECONDS: Final = 120.0  # a server's start on a busy machine, after its image has been fetched
LOOK_SECONDS: Final = 0.2  # between two looks at whether a server answers
PING_SECONDS: Final = 3.0  # for a server to answer one question


@dataclass(frozen=True, slots=True)
class Part:
    """What one container is told."""

    image: str
    hostname: str
    environment: dict[str, str]
    inside_port: int
    port: int  # on this machine's loopback address
    files: dict[str, str] = field(default_factory=dict)  # path here -> path in the container
    ulimits: dict[str, int] = field(default_factory=dict)


def service(name: str) -> dict[str, Any]:
    """One service of docker-compose.yml."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)["services"][name]
    return found


def kafka_part(port: int | None = None) -> Part:
    """The broker. It must advertise the address that clients use, so the port is chosen first."""
    told = service("kafka")
    port = port or free_port()
    listener = f"HOST://{LOOPBACK}:{KAFKA_PORT}"
    advertised = told["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert listener in advertised, advertised
    environment = told["environment"] | {
        "KAFKA_ADVERTISED_LISTENERS": advertised.replace(listener, f"HOST://{LOOPBACK}:{port}"),
    }
    # The name by which broker and controller find each other in the network of docker-compose.yml.
    return Part(told["image"], "kafka", environment, KAFKA_PORT, port)


def clickhouse_part(port: int | None = None) -> Part:
    """The ClickHouse server, with the settings and the mounted files of docker-compose.yml."""
    told = service("clickhouse")
    environment = {name: _filled(value) for name, value in told["environment"].items()}
    files = {}
    for volume in told["volumes"]:
        here, there, *_ = volume.split(":")
        if here.startswith("./"):
            files[str(ROOT / here)] = there
    return Part(
        told["image"], "clickhouse", environment, CLICKHOUSE_PORT, port or free_port(), files,
        dict(told["ulimits"]),
    )


def _filled(value: str) -> str:
    """What compose makes of `${NAME:-default}`."""
    return re.sub(
        r"\$\{(\w+):-([^}]*)\}", lambda found: os.environ.get(found[1]) or found[2], value
    )


def container_of(part: Part) -> DockerContainer:
    """The container, not started yet. Asks the Docker daemon for its version."""
    from docker.types import Ulimit
    from testcontainers.core.container import DockerContainer

    container = DockerContainer(part.image, env=dict(part.environment))
    # Docker's client takes (address, port) too: only this machine shall reach the server.
    container.ports[f"{part.inside_port}/tcp"] = cast("int", (LOOPBACK, part.port))
    for here, there in part.files.items():
        container.with_volume_mapping(here, there, "ro")
    limits = [Ulimit(name=name, soft=n, hard=n) for name, n in part.ulimits.items()]
    return container.with_kwargs(hostname=part.hostname, ulimits=limits)


def _log_of(container: DockerContainer) -> str:
    """The end of what its server wrote."""
    out, err = container.get_logs()
    return (out + err)[-4_000:].decode(errors="replace")


@contextmanager
def running(part: Part, answers: Callable[[], bool]) -> Iterator[DockerContainer]:
    """The container while it serves; removed at the end with all that is in it."""
    with container_of(part) as container:
        deadline = time.monotonic() + READY_SECONDS
        while not answers():
            if time.monotonic() > deadline:
                log = _log_of(container)
                raise AssertionError(f"{part.image} did not answer in {READY_SECONDS:g} s:\n{log}")
            time.sleep(LOOK_SECONDS)
        yield container


@contextmanager
def running_kafka() -> Iterator[str]:
    """host:port of a broker in a container."""
    part = kafka_part()
    address = f"{LOOPBACK}:{part.port}"

    def answers() -> bool:
        try:
            return bool(topics.admin_client(address).list_topics(timeout=PING_SECONDS).brokers)
        except KafkaException:
            return False

    with running(part, answers):
        yield address


@contextmanager
def running_clickhouse() -> Iterator[str]:
    """http://user:password@host:port of a ClickHouse server in a container."""
    part = clickhouse_part()
    user, password = (part.environment[f"CLICKHOUSE_{name}"] for name in ("USER", "PASSWORD"))
    address = f"http://{user}:{password}@{LOOPBACK}:{part.port}"

    def answers() -> bool:
        try:
            engine = open_engine(f"{address}/default")
        except EngineError:
            return False
        try:
            return engine.query("SELECT 1 AS one") == [{"one": 1}]
        except EngineError:
            return False
        finally:
            engine.close()

    with running(part, answers):
        yield address
