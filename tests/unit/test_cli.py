"""The command line without a broker: names, exit codes, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.agents import exit_codes, own_streams
from tidemill.cli.app import run

NOWHERE = "127.0.0.1:1"  # nothing listens on port 1


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["tidemill", *words])
    # The streams of the tests' own process stay as they are.
    monkeypatch.setattr(own_streams, "keep", lambda: None)
    code = run()
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "words",
    [
        ("dev",), ("ledger",), ("worker",), ("sink",), ("api",), ("broker", "start"),
        ("broker", "stop"), ("broker", "status"), ("topics", "plan"), ("topics", "apply"),
        ("enqueue",), ("jobs", "list"), ("jobs", "show"), ("jobs", "cancel"), ("jobs", "redrive"),
        ("signal",),
        ("sql",), ("doctor",), ("config",),
    ],
)
def test_every_fixed_command_has_help(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = command(monkeypatch, capsys, *words, "--help")
    assert code == exit_codes.OK
    assert "Usage" in out


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("dev",), ("--data", "--kafka-port", "--clickhouse-port", "--http-port", "--partitions")),
        (("worker",), ("--kafka", "--queues", "--concurrency", "--instances")),
        (("ledger",), ("--kafka",)),
        (("sink",), ("--kafka", "--clickhouse")),
        (("api",), ("--kafka", "--clickhouse")),
        (("enqueue",), ("--user", "--json", "--wait")),
        (("jobs", "list"), ("--json", "--status", "--type", "--user", "--since", "--limit")),
        (("jobs", "show"), ("--json",)),
        (("sql",), ("--json", "--format")),
        (("topics", "plan"), ("--json",)),
        (("doctor",), ("--json",)),
        (("config",), ("--json",)),
    ],
)
def test_fixed_options_are_there(
    words: tuple[str, ...],
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = command(monkeypatch, capsys, *words, "--help")
    for option in options:
        assert option in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nosuch",), exit_codes.USAGE, "No such command"),
        (("enqueue", "greet"), exit_codes.USAGE, "--user"),
        (("enqueue", "greet", "--user", "u", "--json", "{"), exit_codes.USAGE, "--json"),
        (("enqueue", "greet", "--user", "u", "--json", "[1]"), exit_codes.USAGE, "list"),
        (("enqueue", "greet", "--user", "u", "--json", '{"n": 18446744073709551617}'),
         exit_codes.USAGE, "64 bits"),
        (("sql", " "), exit_codes.USAGE, "empty"),
        (("enqueue", "no type", "--user", "u"), exit_codes.USAGE, "field 'type'"),
        (("enqueue", "t", "--user", "u", "--priority", "x"), exit_codes.USAGE, "'priority'"),
        (("enqueue", "t", "--user", "u", "--run-at", "noon"), exit_codes.USAGE, "--run-at"),
        (("enqueue", "t", "--user", "u", "--kafka", "x"), exit_codes.CONFIG, "--kafka"),
        (("jobs", "list", "--status", "done"), exit_codes.USAGE, "succeeded"),
        (("jobs", "list", "--since", "noon"), exit_codes.USAGE, "--since"),
        (("sql", "SELECT 1", "--clickhouse", f"http://{NOWHERE}"), exit_codes.UNREACHABLE,
         "--clickhouse"),
        (("sql", "SELECT 1", "--clickhouse", "chdb:///x"), exit_codes.UNREACHABLE, "over HTTP"),
        (("config", "--role", "cook"), exit_codes.USAGE, "ledger"),
        (("worker", "no_such_module_here"), exit_codes.CONFIG, "no_such_module_here"),
        (("worker", "missing.py"), exit_codes.CONFIG, "missing.py"),
        (("dev", "missing.py"), exit_codes.CONFIG, "missing.py"),
    ],
)
def test_mistakes_end_with_their_code_and_a_message(
    words: tuple[str, ...],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found, out, err = command(monkeypatch, capsys, *words)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


def test_config_shows_values_and_sources_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEMILL_TOKEN", "secret-word")
    code, out, _ = command(monkeypatch, capsys, "config", "--kafka", "a:1", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == exit_codes.OK
    assert rows["kafka"]["source"] == "command line"
    assert rows["token"]["source"] == "environment"
    assert "secret-word" not in out


def test_tables_are_not_cut_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a" * 70 + ":1"
    code, out, _ = command(monkeypatch, capsys, "config", "--kafka", long)
    assert code == exit_codes.OK
    assert long in out
    assert "\x1b[" not in out


def test_broker_status_of_an_empty_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = command(
        monkeypatch, capsys, "broker", "status", "--data", str(tmp_path), "--json"
    )
    assert code == exit_codes.UNREACHABLE
    assert json.loads(out)["is_running"] is False


def test_help_loads_no_kafka_client_and_no_faust() -> None:
    probe = (
        "import sys; sys.argv = ['tidemill', '--help']\n"
        "from tidemill.cli.app import run\n"
        "run()\n"
        "heavy = {'confluent_kafka', 'faust', 'pydantic', 'fastapi', 'chdb'} & set(sys.modules)\n"
        "sys.stderr.write(','.join(sorted(heavy)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""


def test_every_exit_code_has_a_meaning_and_a_number_of_its_own() -> None:
    codes = [
        value for name, value in vars(exit_codes).items() if name.isupper() and type(value) is int
    ]
    assert len(codes) == len(set(codes))
    assert set(exit_codes.MEANINGS) == set(codes)
