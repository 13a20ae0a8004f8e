"""The sink's processes: the sink alone, or with page, API and ClickHouse port around one folder.

Owns the wiring, the wait for ClickHouse at the start, and the order of start and stop. Refuses to
know how rows get in (`writer`), what the page shows (`tidemill.agents.api`) and what a reader may
ask (`tidemill.agents.clickhouse`).

The sink yields to everything else (`NICENESS`): on a small machine the ledger, the workers and the
broker get the processor first, and the rows catch up when there is time. No job waits for it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, Final

from tidemill.agents import exit_codes
from tidemill.agents.callers import http_address
from tidemill.agents.clickhouse.engine import CHDB_SCHEME, Engine, EngineError, open_engine
from tidemill.agents.clickhouse.migrate import MigrationError, migrate
from tidemill.agents.clickhouse.port import ClickHousePort
from tidemill.agents.clickhouse.soundness import (
    DamagedStore,
    losses,
    refuse_missing_tables,
    way_out,
)
from tidemill.agents.logging import announce_ready, configure_logging
from tidemill.agents.runtime.app import RoleApp, create_app
from tidemill.agents.runtime.chunk import Chunk
from tidemill.agents.runtime.inputs import Gap, InputPolicy
from tidemill.agents.runtime.producer import BatchProducer, CallThread
from tidemill.agents.runtime.run import WatchdogLimits, run_app
from tidemill.agents.settings import DEFAULT_HOST, SettingsError, SinkSettings, StackSettings
from tidemill.agents.sink.batches import BatchLimits
from tidemill.agents.sink.feeds import events_of, refused_of
from tidemill.agents.sink.intents import Intents
from tidemill.agents.sink.reread import read_record
from tidemill.agents.sink.store import Store
from tidemill.agents.sink.writer import SinkWriter
from tidemill.agents.topics import await_topics, check_partitions, end_on_conflict
from tidemill.schemas.topics import Topics

logger = logging.getLogger("tidemill.sink")

# Records are no cycles: they die by their count, and looking at them again and again costs a tenth.
GC_THRESHOLDS: Final = (50_000, 20, 100)
# Of 20: a quarter of the others' share on a busy machine, so that it comes last and never starves.
NICENESS: Final = 6
AUTOGROUP: Final = Path("/proc/self/autogroup")
# Records of a chunk: they are only handed on, so large chunks cost the loop little.
CHUNK_RECORDS_MAX: Final = 5_000
# Of one partition: more than ever fit its bytes.
UNACKED_RECORDS_MAX: Final = 10_000_000
# Bytes of one partition that wait or are on their way: twice the largest batch, so that the next
# one gathers while one is inserted, and so that a batch that was begun always fits.
PARTITION_BYTES_MAX: Final = 32 * 1024 * 1024
# How often a ClickHouse that is away at the start is tried.
OPEN_RETRY_SECONDS: Final = 2.0
# How often it is looked whether records flow yet.
FLOW_POLL_SECONDS: Final = 0.05
# A batch is a second's worth or many rows: nobody waits for the next event. Fetching each commit of
# the ledger by itself cost a third of the sink's processor time at 200 jobs/s, and the broker's.
FETCH_BYTES_MIN: Final = 1_048_576
# A folder that another process holds: long enough for one that is just ending.
FOLDER_WAIT_SECONDS: Final = 10.0
# The port's thread must serve by then.
PORT_START_SECONDS: Final = 15.0
ERROR_LENGTH_MAX: Final = 1_500  # characters of what ClickHouse says at a start that fails
# All roles of `tidemill dev` share 10 s for their stop.
STOP_SECONDS_MAX: Final = 6.0


def open_migrated(dsn: str, *, give_up_seconds: float | None) -> Engine:
    """The engine with every migration applied; waits while it is away.

    `give_up_seconds` None waits for ever: jobs do not need ClickHouse, and neither does the log.
    """
    begun = time.monotonic()
    while True:
        try:
            engine = open_engine(dsn)
            applied, lost = _made_ready(engine)
        except EngineError as error:
            waited = time.monotonic() - begun
            if not error.is_retryable or (give_up_seconds is not None and waited > give_up_seconds):
                raise
            logger.warning("ClickHouse is not there yet, trying again: %s", error)
            time.sleep(OPEN_RETRY_SECONDS)
        else:
            if applied:
                logger.info("migrations applied: %s", ", ".join(applied))
            if lost:
                logger.error("rows are missing: %s; %s", "; ".join(lost), way_out(engine.dsn))
            return engine


def _made_ready(engine: Engine) -> tuple[list[str], list[str]]:
    """What was migrated, and what the store has lost."""
    try:
        applied = migrate(engine)
        refuse_missing_tables(engine)
        return applied, losses(engine.query)
    except EngineError as error:
        if error.is_retryable or isinstance(error, MigrationError | DamagedStore):
            raise
        raise DamagedStore(
            f"{engine.dsn} cannot be used ({error.message}); {way_out(engine.dsn)}"
        ) from error


def build_sink(settings: SinkSettings, engine: Engine) -> RoleApp:
    """The Faust app of the sink, over an engine that is migrated. Needs a running event loop."""
    topics = Topics(settings.topic_prefix)
    app = create_app(
        f"{settings.topic_prefix}tidemill-sink",
        kafka=settings.kafka,
        partitions=settings.partitions,
        instance_id=settings.instance_id or f"{socket.gethostname()}-{os.getpid()}",
    )
    app.on_counts = partial(end_on_conflict, topics, settings.partitions)
    app.fetch_bytes_min = FETCH_BYTES_MIN
    feeds, thread = (events_of(topics), refused_of(topics)), CallThread("sink-insert")
    store = Store(engine, feeds, thread, partial(read_record, settings.kafka))
    intents = Intents(app, store)
    batch_producer = BatchProducer(settings.kafka, "tidemill-sink")
    writers = [
        SinkWriter(
            app, engine, batch_producer, feed, intents=intents, store=store, thread=thread,
            dead_topic=topics.dead, partitions=settings.partitions,
            limits=BatchLimits(settings.batch_rows, settings.batch_seconds),
        )
        for feed in feeds
    ]
    for writer in writers:
        _read_for(app, writer)

    async def finish() -> None:
        await asyncio.gather(*(writer.finish() for writer in writers))

    async def stop() -> None:
        await asyncio.gather(*(writer.stop() for writer in writers))
        thread.close()

    def note_gap(gap: Gap) -> None:
        for writer in writers:
            if writer.topic == gap.topic:
                writer.note_gap(gap)

    app.on_gap, app.other_places = note_gap, store.places
    app.commit_offsets, app.before_revoke, app.before_stop = intents.commit, finish, stop
    return app


def _read_for(app: RoleApp, writer: SinkWriter) -> None:
    """Declare the topic of a writer and the agent that gives it chunks."""
    policy = InputPolicy(
        chunk_records_max=CHUNK_RECORDS_MAX,
        # The bound in bytes holds. One of records might be below a batch that was begun under
        # other settings, whose rest would never come.
        unacked_records_max=UNACKED_RECORDS_MAX,
        unacked_bytes_max=PARTITION_BYTES_MAX,
        credit=writer.credit,
        is_gap_fatal=False,
        may_pass=writer.may_pass,
    )

    async def take(stream: Any) -> None:
        chunk: Chunk
        async for chunk in stream:
            writer.add(chunk)

    app.agent(app.input_topic(writer.topic, policy), name=f"take-{writer.topic}")(take)


class PortThread:
    """The ClickHouse port in an event loop of its own, so that no insert makes a reader wait."""

    def __init__(
        self, engine: Engine, host: str, port: int, allowed_hosts: Collection[str] = ()
    ) -> None:
        self._port = ClickHousePort(engine, host=host, port=port, allowed_hosts=allowed_hosts)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="tidemill-clickhouse", daemon=True
        )

    @property
    def url(self) -> str:
        return self._port.url

    def start(self) -> None:
        """Return once it serves; raises EngineError when the address is taken."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._port.start(), self._loop).result(PORT_START_SECONDS)

    def stop(self) -> None:
        """Finish what is in flight, then end the thread."""
        try:
            asyncio.run_coroutine_threadsafe(self._port.stop(), self._loop).result(
                STOP_SECONDS_MAX
            )
        except TimeoutError:
            logger.warning("queries still ran when the ClickHouse port was stopped")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)


