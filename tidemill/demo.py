"""`make demo`: the main job on real dialogues, from a request to SQL.

Owns the story: real dialogues become chat messages, each message asks for a profile of its writer,
a stranger's consumer reads the ends, and ClickHouse answers what happened. Refuses to know how the
engine works: it starts `tidemill dev`, and uses `tidemill.Client`, a plain Kafka consumer and SQL.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, Final

import yaml
from confluent_kafka import Consumer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tidemill import Client, JobHandle, Request
from tidemill.agents.runtime.clients import take_arrived
from tidemill.demo_profile import HISTORY_MESSAGES

LANGUAGES: Final = ("english", "german", "french", "spanish", "italian")
USERS: Final = 600  # writers that the dialogues are dealt to
JOB_TYPE: Final = "analysis.profile"
DATA: Final = Path(".tidemill") / "demo"
MARKER: Final = "made-by-demo"  # in a folder that the demo may delete
START_SECONDS_MAX: Final = 120.0
RUN_SECONDS_MAX: Final = 180.0
CLICKHOUSE_SECONDS_MAX: Final = 60.0
STOP_SECONDS_MAX: Final = 15.0
POLL_SECONDS: Final = 0.1
BATCH_RECORDS_MAX: Final = 500  # ends taken from the client at once; the bar moves between two
ROLES: Final = ("broker", "ledger", "stack", "worker")
DEFAULT_PORTS: Final = {"--kafka-port": 9092, "--clickhouse-port": 8123, "--http-port": 8080}

console: Final = Console()


class DemoError(Exception):
    """The demo did not work out; the text says where."""


@dataclass(frozen=True, slots=True)
class Message:
    """One line of a dialogue, as a chat message."""

    user_id: str
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the stack serves."""

    kafka: str
    clickhouse: str
    http: str


# -- real dialogues --------------------------------------------------------------------------------


def read_messages() -> list[Message]:
    """Every line of the data set's dialogues in `LANGUAGES`, with a writer that we assign.

    The two sides of a dialogue are two users. Who they are depends on the dialogue's text alone,
    so that every run deals the same.
    """
    messages = []
    for language in LANGUAGES:
        for dialogue in _dialogues(language):
            digest = hashlib.sha256("\n".join(dialogue).encode()).digest()
            sides = [int.from_bytes(digest[:4]) % USERS, int.from_bytes(digest[4:8]) % USERS]
            for number, line in enumerate(dialogue):
                messages.append(Message(f"user-{sides[number % 2]:03d}", language, line))
    return messages


def _dialogues(language: str) -> Iterator[list[str]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    folder = files("chatterbot_corpus") / "data" / language
    for path in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if path.name.endswith(".yml"):
            document = yaml.load(path.read_text(encoding="utf-8"), loader)
            for dialogue in document["conversations"]:
                yield [str(line) for line in dialogue]


def requests_of(messages: list[Message]) -> Iterator[Request]:
    """A request for each message: profile its writer, from this and the messages before it."""
    histories: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=HISTORY_MESSAGES))
    for message in messages:
        history = histories[message.user_id]
        history.append(message.text)
        yield Request(
            type=JOB_TYPE,
            user_id=message.user_id,
            payload={"messages": list(history), "language": message.language},
            source="demo",
            tags=("chat", message.language),
        )


# -- the stack -------------------------------------------------------------------------------------


@contextmanager
def running_stack(data: Path) -> Iterator[Addresses]:
    """`tidemill dev` as a user starts it, on its default ports where they are free."""
    _make_fresh(data)
    command = [sys.executable, "-m", "tidemill", "dev", "tidemill.demo_profile"]
    command += ["--data", str(data)]
    for option, port in DEFAULT_PORTS.items():
        command += [option, str(port if _is_free(port) else 0)]
    log = data / "dev.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        yield _wait_ready(process, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _make_fresh(data: Path) -> None:
    """A folder of an earlier demo goes away: its users have used up their limits."""
    if data.exists():
        if not (data / MARKER).exists() and any(data.iterdir()):
            raise DemoError(f"{data} is not the demo's own folder; move it away")
        shutil.rmtree(data)
    data.mkdir(parents=True)
    (data / MARKER).touch()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _wait_ready(process: subprocess.Popen[str], log: Path) -> Addresses:
    """The ready line, with a bar that follows the roles."""
    assert process.stdout is not None
    with _bar("starting Kafka, ledger, worker, ClickHouse", len(ROLES)) as (bar, task):
        reader = _LineReader(process.stdout)
        deadline = time.monotonic() + START_SECONDS_MAX
        while (line := reader.line) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise DemoError(f"the stack did not start; {log} ends with:\n{tail}")
            text = log.read_text(errors="replace")
            bar.update(task, completed=sum(f"{role} is ready" in text for role in ROLES))
            time.sleep(POLL_SECONDS)
        bar.update(task, completed=len(ROLES))
    words = dict(word.split("=", 1) for word in line.split()[1:])
    return Addresses(words["kafka"], words["clickhouse"], words["http"])


