"""A broker that does not start says why in one line, with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.agents.embedded import broker
from tidemill.agents.embedded.broken_start import end_told, start_error
from tidemill.agents.embedded.broker import Broker
from tidemill.agents.embedded.errors import DamagedFolderError, EmbeddedError, JavaError
from tidemill.agents.embedded.java import find_java
from tidemill.agents.private_files import DISK_BYTES_MIN, disk_fault

EARLIER = "2026-01-01 00:00:00.000 ERROR An old failure (KafkaServer)\n"
NOISE = "2026-01-01 00:00:01.000 INFO starting (Kafka$)\n\tadvertised.listeners = x\n"
STACK = "\tat kafka.Kafka$.main(Kafka.scala:75)\n"

CASES = {
    "another node": (
        "2026-01-01 00:00:02.000 ERROR Exiting Kafka due to fatal exception (Kafka$)\n"
        "java.lang.RuntimeException: Stored node id 7 doesn't match previous node id 1\n" + STACK,
        "", 1, "RuntimeException: Stored node id 7", "put back a copy", True,
    ),
    "no properties": (
        "2026-01-01 00:00:02.000 ERROR Exiting Kafka due to fatal exception (Kafka$)\n"
        "java.lang.RuntimeException: No readable meta.properties files found.\n" + STACK,
        "", 1, "No readable meta.properties", "put back a copy", True,
    ),
    "a newer Kafka": (
        "2026-01-01 00:00:02.000 ERROR Encountered fatal fault: replaying (ProcessTerminating)\n"
        "java.lang.IllegalArgumentException: No MetadataVersion with feature level 99. Valid\n"
        + STACK, "", 1, "feature level 99", "newer Kafka", True,
    ),
    "files": (
        "2026-01-01 00:00:02.000 ERROR Exiting Kafka (Kafka$)\norg.apache.kafka.X"
        "Exception: outer\n" + STACK + "Caused by: java.io.IOException: Too many open files\n"
        + STACK, "", 1, "IOException: Too many open files", "ulimit -n", False,
    ),
    "memory": (
        "", "Error occurred during initialization of VM\nCould not reserve enough space for object "
        "heap\n", 1, "Could not reserve", "memory", False,
    ),
    "killed": ("", "", -9, "by SIGKILL", "memory", False),
    "no word": ("", "", 3, "said nothing", "Its log", False),
    "bytes that are no text": ("", "\udc80\udcff", 3, "exit code 3", "Its log", False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_start_that_fails_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    log, out, code, reason, way_out, is_damage = CASES[name]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "broker.log").write_text(EARLIER + NOISE + log)
    (tmp_path / "logs" / "broker.out").write_bytes(out.encode(errors="surrogateescape"))
    error = start_error(
        tmp_path, exit_code=code, log_begin=len(EARLIER), waited_seconds=90,
    )
    assert isinstance(error, DamagedFolderError) is is_damage
    told = str(error)
    assert reason in told
    assert way_out in told
    assert [word for word in ("\n", "old failure", "scala") if word in told] == []


def test_a_broker_that_never_answers_and_one_that_died_are_told(tmp_path: Path) -> None:
    error = start_error(tmp_path, exit_code=None, log_begin=0, waited_seconds=90)
    assert "was not ready after 90 s" in str(error)
    assert end_told(tmp_path, -9, 0) == "the broker ended by SIGKILL"


def test_a_full_disk_is_the_reason_even_if_the_log_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disk_fault(tmp_path) is None
    monkeypatch.setattr("tidemill.agents.private_files.DISK_BYTES_MIN", 1 << 62)
    assert "free some space" in str(
        start_error(tmp_path, exit_code=1, log_begin=0, waited_seconds=90)
    )
    assert DISK_BYTES_MIN < 1 << 62


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("head -c 64 /dev/urandom >&2", "is no usable Java"),
        ("kill -9 $$", "by SIGKILL"),
        ("echo 'version \"21\"'; exit 3", "exit code 3"),
        ("exit 0", "no word"),
        ("printf 'a\\033[2Jb'", r"\x1b[2Jb"),
    ],
)
def test_a_java_that_is_none_is_passed_over_or_told(
    script: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    candidates = [(java, "JAVA_HOME")]
    monkeypatch.setattr("tidemill.agents.embedded.java._candidates", lambda: iter(candidates))
    with pytest.raises(JavaError) as failure:
        find_java()
    assert told in str(failure.value)
    assert "pip install" in str(failure.value)
    good = tmp_path / "good"
    good.write_text("#!/bin/sh\necho 'openjdk version \"21.0.1\"' >&2\n")
    good.chmod(0o755)
    candidates.append((good, "PATH"))
    assert find_java().origin == "PATH"
    assert str(java) in caplog.text


def test_a_folder_whose_properties_are_gone_is_not_formatted_anew(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    broker._refuse_headless(data)  # nothing is there: a set-up that was cut short
    (data / "jobs.requested-0").mkdir()
    with pytest.raises(DamagedFolderError, match=r"meta\.properties is missing.*--data"):
        broker._refuse_headless(data)


@pytest.mark.parametrize("name", ["broker.lock", "server.properties"])
def test_what_the_system_refuses_names_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(broker, "class_path", lambda: "")
    monkeypatch.setattr(broker, "_refuse_used_port", lambda _port: None)
    with pytest.raises(EmbeddedError, match=rf"{name}: Is a directory.*--data"):
        Broker(tmp_path).start()
