"""The first thing that pydantic found wrong: where, and in which words.

Owns that reading. Refuses to know what is said of it: each place has its own way out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import ValidationError


class FirstProblem(NamedTuple):
    """`path`: names and indices with dots, "" for the whole. `kind`: pydantic's type of error."""

    path: str
    message: str
    kind: str


def first_problem(error: ValidationError) -> FirstProblem:
    """What is told of an input. The input itself is not in it."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return FirstProblem(".".join(str(part) for part in first["loc"]), first["msg"], first["type"])


def first_input(error: ValidationError) -> Any:
    """The value that is wrong there, for the program that has given it and for nobody else."""
    return error.errors(include_url=False, include_context=False)[0]["input"]
