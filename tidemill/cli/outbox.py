"""`tidemill outbox`: the relay of an application's outbox, and what waits in it.

Owns the options and what is shown. Refuses to know how rows are sent (`tidemill.outbox`).
"""

from __future__ import annotations

import dataclasses
import signal
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.agents import exit_codes
from tidemill.cli import options as o
from tidemill.cli.output import CliError, print_json, print_table

if TYPE_CHECKING:
    from tidemill.outbox.store import Store

app = typer.Typer()
outbox_app = typer.Typer(
    help="Jobs that are rows of an application's own database.", no_args_is_help=True
)

SHOWN_REFUSED = 20  # rows

Database = Annotated[
    str,
    typer.Option(
        "--database", metavar="DSN", envvar="TIDEMILL_OUTBOX_DATABASE",
        help="postgresql+psycopg://USER:PASSWORD@HOST/NAME or sqlite:///FILE. The variable keeps "
        "the password off the command line.",
    ),
]


def _loaded(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise CliError(
            f"{error}; install the outbox's libraries with: pip install 'tidemill[outbox]'",
            exit_codes.CONFIG,
        ) from error


@outbox_app.command("relay")
def relay(
    database: Database,
    kafka: o.Kafka = None,
    topic_prefix: o.TopicPrefix = None,
    log_format: o.LogFormat = None,
    log_level: o.LogLevel = None,
) -> None:
    """Send what stands in the outbox, until it is stopped. Any number may run."""
    from tidemill.agents import own_streams
    from tidemill.agents.logging import configure_logging
    from tidemill.agents.settings import CommonSettings, load

    own_streams.keep()
    settings = load(
        CommonSettings, kafka=kafka, topic_prefix=topic_prefix, log_format=log_format,
        log_level=log_level,
    )
    configure_logging("outbox", settings.log_format, settings.log_level)
    relay = _loaded("tidemill.outbox.relay").Relay(
        database, kafka=settings.kafka, topic_prefix=settings.topic_prefix
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # In a thread: the handler may come while this one holds the lock that a stop needs.
        signal.signal(number, lambda *_: threading.Thread(target=relay.stop).start())
    relay.run()


@outbox_app.command("status")
def status(database: Database, as_json: o.AsJson = False) -> None:
    """How many rows wait and since when, and those that can never be sent."""
    store_module = _loaded("tidemill.outbox.store")
    store: Store = store_module.Store(store_module.open_engine(database))
    store.check()
    lag = dataclasses.asdict(store.lag())
    refused = store.refused(SHOWN_REFUSED)
    if as_json:
        print_json(lag | {"refused_rows": refused})
        return
    print_table([lag], list(lag))
    if refused:
        print_table(refused, list(refused[0]), title="\nnever to be sent: mend or delete these")


@outbox_app.command("ddl")
def ddl(
    dialect: Annotated[
        str, typer.Argument(metavar="DIALECT", help="postgresql or sqlite.")
    ] = "postgresql",
) -> None:
    """Print the statement that creates the table, for a migration."""
    try:
        print(_loaded("tidemill.outbox.table").ddl(dialect), end="")
    except ValueError as error:
        raise CliError(str(error), exit_codes.USAGE) from None


app.add_typer(outbox_app, name="outbox", rich_help_panel="Run")