class _LineReader:
    """The first line of a stream, without waiting for it."""

    def __init__(self, stream: IO[str]) -> None:
        import threading

        self.line: str | None = None
        self._stream = stream
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._stream:
            if line.startswith("ready ") and self.line is None:
                self.line = line


# -- jobs ------------------------------------------------------------------------------------------


def ask(kafka: str, messages: list[Message]) -> list[JobHandle]:
    """Request a profile for every message."""
    with _bar("requesting profiles", len(messages)) as (bar, task), Client(kafka) as client:

        def counted() -> Iterator[Request]:
            for request in requests_of(messages):
                bar.advance(task)
                yield request

        return client.enqueue_many(counted())


def read_ends(kafka: str, handles: list[JobHandle]) -> list[dict[str, Any]]:
    """The ends of these jobs from `jobs.completed`, as any Kafka program would read them."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": f"demo-{uuid.uuid4()}",
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe(["jobs.completed"])
    waiting = {handle.job_id for handle in handles}
    ends: list[dict[str, Any]] = []
    deadline = time.monotonic() + RUN_SECONDS_MAX
    try:
        with _bar("running jobs", len(handles)) as (bar, task):
            while waiting:
                if time.monotonic() > deadline:
                    raise DemoError(f"{len(waiting)} jobs had not ended in {RUN_SECONDS_MAX:g} s")
                for record in take_arrived(consumer, BATCH_RECORDS_MAX, POLL_SECONDS):
                    if record.error() is not None:
                        raise DemoError(f"reading jobs.completed: {record.error()}")
                    end = json.loads(record.value() or b"{}")
                    if end["job_id"] not in waiting:
                        raise DemoError(f"job {end['job_id']} ended twice or is not ours")
                    waiting.remove(end["job_id"])
                    ends.append(end)
                bar.update(task, completed=len(ends))
    finally:
        consumer.close()
    return ends


# -- ClickHouse ------------------------------------------------------------------------------------


def select(clickhouse: str, sql: str) -> list[dict[str, Any]]:
    """Rows of a SELECT, over ClickHouse's HTTP interface."""
    url = f"{clickhouse}/?default_format=JSONEachRow&output_format_json_quote_64bit_integers=0"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data=sql.encode()), timeout=30) as answer:
        return [json.loads(line) for line in answer.read().splitlines()]


ENDED: Final = "event IN ('succeeded', 'failed', 'cancelled', 'skipped', 'expired')"

BY_STATUS: Final = """
SELECT status, reason, count() AS jobs, round(100 * jobs / sum(jobs) OVER (), 1) AS percent
FROM jobs GROUP BY status, reason ORDER BY jobs DESC
"""
THROUGHPUT: Final = f"""
SELECT toString(toStartOfSecond(occurred_at)) AS second, countIf(event = 'requested') AS requested,
    countIf({ENDED}) AS ended, bar(ended, 0, 4000, 30) AS jobs_per_second
FROM job_events WHERE event = 'requested' OR {ENDED} GROUP BY second ORDER BY second
"""
ERRORS: Final = """
SELECT type, error_code, count() AS jobs, any(error_message) AS example,
    round(100 * jobs / (SELECT count() FROM jobs WHERE attempts > 0), 2) AS percent_of_run
FROM jobs WHERE status = 'failed' GROUP BY type, error_code ORDER BY jobs DESC
"""
LATENCY: Final = """
SELECT time, round(q[1], 1) AS p50_ms, round(q[2], 1) AS p95_ms, round(q[3], 1) AS p99_ms FROM
(
    SELECT 'wait: request to start' AS time, quantiles(0.5, 0.95, 0.99)(wait_ms) AS q
    FROM jobs WHERE attempts > 0
    UNION ALL
    SELECT 'run: start to end' AS time, quantiles(0.5, 0.95, 0.99)(run_ms) AS q
    FROM jobs WHERE attempts > 0
) ORDER BY time DESC
"""