def _announcing(app: RoleApp, **fields: Any) -> asyncio.Task[None]:
    """Say that the role is ready once records flow."""

    async def announce() -> None:
        while not app.is_serving:  # noqa: ASYNC110  # Faust has no such event
            await asyncio.sleep(FLOW_POLL_SECONDS)
        announce_ready("sink", **fields)

    return asyncio.create_task(announce())


def _run(settings: SinkSettings, engine: Engine, **ready_fields: Any) -> int:
    announcing: list[asyncio.Task[None]] = []
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)

    topics = Topics(settings.topic_prefix)
    await_topics(settings.kafka, topics, (topics.events, topics.dead), logger.warning)
    check_partitions(settings.kafka, topics, settings.partitions)

    def build() -> RoleApp:
        app = build_sink(settings, engine)
        announcing.append(_announcing(app, **ready_fields))
        return app

    limits = WatchdogLimits(loop_seconds=lambda: settings.stall_seconds)
    return run_app(build, stop_seconds_max=STOP_SECONDS_MAX, limits=limits)


def _yield_to_others() -> None:
    """Come last for the processor, among all processes and not only those of our session.

    Linux shares the processor between sessions first (autogroup) and heeds a process's own number
    within its session only. `tidemill dev` gives each role a session, so there the number of the
    session counts; one that is not ours alone, such as a terminal's, is left as it is.
    """
    os.nice(NICENESS)
    if os.getsid(0) != os.getpid():
        return
    try:
        AUTOGROUP.write_text(str(NICENESS))
    except OSError as error:
        logger.debug("%s: %s", AUTOGROUP, error)  # another system, or switched off


