"""What the producers were told: one line for each record that Kafka acknowledged.

Owns the file's form. Refuses to know how a record was made and what becomes of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Receipt:
    """One acknowledged record of `jobs.requested`.

    is: job = a valid request; poison = must become a dead letter; either = nobody knows, one of
    the two. `job_id` is None when the request had none or when it is not a job.
    """

    partition: int
    offset: int
    kind: Literal["job", "poison", "either"] = "job"
    user_id: str | None = None
    job_id: str | None = None
    unique_key: str | None = None
    run_at_ms: int | None = None


def write_receipts(path: Path, receipts: Iterable[Receipt]) -> None:
    """One JSON object a line."""
    with path.open("w") as out:
        for receipt in receipts:
            out.write(json.dumps(asdict(receipt)) + "\n")


def read_receipts(path: Path) -> Iterator[Receipt]:
    """The receipts of a file, in its order."""
    with path.open() as lines:
        for line in lines:
            fields: dict[str, Any] = json.loads(line)
            yield Receipt(**fields)