def wait_for_clickhouse(clickhouse: str, expected: Counter[str]) -> float:
    """Wait until ClickHouse counts the same ends as we read; how long that took, in seconds.

    The ends are counted in the log of transitions, so that a second end of a job would show.
    """
    begun = time.monotonic()
    sql = f"SELECT event AS status, count() AS jobs FROM job_events WHERE {ENDED} GROUP BY event"
    with _bar("ClickHouse catching up", expected.total()) as (bar, task):
        while True:
            counts = Counter({row["status"]: row["jobs"] for row in select(clickhouse, sql)})
            bar.update(task, completed=sum(counts[status] for status in expected))
            if counts == expected:
                return time.monotonic() - begun
            if time.monotonic() - begun > CLICKHOUSE_SECONDS_MAX:
                raise DemoError(f"ClickHouse counts {dict(counts)}, we read {dict(expected)}")
            time.sleep(POLL_SECONDS)


def report(clickhouse: str, ends: list[dict[str, Any]]) -> None:
    """The answers, each from ClickHouse but the last, which is from the results themselves."""
    _show("Jobs by status", select(clickhouse, BY_STATUS))
    _show("Throughput per second", select(clickhouse, THROUGHPUT))
    _show("Error rate by type and code", select(clickhouse, ERRORS))
    _show("Wait and run times", select(clickhouse, LATENCY))
    _show("What the profiles say, by language (from jobs.completed)", _by_language(ends))


def _by_language(ends: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for end in ends:
        if end["status"] == "succeeded":
            groups[end["result"]["language"]].append(end["result"])
    rows = []
    for language, results in sorted(groups.items(), key=lambda item: -len(item[1])):
        moods = [one["sentiment"] for one in results if one["sentiment"] is not None]
        rows.append(
            {
                "language": language,
                "profiles": len(results),
                "with a mood": len(moods),
                "mean mood": round(sum(moods) / len(moods), 3) if moods else None,
                "words a line": _mean(results, "words_per_message"),
                "diversity": _mean(results, "lexical_diversity"),
                "questions": _mean(results, "question_rate"),
            }
        )
    return rows


def _mean(results: list[dict[str, Any]], name: str) -> float:
    return float(round(sum(one[name] for one in results) / len(results), 3))


# -- on the screen ---------------------------------------------------------------------------------


@contextmanager
def _bar(title: str, total: int) -> Iterator[tuple[Progress, Any]]:
    columns = (
        TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield bar, bar.add_task(title, total=total)


def _show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for name in rows[0] if rows else ("nothing",):
        is_number = bool(rows) and isinstance(rows[0][name], int | float)
        table.add_column(name, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console.print()
    console.print(table)


def _fetch_broker() -> None:
    """Kafka's jars, with a bar of their own when they are not there yet."""
    from tidemill.agents.embedded.jars import ensure_jars
    from tidemill.agents.embedded.java import find_java

    find_java()
    ensure_jars(("broker",))


def run(data: Path) -> None:
    """The whole story. Raises DemoError."""
    begun = time.monotonic()
    messages = read_messages()
    users = {message.user_id for message in messages}
    console.print(
        f"{len(messages):,} real chat lines in {len(LANGUAGES)} languages from chatterbot-corpus, "
        f"dealt to {len(users)} users.\n[dim]The dialogues are real; which user wrote which line "
        "is our assignment (a hash of the dialogue).[/dim]"
    )
    _fetch_broker()
    with running_stack(data) as stack:
        console.print(f"[dim]kafka {stack.kafka}  sql {stack.clickhouse}  page {stack.http}[/dim]")
        handles = ask(stack.kafka, messages)
        ends = read_ends(stack.kafka, handles)
        expected = Counter(str(end["status"]) for end in ends)
        lag = wait_for_clickhouse(stack.clickhouse, expected)
        report(stack.clickhouse, ends)
        ran = sum(end["attempts"] > 0 for end in ends)
        console.print(
            f"\n{len(handles):,} jobs requested, {ran:,} ran, {expected['skipped']:,} skipped; "
            f"each ended exactly once. ClickHouse had the same counts {lag:.1f} s after the last."
        )
    console.print(
        f"{time.monotonic() - begun:.0f} s in all. To look around: "
        f"tidemill dev tidemill.demo_profile --data {data}"
    )


def main() -> int:
    """Run in the current folder; the exit code."""
    try:
        run(DATA)
    except DemoError as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