def run_sink(settings: SinkSettings) -> int:
    """Run the sink until SIGTERM or SIGINT; returns the exit code."""
    configure_logging("sink", settings.log_format, settings.log_level)
    _yield_to_others()
    is_folder = settings.clickhouse.startswith(CHDB_SCHEME)
    try:
        engine = open_migrated(
            settings.clickhouse, give_up_seconds=FOLDER_WAIT_SECONDS if is_folder else None
        )
    except EngineError as error:
        logger.error("the sink cannot start: %s", _first_line(error))
        return _start_code(error)
    code = _run(settings, engine)
    _close(engine)
    return code


def run_stack(settings: StackSettings) -> int:
    """Run sink, page, API and ClickHouse port in this process; returns the exit code."""
    configure_logging("sink", settings.log_format, settings.log_level)
    _yield_to_others()
    # Late, since the sink alone needs no web framework.
    from tidemill.agents.api.main import ApiServer, build_api

    try:
        engine = open_migrated(settings.clickhouse, give_up_seconds=FOLDER_WAIT_SECONDS)
        port = PortThread(
            engine, DEFAULT_HOST, settings.clickhouse_port, settings.allowed_hosts
        )
        port.start()
        api = ApiServer(build_api(engine, settings), settings.http_host, settings.http_port)
        api.start()
    except (EngineError, SettingsError) as error:
        logger.error("the stack cannot start: %s", _first_line(error))
        return _start_code(error)
    http = http_address(settings.http_host, api.port)
    code = _run(settings, engine, clickhouse=port.url, http=http)
    # Readers first: they hold queries open over the engine.
    api.stop()
    port.stop()
    _close(engine)
    return code


def _first_line(error: Exception) -> str:
    """ClickHouse's own errors end with pages of its stack."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:ERROR_LENGTH_MAX] if lines else repr(error)


def _start_code(error: EngineError | SettingsError) -> int:
    """What will be the same at the next start ends all; what may pass is tried again."""
    if isinstance(error, DamagedStore):
        return exit_codes.DAMAGED
    passes = isinstance(error, EngineError) and error.is_retryable
    return exit_codes.FAILED if passes else exit_codes.CONFIG


def _close(engine: Engine) -> None:
    try:
        engine.close()
    except EngineError as error:
        logger.warning("%s", error.message)
