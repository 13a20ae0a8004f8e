"""`tidemill jobs show`: a job with its payload, progress, result, last trace, and its story.

Owns what is shown and in which order. Refuses to know SQL (`tidemill.history`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Final

import orjson
import typer

from tidemill.agents import exit_codes
from tidemill.agents.plain_text import LINES, plain
from tidemill.cli import options as o
from tidemill.cli.jobs import clickhouse_address, jobs_app
from tidemill.cli.output import CliError, print_json, print_table

STORY_COLUMNS: Final = (
    "occurred_at", "event", "run", "attempt", "state_after", "reason", "error_code",
    "error_message", "worker_id", "wait_ms", "run_ms",
)
STORY_SPARE: Final = ("run_ms", "wait_ms", "worker_id", "run", "state_after", "error_code")
app = typer.Typer()  # it has no commands beside those of `jobs`

PARTS: Final = (("payload", "Payload"), ("progress", "Progress"), ("result", "Result"))


@jobs_app.command("show")
def show_job(
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID")],
    user: Annotated[
        str | None, typer.Option("--user", help="Whose job; needed when several used the id.")
    ] = None,
    clickhouse: o.ClickHouse = None,
    as_json: o.AsJson = False,
) -> None:
    """One job: its latest state, payload, progress, result and trace, and its story."""
    from tidemill.history import job_details, job_rows, story_rows

    address = clickhouse_address(clickhouse)
    found = job_rows(address, job_id, user)
    if not found:
        raise CliError(
            f"no job {job_id!r}" + (f" of user {user!r}" if user else "") + " in ClickHouse; a "
            "job that was asked for a moment ago may take seconds to be there",
            exit_codes.NOT_FOUND,
        )
    users = sorted({row["user_id"] for row in found})
    if len(users) > 1:
        raise CliError(
            f"several users have a job {job_id!r}: {', '.join(users[:10])}; choose with --user",
            exit_codes.CONFLICT,
        )
    details = job_details(address, job_id, users[0], found[0]["incarnation"])
    story = story_rows(address, job_id, users[0])
    if as_json:
        print_json({"job": found[0], **details, "events": story})
        return
    _print(found[0], details, story)


def _print(
    job: Mapping[str, Any], details: Mapping[str, Any], story: list[dict[str, Any]]
) -> None:
    print_table(
        [{"field": name, "value": value} for name, value in job.items() if value not in ("", None)],
        ("field", "value"),
    )
    for name, title in PARTS:
        if details[name] is not None:
            text = orjson.dumps(details[name], option=orjson.OPT_INDENT_2).decode()
            sys.stdout.write(f"\n{title}\n{plain(text, LINES)}\n")
    if details["trace"]:
        text = plain(details["trace"], LINES)
        sys.stdout.write(f"\nTrace of the last attempt that failed\n{text}\n")
    print_table(story, STORY_COLUMNS, title="\nStory", spare=STORY_SPARE)
