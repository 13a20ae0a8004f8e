"""The definitions of types that a partition has taken, and what the engine reads of each.

Owns the definitions' rows and what is derived of a definition. Refuses to know where one comes
from.
"""

from __future__ import annotations

from tidemill.schemas.wire import Definition
from tidemill.streams.policy import Policy
from tidemill.streams.store.table import Table

KIND = b"d"


class Definitions(Table[str, Definition]):
    """Definitions by type. Rows: b"d" + type, and the definition as JSON."""

    def __init__(self) -> None:
        super().__init__(KIND)
        self.policies: dict[str, Policy] = {}
        #: How the handler of a type runs: async, thread, process.
        self.kinds: dict[str, str] = {}

    def row_key(self, key: str) -> bytes:
        return KIND + key.encode()

    def row_value(self, key: str, value: Definition) -> bytes:
        return value.model_dump_json().encode()

    def read(self, key: bytes, value: bytes) -> tuple[str, Definition]:
        definition = Definition.model_validate_json(value)
        return definition.type, definition

    def follow(self, key: str, value: Definition | None) -> None:
        if value is None:
            self.policies.pop(key, None)
            self.kinds.pop(key, None)
        else:
            self.policies[key] = Policy(value)
            self.kinds[key] = value.runs_as
