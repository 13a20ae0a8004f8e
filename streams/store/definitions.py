"""The definitions of types that a partition has taken, and what the engine reads of each.

Owns the definitions' rows and what is derived of a definition. Refuses to know where one comes
from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.schemas.wire import Definition
from tidemill.streams.job_type import JobType
from tidemill.streams.store.table import Table

if TYPE_CHECKING:
    from tidemill.streams.policies.registry import Policies

KIND = b"d"


class Definitions(Table[str, Definition]):
    """Definitions by type. Rows: b"d" + type, and the definition as JSON."""

    def __init__(self) -> None:
        super().__init__(KIND)
        self.job_types: dict[str, JobType] = {}
        #: How the handler of a type runs: async, thread, process.
        self.kinds: dict[str, str] = {}
        self.policies: Policies | None = None  # set by `PartitionState`: each needs the other

    def row_key(self, key: str) -> bytes:
        return KIND + key.encode()

    def row_value(self, key: str, value: Definition) -> bytes:
        return value.model_dump_json().encode()

    def read(self, key: bytes, value: bytes) -> tuple[str, Definition]:
        definition = Definition.model_validate_json(value)
        return definition.type, definition

    def follow(self, key: str, value: Definition | None) -> None:
        if value is None:
            self.job_types.pop(key, None)
            self.kinds.pop(key, None)
        else:
            self.job_types[key] = made = JobType(value)
            if self.policies is not None:
                self.policies.bind(made)
            self.kinds[key] = value.runs_as
