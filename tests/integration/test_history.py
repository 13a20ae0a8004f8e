"""Old ends out of ClickHouse, through its HTTP port: which job of an id is meant.

Owns the proof that `Client.wait` answers with the end of the job that was asked for, however often
its id was used, and keeps its time-out while ClickHouse is silent.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from tests.page.sample import Life, Sample, engine_with, request
from tests.waiting import wait_until
from tidemill import AsyncClient, Client, JobHandle, WaitTimeout
from tidemill.agents import topics as topics_
from tidemill.agents.clickhouse.port import ClickHousePort
from tidemill.agents.plain_text import LINES, plain
from tidemill.cli.app import run as cli
from tidemill.history import find_completed, story_rows
from tidemill.schemas.topics import Topics
from tidemill.sql import SqlError, query_rows

FIRST = datetime(2026, 3, 1, 9, tzinfo=UTC)
SECOND = FIRST + timedelta(days=3)
SECONDS = 30.0


def ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def succeed(life: Life) -> Life:
    life.tell("dispatched", "dispatched", 5)
    life.tell("attempt_succeeded", "running", 20)
    return life.tell("succeeded", "succeeded", data=f'{{"result":{ms(life.begun)}}}', run_ms=20)


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    sample = Sample()
    # Its id was used again when nobody knew the first one any more.
    for at in (FIRST, SECOND):
        succeed(request(sample, at, "u", "twice", "t", "default", {}))
    # Its first life is over, its second one is not.
    succeed(request(sample, FIRST, "u", "alive", "t", "default", {}))
    request(sample, SECOND, "u", "alive", "t", "default", {})
    # Asked for again after its end, when it was still known.
    known = succeed(request(sample, FIRST, "u", "known", "t", "default", {}))
    known.at = FIRST + timedelta(hours=5)
    known.tell("duplicate_ignored", "succeeded", sequence=0, incarnation=0, reason="already_ended")
    shown = request(sample, FIRST, "u", "shown", "t", "default", {"name": "M\u00fcller \x1b[31m"})
    trace = orjson.dumps({"trace": "Traceback\n  File x\x1b[2J"}).decode()
    error: dict[str, Any] = {"error_code": "HANDLER_ERROR", "error_message": "\x1b]0;x\x07"}
    shown.tell("attempt_failed", "running", data=trace, **error)
    shown.tell("progressed", "running", data='{"percent":50,"stage":"half","message":null}')
    succeed(shown)
    with engine_with(tmp_path_factory.mktemp("history"), sample) as engine:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        port = ClickHousePort(engine, port=0)
        asyncio.run_coroutine_threadsafe(port.start(), loop).result(SECONDS)
        yield port.url
        asyncio.run_coroutine_threadsafe(port.stop(), loop).result(SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(SECONDS)
        loop.close()


@pytest.mark.parametrize(
    ("job_id", "asked_at", "born_at"),
    [
        ("twice", FIRST, FIRST),
        ("twice", SECOND, SECOND),
        ("alive", FIRST, FIRST),
        ("alive", SECOND, None),
        ("known", FIRST, FIRST),
        ("known", FIRST + timedelta(hours=5), FIRST),
        # The request has not been answered yet, as far as ClickHouse knows.
        ("known", SECOND, None),
        ("nobody", FIRST, None),
    ],
)
def test_the_end_is_that_of_the_job_that_was_asked_for(
    clickhouse: str, job_id: str, asked_at: datetime, born_at: datetime | None
) -> None:
    found = find_completed(clickhouse, "u", job_id, 1, since_ms=ms(asked_at) - 1_000)
    assert (found and found.result) == (born_at and ms(born_at))
    if found is not None:
        assert (found.status, found.attempts, found.wait_ms) == ("succeeded", 1, None)
        assert found.requested_at == born_at.strftime("%Y-%m-%dT%H:%M:%S.000Z") if born_at else ""


def test_a_story_is_told_oldest_first(clickhouse: str) -> None:
    told = story_rows(clickhouse, "known", "u")
    # Events that only answer somebody carry no incarnation.
    assert next(row["event"] for row in told) == "requested"
    assert [row["event"] for row in told][-1] == "duplicate_ignored"
    assert [row["occurred_at"] for row in told] == sorted(row["occurred_at"] for row in told)


def test_a_wait_finds_an_old_end(kafka: str, topic_prefix: str, clickhouse: str) -> None:
    # Nothing is on the topics: the end comes from ClickHouse.
    topics_.apply(kafka, Topics(topic_prefix), 4)
    handle = JobHandle("twice", "u", "t", "jobs.requested", ms(FIRST))
    with Client(kafka, topic_prefix=topic_prefix, clickhouse=clickhouse) as client:
        assert client.wait(handle, SECONDS).result == ms(FIRST)


async def test_a_silent_clickhouse_holds_up_no_wait(kafka: str, topic_prefix: str) -> None:
    topics_.apply(kafka, Topics(topic_prefix), 4)
    handle = JobHandle("twice", "u", "t", "jobs.requested", ms(FIRST))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        with Client(kafka, topic_prefix=topic_prefix, clickhouse=address) as client:
            with pytest.raises(WaitTimeout):
                client.wait(handle, 0.5)
            assert time.monotonic() - begun < SECONDS / 2
        async with AsyncClient(kafka, topic_prefix=topic_prefix, clickhouse=address) as other:
            with pytest.raises(WaitTimeout):
                await other.wait(handle, 0.5)
        assert time.monotonic() - begun < SECONDS


FULL = {
    "0.042": "0.042",
    "1e-320": "1e-320",
    "0.1 + 0.2": "0.30000000000000004",
    "1e300": "1e300",
    "toFloat32(0.1)": "0.1",
    "nan": "nan",
    "-inf": "-inf",
    "NULL": "NULL",
    "'NULL'": "'NULL'",
    "''": "''",
    "' '": "",
    "toUInt64(18446744073709551615)": "18446744073709551615",
    "toInt128('-170141183460469231731687303715884105728')":
        "-170141183460469231731687303715884105728",
    "toUInt256('1157920892373161954235709850086879078')": "1157920892373161954235709850086879078",
    "toDecimal64(1.10, 2)": "1.1",
    "toDecimal128('12345678901234567890.123456789', 9)": "12345678901234567890.123456789",
    "toDateTime64('2026-01-02 03:04:05.006', 3, 'UTC')": "2026-01-02 03:04:05.006",
    "toDate('2026-01-02')": "2026-01-02",
    "[1, NULL, 3]": "[1,NULL,3]",
    "('a', 1.5, [2])": "('a',1.5,[2])",
    "map('k', 0.25)": "{'k':0.25}",
    "true": "true",
    "'a\\tb\\nc'": "a\\tb\\nc",
    "char(27, 91, 51, 49, 109)": "\\x1b[31m",
    "repeat('x', 5000)": "x" * 5_000,
    "'\u6f22\u5b57 \U0001f600'": "\u6f22\u5b57 \U0001f600",
}


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tidemill", *words])
    return cli()


@pytest.mark.parametrize(("expression", "shown"), FULL.items())
def test_a_value_is_shown_in_full(
    clickhouse: str, expression: str, shown: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "sql", f"SELECT {expression} AS v", "--clickhouse", clickhouse) == 0
    assert capsys.readouterr().out.splitlines()[1].strip() == shown


@pytest.mark.parametrize(
    ("expression", "written"),
    [
        ("0.042", "0.042"), ("nan", '"nan"'), ("NULL", "null"), ("''", '""'), ("-inf", '"-inf"'),
        ("toUInt64(18446744073709551615)", "18446744073709551615"),
        ("toInt128('170141183460469231731687303715884105727')",
         "170141183460469231731687303715884105727"),
        ("toDecimal128('12345678901234567890.123456789', 9)", "12345678901234567890.123456789"),
        ("char(0xc2, 0x9b)", '"\\u009b"'),
    ],
)
def test_json_is_exact(
    clickhouse: str, expression: str, written: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    query = f"SELECT {expression} AS v"
    assert run(monkeypatch, "sql", query, "--json", "--clickhouse", clickhouse) == 0
    out = capsys.readouterr().out
    assert f'{{"v":{written}}}' in out
    assert isinstance(json.loads(out), list)


def test_a_reader_that_has_enough_is_no_failure(clickhouse: str) -> None:
    query = "SELECT number, repeat('x', 100) FROM numbers(20000)"
    asking = subprocess.Popen(
        [sys.executable, "-m", "tidemill", "sql", query, "--clickhouse", clickhouse],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    assert asking.stdout is not None
    assert asking.stderr is not None
    asking.stdout.readline()
    asking.stdout.close()
    told = asking.stderr.read()
    asking.stderr.close()
    assert (asking.wait(SECONDS), told) == (0, b"")


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0"}, "M\u00fcller \u6f22".encode()),
        ({"LC_ALL": "POSIX"}, "M\u00fcller \u6f22".encode()),
        ({"PYTHONIOENCODING": "latin-1"}, b"M\xfcller \\u6f22"),
        ({"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}, b"M\\xfcller \\u6f22"),
    ],
)
def test_text_is_read_and_shown_in_any_locale(
    clickhouse: str, environment: dict[str, str], shown: bytes
) -> None:
    query = "SELECT 'M\u00fcller \u6f22' AS v"
    found = subprocess.run(
        [sys.executable, "-m", "tidemill", "sql", query, "--clickhouse", clickhouse],
        env=os.environ | environment, capture_output=True, check=True,
    )
    assert found.stdout.splitlines()[1] == shown


def test_a_job_is_shown_with_all_that_it_carries(
    clickhouse: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "jobs", "show", "shown", "--clickhouse", clickhouse) == 0
    out = capsys.readouterr().out
    for words in ("Payload", "M\u00fcller", "Progress", "half", "Result", str(ms(FIRST)),
                  "Trace of", "  File x", "Story", "attempt_failed"):
        assert words in out
    assert plain(out, LINES) == out
    assert run(monkeypatch, "jobs", "show", "shown", "--json", "--clickhouse", clickhouse) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["payload"] == {"name": "M\u00fcller \x1b[31m"}
    assert (told["progress"]["percent"], told["result"]) == (50, told["job"]["incarnation"])
    assert told["trace"].startswith("Traceback")


def test_a_job_of_which_little_is_known_is_shown(
    clickhouse: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "jobs", "show", "alive", "--json", "--clickhouse", clickhouse) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["payload"], told["result"], told["trace"]) == ({}, None, None)
    assert run(monkeypatch, "jobs", "show", "nobody", "--clickhouse", clickhouse) == 4


def test_no_row_is_an_empty_list(
    clickhouse: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    query = "SELECT 1 AS v WHERE 0"
    run(monkeypatch, "sql", query, "--json", "--clickhouse", clickhouse)
    assert json.loads(capsys.readouterr().out) == []
    run(monkeypatch, "sql", query, "--clickhouse", clickhouse)
    assert capsys.readouterr().out == "v\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("SELECT 1, 'a,b' FORMAT CSV",), b'1,"a,b"\n'),
        (("SELECT 1, '' FORMAT TSV",), b"1\t\n"),
        (("SELECT 1, 'a,b'", "--format", "CSV"), b'1,"a,b"\n'),
        (("SELECT char(27)", "--format", "RawBLOB"), b"\x1b"),
    ],
)
def test_a_format_is_passed_on_byte_by_byte(
    clickhouse: str, words: tuple[str, ...], expected: bytes
) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tidemill", "sql", *words, "--clickhouse", clickhouse],
        capture_output=True, check=True,
    )
    assert found.stdout == expected


def test_who_is_no_clickhouse_is_named() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def answer() -> None:
            for said in (b"SSH-2.0-Other\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"):
                caller, _ = listening.accept()
                caller.recv(65_536)
                caller.sendall(said)
                caller.close()

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        for words in ("no answer from ClickHouse", "did not answer as ClickHouse does"):
            with pytest.raises(SqlError, match=words):
                query_rows(address, "SELECT 1", timeout_seconds=SECONDS)
        wait_until(lambda: not answering.is_alive(), SECONDS, "still answering")
