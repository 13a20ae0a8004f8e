"""`tidemill new`: the first files of a user's own.

Owns the command and what is said after it. Refuses to know the texts (`tidemill.new_module`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidemill.agents import exit_codes
from tidemill.cli.output import CliError

app = typer.Typer()


@app.command(rich_help_panel="Run")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the module, such as my_jobs.")],
) -> None:
    """Write NAME.py with a job, its test and NAME.env; nothing is overwritten."""
    from tidemill.new_module import CannotWrite, write_new

    try:
        written = write_new(name, Path.cwd())
    except CannotWrite as error:
        raise CliError(str(error), exit_codes.USAGE) from error
    for path in written:
        typer.echo(f"wrote {path.name}")
    steps = {
        f"tidemill dev {name}": "runs its jobs",
        f"python {name}.py": "asks for one and waits for its end",
        f"pytest test_{name}.py": "tests it without Kafka (pip install pytest)",
    }
    width = max(map(len, steps))
    for number, (command, what) in enumerate(steps.items()):
        typer.echo(f"{'' if number else 'next:':<6} {command:<{width}}   {what}")
