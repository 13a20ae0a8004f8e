"""Options that several commands share, spelled once.

Owns names and help texts. None always means "not given": then environment and default decide.
"""

from __future__ import annotations

from typing import Annotated

import typer

Kafka = Annotated[
    str | None, typer.Option("--kafka", metavar="HOST:PORT", help="Kafka's bootstrap servers.")
]
ClickHouse = Annotated[
    str | None,
    typer.Option("--clickhouse", metavar="DSN", help="http://HOST:PORT or chdb:///FOLDER."),
]
TopicPrefix = Annotated[
    str | None, typer.Option("--topic-prefix", help="In front of every topic.")
]
Partitions = Annotated[
    int | None, typer.Option("--partitions", help="Partitions of the ledger's topics.")
]
# Text and not a path: an empty one is no folder, and a path of it would be the current one.
Data = Annotated[
    str | None, typer.Option("--data", metavar="DIR", help="Folder of the embedded stack.")
]
HttpHost = Annotated[
    str | None, typer.Option("--http-host", help="Address of page and API; loopback by default.")
]
HttpPort = Annotated[int | None, typer.Option("--http-port", help="Port of page and API.")]
ClickHousePort = Annotated[
    int | None, typer.Option("--clickhouse-port", help="Port of the embedded ClickHouse.")
]
KafkaPort = Annotated[
    int | None, typer.Option("--kafka-port", help="Port of the embedded Kafka; 0: any free one.")
]
Modules = Annotated[
    list[str],
    typer.Argument(metavar="MODULE...", help="Dotted names or paths of .py files with handlers."),
]
StopGrace = Annotated[
    float | None,
    typer.Option("--stop-grace-seconds", help="How long running jobs may finish on a stop."),
]
LogFormat = Annotated[
    str | None, typer.Option("--log-format", help="console for people, json for machines.")
]
LogLevel = Annotated[str | None, typer.Option("--log-level", help="debug, info, warning, error.")]
InstanceId = Annotated[
    str | None,
    typer.Option("--instance-id", help="Name of this process, the same after a restart."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
