"""A table of a partition's state: values by key that undo, write and load themselves.

Owns the protocol between a partition's state and its tables, and the table of plain values. Refuses
to know what a value means: each table is a class of its own with the form of its rows.

A group of decisions changes values at once. The old values are kept until `commit` (the group's
transaction was committed) or `rollback` (it was not).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from mypy_extensions import mypyc_attr

from tidemill.schemas.batch_builder import BatchBuilder

K = TypeVar("K")
V = TypeVar("V")


class UnknownRow(ValueError):
    """A row that only a newer version of Tidemill reads. The text names the row."""


@mypyc_attr(allow_interpreted_subclasses=True)
class AnyTable(ABC):
    """What a partition's state asks of each of its tables."""

    def __init__(self, kind: bytes, since: str = "") -> None:
        self.kind = kind  # the first byte of the keys of its rows
        self.since = since  # first version of Tidemill that reads its rows; "" of all versions

    def has_rows(self) -> bool:
        """Whether a restore needs to know this table."""
        return True

    @abstractmethod
    def has_changes(self) -> bool:
        """Whether this group has changed anything that is written."""

    @abstractmethod
    def write(self, pages: BatchBuilder) -> None:
        """The rows that this group's transaction writes."""

    @abstractmethod
    def commit(self) -> None:
        """The transaction is committed: old values are dropped."""

    @abstractmethod
    def rollback(self) -> None:
        """The transaction was aborted: every value is as it was before the group."""

    @abstractmethod
    def load(self, key: bytes, value: bytes) -> None:
        """The last row of a key, at a restore. Raises UnknownRow for a newer form of it."""

    def loaded(self) -> None:  # noqa: B027  # of most tables nothing is derived
        """The rows of all tables are loaded: what is derived from them is built."""

    def forget(self, now_ms: int) -> bool:
        """Drops what is too old, a bounded number at once. True when there may be more."""
        return False


@mypyc_attr(allow_interpreted_subclasses=True)
class Table(AnyTable, Generic[K, V]):
    """Values by key, each in a row of its own. A value is never changed once it is in."""

    def __init__(self, kind: bytes, since: str = "") -> None:
        super().__init__(kind, since)
        self.values: dict[K, V] = {}
        self.before: dict[K, V | None] = {}  # of what this group has changed

    # --- the form of its rows: each table has its own ---

    @abstractmethod
    def row_key(self, key: K) -> bytes:
        """The row's key; begins with `kind`."""

    @abstractmethod
    def row_value(self, key: K, value: V) -> bytes:
        """The row's value."""

    @abstractmethod
    def read(self, key: bytes, value: bytes) -> tuple[K, V]:
        """The inverse of `row_key` and `row_value`."""

    def follow(self, key: K, value: V | None) -> None:
        """The value of a key is another one now: what is derived from it follows."""

    # --- what all tables of values do alike ---

    def get(self, key: K) -> V | None:
        return self.values.get(key)

    def put(self, key: K, value: V | None) -> None:
        """Sets a value; None takes it out."""
        if key not in self.before:
            self.before[key] = self.values.get(key)
        self._set(key, value)

    def _set(self, key: K, value: V | None) -> None:
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value
        self.follow(key, value)

    def has_rows(self) -> bool:
        return len(self.values) > 0

    def has_changes(self) -> bool:
        return len(self.before) > 0

    def write(self, pages: BatchBuilder) -> None:
        for key in self.before:
            value = self.values.get(key)
            pages.add(self.row_key(key), None if value is None else self.row_value(key, value))

    def commit(self) -> None:
        if self.before:
            self.before = {}

    def rollback(self) -> None:
        for key, value in self.before.items():
            self._set(key, value)
        self.before = {}

    def load(self, key: bytes, value: bytes) -> None:
        self._set(*self.read(key, value))
