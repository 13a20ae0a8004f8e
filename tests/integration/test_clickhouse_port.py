"""The read-only ClickHouse port over a real chDB engine, seen by stock clients; and its engine.

It knows no table of the product: it makes its own. Sleeps nowhere, reaches no network.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import pyarrow.parquet
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from tidemill.agents.clickhouse.engine import Engine, EngineError, EngineUnavailable, open_engine
from tidemill.agents.clickhouse.guard_lists import ALLOWED_SYSTEM_TABLES
from tidemill.agents.clickhouse.migrate import MigrationError, migrate, pending_migrations
from tidemill.agents.clickhouse.port import ClickHousePort
from tidemill.agents.clickhouse.port_settings import PortLimits

ROWS = 5_000
START_SECONDS_MAX = 30.0
LIMITS = PortLimits(query_seconds_max=2, result_rows_max=20_000, memory_bytes_max=200_000_000)
TABLES = """
CREATE TABLE seen (id UInt64, user_id LowCardinality(String), at DateTime64(3, 'UTC'),
    tags Array(String), note Nullable(String))
ENGINE = MergeTree ORDER BY id SETTINGS non_replicated_deduplication_window = 1000;
CREATE TABLE per_user (user_id LowCardinality(String), seen_total UInt64)
ENGINE = SummingMergeTree ORDER BY user_id SETTINGS non_replicated_deduplication_window = 1000;
CREATE MATERIALIZED VIEW per_user_view TO per_user AS
SELECT user_id, count() AS seen_total FROM seen GROUP BY user_id;
"""


def seen_rows(first: int, count: int) -> bytes:
    rows = (
        {
            "id": number,
            "user_id": f"user-{number % 7}",
            "at": f"2026-01-01 00:00:{number % 60:02}.125",
            "tags": ["a", f"t{number % 3}"],
            "note": None if number % 2 else "note\t'quoted'",
        }
        for number in range(first, first + count)
    )
    return b"\n".join(json.dumps(row).encode() for row in rows)


class RunningPort:
    """The port in a thread with a loop of its own, so that blocking clients can be tested."""

    def __init__(self, engine: Engine, limits: PortLimits = LIMITS, password: str | None = None):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = ClickHousePort(engine, port=0, limits=limits, password=password)
        self._call(self.port.start())
        self.url = self.port.url
        self.number = int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        self._call(self.port.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS_MAX)
        self._loop.close()

    def _call(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_SECONDS_MAX)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    opened = open_engine(f"chdb://{tmp_path_factory.mktemp('chdb')}")
    for statement in TABLES.split(";"):
        if statement.strip():
            opened.command(statement)
    opened.insert_bytes("seen", seen_rows(0, ROWS))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def served(engine: Engine) -> Iterator[RunningPort]:
    running = RunningPort(engine)
    yield running
    running.stop()


@pytest.fixture
def http(served: RunningPort) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=START_SECONDS_MAX) as client:
        yield client


def ask(http: httpx.Client, sql: str, **arguments: str) -> httpx.Response:
    return http.post("/", params=arguments, content=sql.encode())


def test_a_file_of_the_working_folder_is_no_table(tmp_path: Path) -> None:
    # In a process of its own: chDB serves one folder a process.
    project = tmp_path / "project"
    project.mkdir()
    (project / "users").write_text("name\tsecret\nada\t1815\n")
    code = (
        "import sys; from tidemill.agents.clickhouse.engine import EngineError, open_engine\n"
        "engine = open_engine(sys.argv[1])\n"
        "for sql in 'SELECT * FROM users', 'DESCRIBE users', '(SELECT 1 FROM users)':\n"
        "    try: print(engine.query(sql))\n"
        "    except EngineError as error: print(error.name)\n"
        "import os; print(os.getcwd())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, f"chdb://{tmp_path / 'chdb'}"],
        cwd=project, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, timeout=60, check=True,
    )
    assert found.stdout.splitlines() == ["UNKNOWN_TABLE"] * 3 + [str(project)]


class TestStockClients:
    @pytest.mark.parametrize("compress", [False, True, "gzip", "lz4", "zstd"])
    def test_clickhouse_connect_reads_native(
        self, served: RunningPort, compress: bool | str
    ) -> None:
        with clickhouse_connect.get_client(
            host="127.0.0.1", port=served.number, compress=compress
        ) as client:
            found = client.query(
                "SELECT id, user_id, at, tags, note FROM seen WHERE id < {top:UInt64} ORDER BY id",
                parameters={"top": 3_000},
            )
            assert len(found.result_rows) == 3_000
            assert found.result_rows[2][1:] == (
                "user-2",
                found.result_rows[2][2],
                ["a", "t2"],
                "note\t'quoted'",
            )
            assert found.result_rows[2][2].microsecond == 125_000
            frame = client.query_df("SELECT user_id, count() AS seen FROM seen GROUP BY user_id")
            assert frame["seen"].sum() == ROWS
            assert client.command("SELECT count() FROM seen") == ROWS
            assert client.query("SELECT id FROM seen WHERE id = 999999").result_rows == []
            assert client.query_arrow("SELECT id FROM seen LIMIT 10").num_rows == 10

    def test_clickhouse_connect_cannot_write(self, served: RunningPort) -> None:
        with clickhouse_connect.get_client(host="127.0.0.1", port=served.number) as client:
            with pytest.raises(DatabaseError, match="READONLY"):
                client.command("DROP TABLE seen")
            with pytest.raises(DatabaseError):
                client.insert("per_user", [["x", 1]], column_names=["user_id", "seen_total"])

    @pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
    @pytest.mark.parametrize("method", [["-G", "--data-urlencode"], ["--data-binary"]])
    def test_curl_reads_json_csv_and_parquet(self, served: RunningPort, method: list[str]) -> None:
        def curl(sql: str, *options: str) -> bytes:
            text = f"query={sql}" if "-G" in method else sql
            command = ["curl", "-sS", "--fail-with-body", *options, served.url, *method, text]
            return subprocess.run(command, check=True, capture_output=True, timeout=30).stdout

        assert json.loads(curl("SELECT count() AS n FROM seen FORMAT JSON"))["data"] == [
            {"n": ROWS}
        ]
        assert curl(
            "SELECT id, user_id FROM seen ORDER BY id LIMIT 2 FORMAT CSV", "--compressed"
        ) == (b'0,"user-0"\n1,"user-1"\n')
        table = pyarrow.parquet.read_table(io.BytesIO(curl("SELECT id FROM seen FORMAT Parquet")))
        assert table.num_rows == ROWS

    def test_headers_are_those_of_a_server(self, http: httpx.Client) -> None:
        answer = ask(http, "SELECT count() FROM seen", query_id="q-1", default_format="JSONCompact")
        assert answer.headers["X-ClickHouse-Format"] == "JSONCompact"
        assert answer.headers["X-ClickHouse-Query-Id"] == "q-1"
        assert answer.headers["X-ClickHouse-Timezone"]
        assert "read_rows" in json.loads(answer.headers["X-ClickHouse-Summary"])
        assert answer.headers["Content-Type"].startswith("application/json")

    def test_ping_and_an_empty_question(self, http: httpx.Client) -> None:
        assert (http.get("/ping").text, http.get("/").text) == ("Ok.\n", "Ok.\n")

    def test_format_in_header_body_and_address(self, http: httpx.Client) -> None:
        sql = "SELECT 1 AS a, 'x' AS b"
        assert ask(http, sql).text == "1\tx\n"
        assert ask(http, sql, default_format="CSV").text == '1,"x"\n'
        assert (
            http.post("/", content=sql, headers={"X-ClickHouse-Format": "TSKV"}).text
            == "a=1\tb=x\n"
        )
        assert ask(http, f"{sql} FORMAT JSONEachRow", default_format="CSV").json() == {
            "a": 1,
            "b": "x",
        }
        assert (
            http.post("/", params={"query": "SELECT 1 AS a,"}, content="'x' AS b").text == "1\tx\n"
        )

    def test_parameters_come_in_text_form(self, http: httpx.Client) -> None:
        answer = ask(
            http,
            "SELECT {s:String} AS s, {a:Array(String)} AS a, {n:Nullable(Int8)} AS n FORMAT JSON",
            param_s="tab\\there 'q'",
            param_a="['x','y']",
            param_n="\\N",
        )
        assert answer.json()["data"] == [{"s": "tab\there 'q'", "a": ["x", "y"], "n": None}]

    def test_parameters_come_in_a_form(self, http: httpx.Client) -> None:
        fields = {"query": (None, "SELECT {x:UInt8} + 1"), "param_x": (None, "4")}
        assert http.post("/", files=fields).text == "5\n"

    def test_body_may_be_compressed(self, http: httpx.Client) -> None:
        import gzip

        body = gzip.compress(b"SELECT 7")
        answer = http.post("/", content=body, headers={"Content-Encoding": "gzip"})
        assert answer.text == "7\n"

    def test_a_body_that_unpacks_to_too_much_is_refused(self, http: httpx.Client) -> None:
        import gzip

        body = gzip.compress(b"SELECT 1 --" + b" " * 50_000_000)
        answer = http.post("/", content=body, headers={"Content-Encoding": "gzip"})
        assert answer.status_code == 400
        assert "larger than" in answer.text

    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "lz4", "zstd", "br"])
    def test_a_broken_body_is_told_so(self, http: httpx.Client, encoding: str) -> None:
        answer = http.post("/", content=b"\xffnot packed", headers={"Content-Encoding": encoding})
        assert answer.status_code in (400, 500)
        assert answer.text.startswith("Code: ")

    def test_a_broken_address_is_told_so(self, http: httpx.Client) -> None:
        assert http.get("/?query=SELECT+%ff").text.startswith("Code: 62")

    def test_the_hello_of_clickhouse_go_has_the_form_that_it_reads(
        self, http: httpx.Client
    ) -> None:
        answer = ask(
            http,
            "SELECT displayName(), version(), revision(), timezone()",
            default_format="Native",
            client_protocol_version="54460",
        )
        assert answer.content.startswith(b"\x01\x00\x02\xff\xff\xff\xff\x00\x04\x01\rdisplayName()")

    def test_native_blocks_carry_a_right_checksum(self, http: httpx.Client) -> None:
        import struct

        import lz4.block  # type: ignore[import-untyped]
        from clickhouse_cityhash.cityhash import (  # type: ignore[import-untyped]
            CityHash128,
        )

        body = ask(http, "SELECT id FROM seen ORDER BY id", compress="1").content
        method, size, plain_size = struct.unpack_from("<BII", body, 16)
        checksum = CityHash128(body[16 : 16 + size])
        assert struct.unpack("<QQ", body[:16]) == (checksum >> 64, checksum & (2**64 - 1))
        assert method == 0x82
        plain = lz4.block.decompress(body[25 : 16 + size], uncompressed_size=plain_size)
        assert plain.startswith(b"0\n1\n2\n")


class TestTheHost:
    """Nothing that a reader may ask tells of the machine: its name, its folders, its system."""

    @pytest.fixture
    def words(self, engine: Engine) -> set[str]:
        folder = engine.dsn.removeprefix("chdb://")
        return {socket.gethostname(), folder, Path(folder).name, os.uname().release, os.getcwd()}

    def test_no_open_table_does(self, http: httpx.Client, words: set[str]) -> None:
        endless = {"numbers", "numbers_mt", "zeros", "zeros_mt"}
        prose = {"licenses", "contributors", "documentation"}
        for table in ALLOWED_SYSTEM_TABLES - endless - prose:
            answer = ask(http, f"SELECT * FROM system.{table} LIMIT 3000 FORMAT TSV")
            assert answer.status_code == 200, (table, answer.text)
            cells = {cell for line in answer.text.splitlines() for cell in line.split("\t")}
            assert not [cell for cell in cells if any(word in cell for word in words)], table

    def test_no_open_function_does(self, http: httpx.Client, words: set[str]) -> None:
        found = ask(http, "SELECT name FROM system.functions WHERE NOT is_aggregate FORMAT TSV")
        names = found.text.split()
        assert len(names) > 1_000
        refused = 0
        for name in names:
            answer = ask(http, f"SELECT toString(`{name}`())")
            refused += answer.headers.get("X-ClickHouse-Exception-Code") == "497"
            assert not any(word in answer.text for word in words), (name, answer.text)
        assert refused > 50


class TestRefusals:
    @pytest.mark.parametrize(
        ("sql", "code", "status"),
        [
            ("SELEC 1", "62", 400),
            ("SELECT * FROM nowhere", "60", 404),
            ("SELECT nothing FROM seen", "47", 404),
            ("DROP TABLE seen", "164", 403),
            ("INSERT INTO seen (id) VALUES (1)", "164", 403),
            ("SELECT * FROM file('/etc/passwd', 'LineAsString')", "497", 403),
            ("SELECT 1 FORMAT Nonsense", "73", 404),
            ("SELECT 1 SETTINGS readonly = 0", "164", 403),
            ("SELECT 1 SETTINGS max_memory_usage_for_user = 0", "164", 403),
            ("SELECT throwIf(number = 9000) FROM numbers(10000)", "395", 500),
        ],
    )
    def test_errors_look_like_a_servers(
        self, http: httpx.Client, sql: str, code: str, status: int
    ) -> None:
        answer = ask(http, sql)
        assert answer.status_code == status
        assert answer.headers["X-ClickHouse-Exception-Code"] == code
        assert answer.text.startswith(f"Code: {code}. DB::Exception: ")

    def test_nothing_of_a_failed_query_is_in_the_next_answer(self, http: httpx.Client) -> None:
        for _ in range(8):
            assert ask(http, "SELECT throwIf(number = 9000) FROM numbers(10000)").status_code == 500
            assert ask(http, "SELECT 1").text == "1\n"

    def test_time_rows_and_memory_are_bounded(self, http: httpx.Client) -> None:
        slow = "SELECT count() FROM numbers(1000000000000) WHERE sipHash64(number) = 1"
        assert ask(http, slow).headers["X-ClickHouse-Exception-Code"] == "159"
        many = ask(http, "SELECT * FROM numbers(20001)")
        assert many.headers["X-ClickHouse-Exception-Code"] == "396"
        large = ask(http, "SELECT length(groupArray(number)) FROM numbers(100000000)")
        assert large.headers["X-ClickHouse-Exception-Code"] == "241"

    @pytest.mark.parametrize("name", ["max_execution_time", "max_result_rows", "max_memory_usage"])
    @pytest.mark.parametrize("value", ["0", "999999999999"])
    def test_a_client_cannot_lift_a_limit(self, http: httpx.Client, name: str, value: str) -> None:
        usual = ask(http, f"SELECT getSetting('{name}')").text
        assert ask(http, f"SELECT getSetting('{name}')", **{name: value}).text == usual
        in_clause = f"SELECT getSetting('{name}') SETTINGS {name} = {value}"
        assert ask(http, in_clause).text == usual

    def test_a_client_may_tighten_a_limit(self, http: httpx.Client) -> None:
        assert (
            ask(http, "SELECT getSetting('max_execution_time')", max_execution_time="1").text
            == "1\n"
        )

    def test_readonly_holds_whatever_the_client_sends(self, http: httpx.Client) -> None:
        for arguments in ({"readonly": "0"}, {"max_threads": "1', readonly = '0"}):
            answer = ask(http, "SELECT getSetting('readonly')", **arguments)
            assert answer.text == "1\n" or answer.status_code == 400

    def test_settings_that_shape_the_answer_are_taken(self, http: httpx.Client) -> None:
        sql = "SELECT toUInt64(1) AS n FORMAT JSONEachRow"
        plain = ask(http, sql, output_format_json_quote_64bit_integers="1")
        assert plain.json() == {"n": "1"}

    def test_a_setting_that_names_a_file_is_ignored(
        self, http: httpx.Client, tmp_path: Path
    ) -> None:
        target = tmp_path / "schema.capnp"
        ask(http, "SELECT 1 AS a FORMAT Protobuf", output_format_schema=str(target))
        assert not target.exists()

    def test_an_unknown_setting_is_named(self, http: httpx.Client) -> None:
        answer = ask(http, "SELECT 1", no_such_setting="1")
        assert answer.status_code == 404
        assert "no_such_setting" in answer.text

    def test_nothing_is_written_to_disk(self, http: httpx.Client, tmp_path: Path) -> None:
        target = tmp_path / "out.csv"
        answer = ask(http, f"SELECT 1 INTO OUTFILE '{target}'")
        assert answer.status_code == 403
        assert not target.exists()

    @pytest.mark.parametrize("host", ["evil.example:8123", "a{b.evil.example", "[x", ""])
    def test_a_page_under_another_host_name_gets_nothing(
        self, http: httpx.Client, host: str
    ) -> None:
        answer = http.post("/", content="SELECT 1", headers={"Host": host})
        assert answer.status_code == 403

    @pytest.mark.parametrize(
        "headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}], ids=repr
    )
    def test_a_page_of_another_site_may_not_ask(
        self, http: httpx.Client, headers: dict[str, str]
    ) -> None:
        answer = http.get("/", params={"query": "SELECT 1"}, headers=headers)
        assert answer.status_code == 403
        assert "Origin" in answer.text

    @pytest.mark.parametrize("query_id", ["é", "a\nb"])
    def test_a_query_id_that_no_header_carries_is_named(
        self, http: httpx.Client, query_id: str
    ) -> None:
        answer = ask(http, "SELECT 1", query_id=query_id)
        assert answer.status_code == 400
        assert "query_id" in answer.text

    def test_a_database_of_its_own_is_unknown(self, http: httpx.Client) -> None:
        assert ask(http, "SELECT 1", database="nowhere").status_code == 404
        assert ask(http, "SELECT name FROM settings LIMIT 1", database="system").status_code == 200
        assert ask(http, "SELECT * FROM users", database="system").status_code == 403

    def test_password_in_each_of_the_four_ways(self, engine: Engine) -> None:
        running = RunningPort(engine, password="s3cret")
        try:
            with httpx.Client(base_url=running.url) as client:
                assert client.get("/", params={"query": "SELECT 1"}).status_code == 401
                ways: list[dict[str, Any]] = [
                    {"headers": {"X-ClickHouse-Key": "s3cret"}},
                    {"auth": ("default", "s3cret")},
                    {"headers": {"Authorization": "Bearer s3cret"}},
                ]
                for way in ways:
                    assert client.get("/", params={"query": "SELECT 1"}, **way).text == "1\n"
                assert (
                    client.get("/", params={"query": "SELECT 1", "password": "s3cret"}).text
                    == "1\n"
                )
        finally:
            running.stop()

    def test_elsewhere_than_loopback_a_password_is_needed(self, engine: Engine) -> None:
        with pytest.raises(EngineError, match="password"):
            ClickHousePort(engine, host="0.0.0.0", port=0)

    def test_a_taken_port_is_named(self, engine: Engine, served: RunningPort) -> None:
        second = ClickHousePort(engine, port=served.number)
        with pytest.raises(EngineError, match=str(served.number)):
            asyncio.run(second.start())

    def test_many_at_once_are_all_served(self, served: RunningPort) -> None:
        def one(number: int) -> str:
            return httpx.post(served.url, content=f"SELECT {number}", timeout=30).text

        with ThreadPoolExecutor(24) as threads:
            assert list(threads.map(one, range(96))) == [f"{number}\n" for number in range(96)]

    def test_too_many_at_once_are_told_so(self, engine: Engine) -> None:
        running = RunningPort(engine, PortLimits(query_seconds_max=2, queries_max=1, waiting_max=0))
        slow = "SELECT count() FROM numbers(1000000000000) WHERE sipHash64(number) = 1"
        try:
            with ThreadPoolExecutor(4) as threads:
                answers = threads.map(lambda _: httpx.post(running.url, content=slow), range(4))
                codes = sorted(a.headers["X-ClickHouse-Exception-Code"] for a in answers)
        finally:
            running.stop()
        assert codes == ["159", "202", "202", "202"]


class TestEngine:
    def test_parameters_of_python_come_back(self, engine: Engine) -> None:
        values: dict[str, object] = {
            "s": "a\\b\t'\"\n",
            "l": ["x'y", "z"],
            "n": None,
            "i": 2**63,
            "b": True,
        }
        found = engine.query(
            "SELECT {s:String} AS s, {l:Array(String)} AS l, {n:Nullable(String)} AS n,"
            " {i:UInt64} AS i, {b:Bool} AS b",
            values,
        )
        assert found == [values]

    def test_a_repeat_with_the_same_token_changes_nothing(self, engine: Engine) -> None:
        def insert(token: str, first: int) -> None:
            settings = {
                "insert_deduplication_token": token,
                "deduplicate_blocks_in_dependent_materialized_views": 1,
            }
            engine.insert_bytes("seen", seen_rows(first, 1_000), settings=settings)

        def totals() -> tuple[int, int]:
            row = engine.query(
                "SELECT (SELECT count() FROM seen) AS rows,"
                " (SELECT sum(seen_total) FROM per_user) AS s"
            )[0]
            return row["rows"], row["s"]

        before = totals()
        insert("jobs.events:0:0-999", 10_000_000)
        once = totals()
        insert("jobs.events:0:0-999", 10_000_000)
        assert totals() == once == (before[0] + 1_000, before[1] + 1_000)
        insert("jobs.events:0:1000-1999", 10_000_000)
        assert totals() == (before[0] + 2_000, before[1] + 2_000)
        engine.command("DELETE FROM seen WHERE id >= 10000000")

    def test_bad_rows_are_refused_whole(self, engine: Engine) -> None:
        before = engine.query("SELECT count() AS n FROM seen")
        with pytest.raises(EngineError) as caught:
            engine.insert_bytes("seen", seen_rows(20_000_000, 10) + b'\n{"id": "x"}')
        assert not caught.value.is_retryable
        assert engine.query("SELECT count() AS n FROM seen") == before

    def test_reads_go_on_while_rows_come_in(self, engine: Engine) -> None:
        def insert(batch: int) -> int:
            return engine.insert_bytes("seen", seen_rows(30_000_000 + batch * 1_000, 1_000))

        with ThreadPoolExecutor(4) as threads:
            inserts = [threads.submit(insert, batch) for batch in range(20)]
            reads = [
                threads.submit(engine.query, "SELECT count() AS n FROM seen") for _ in range(60)
            ]
            assert all(found.result()[0]["n"] >= ROWS for found in reads)
            assert all(done.result() >= 1_000 for done in inserts)
        found = engine.query("SELECT count() AS n FROM seen WHERE id >= 30000000")
        assert found == [{"n": 20_000}]
        engine.command("DELETE FROM seen WHERE id >= 30000000")

    def test_another_process_is_told_who_holds_the_folder(self, engine: Engine) -> None:
        code = (
            "import sys; from tidemill.agents.clickhouse.engine import open_engine\n"
            "try: open_engine(sys.argv[1])\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        import os

        done = subprocess.run(
            [sys.executable, "-c", code, engine.dsn], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.startswith(EngineUnavailable.__name__)
        assert f"pid {os.getpid()}" in done.stdout

    def test_the_same_folder_is_shared_and_another_refused(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        again = open_engine(engine.dsn)
        again.close()
        assert engine.query("SELECT 1 AS a") == [{"a": 1}]
        with pytest.raises(EngineError, match="one folder per process"):
            open_engine(f"chdb://{tmp_path}")

    def test_the_server_adapter_reads_the_port(self, served: RunningPort) -> None:
        server = open_engine(f"http://default@127.0.0.1:{served.number}/default")
        try:
            assert server.query(
                "SELECT count() AS n FROM seen WHERE user_id = {u:String}", {"u": "x"}
            ) == [{"n": 0}]
            with pytest.raises(EngineError) as caught:
                server.insert_bytes("seen", b'{"id": 1}')
            assert caught.value.code == 164
        finally:
            server.close()

    def test_a_server_that_is_away_is_retryable(self) -> None:
        with pytest.raises(EngineUnavailable):
            open_engine("http://user:hidden@127.0.0.1:9/default")

    @pytest.mark.parametrize(
        "dsn", ["chdb://relative", "chdb:///a\0b", "mysql://x", "http:///nothing"]
    )
    def test_a_wrong_dsn_says_what_to_write(self, dsn: str) -> None:
        with pytest.raises(EngineError, match="clickhouse DSN"):
            open_engine(dsn)


class TestMigrations:
    def write(self, folder: Path, name: str, sql: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(sql, "utf-8")

    def test_each_runs_once_and_in_order(self, engine: Engine, tmp_path: Path) -> None:
        engine.command("DROP TABLE IF EXISTS schema_migrations")
        self.write(tmp_path, "0002_fill.sql", "INSERT INTO made SELECT 'a;b' -- ; no end\n;")
        self.write(
            tmp_path,
            "0001_make.sql",
            "CREATE TABLE made (a String) ENGINE = MergeTree ORDER BY a; /* ; */",
        )
        assert pending_migrations(engine, tmp_path) == ["0001_make", "0002_fill"]
        assert migrate(engine, tmp_path) == ["0001_make", "0002_fill"]
        assert migrate(engine, tmp_path) == []
        assert engine.query("SELECT a FROM made") == [{"a": "a;b"}]

        self.write(tmp_path, "0001_make.sql", "SELECT 1")
        with pytest.raises(MigrationError, match="0001_make was changed"):
            migrate(engine, tmp_path)
        (tmp_path / "0001_make.sql").unlink()
        with pytest.raises(MigrationError, match="upgrade tidemill"):
            pending_migrations(engine, tmp_path)
        engine.command("DROP TABLE schema_migrations")
        engine.command("DROP TABLE made")

    def test_a_failing_statement_is_named_and_not_recorded(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        self.write(tmp_path, "0001_bad.sql", "SELECT 1; SELECT nothing_here;")
        with pytest.raises(MigrationError, match="0001_bad, statement 2"):
            migrate(engine, tmp_path)
        assert pending_migrations(engine, tmp_path) == ["0001_bad"]
        engine.command("DROP TABLE schema_migrations")

    @pytest.mark.parametrize("name", ["1_short.sql", "0001-dash.sql", "0001_Upper.sql"])
    def test_a_badly_named_file_is_refused(self, engine: Engine, tmp_path: Path, name: str) -> None:
        self.write(tmp_path, name, "SELECT 1")
        with pytest.raises(MigrationError, match="NNNN_"):
            migrate(engine, tmp_path)
