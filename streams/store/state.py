"""Everything that one ledger partition knows: its tables, and what a group does to all of them.

Owns the list of tables. Refuses to know the order among waiting jobs and when timers fire
(`tidemill.streams.dispatch.schedule`), and what is in a table.

A group of decisions changes the tables at once, so that each decision sees the ones before it; the
old values are kept until `commit` (the transaction was committed) or `rollback` (it was not).
Nobody but the decider reads them in between.
"""

from __future__ import annotations

from tidemill.schemas.batch_builder import BatchBuilder
from tidemill.schemas.wire import Definition
from tidemill.streams.decision import NeedsNewer
from tidemill.streams.job import HANDED_BACK, NO_WORKER, Job, JobKey
from tidemill.streams.job_type import JobType
from tidemill.streams.policies.base import Policy
from tidemill.streams.policies.registry import Policies
from tidemill.streams.policies.rescue import INTERRUPTIONS_MAX
from tidemill.streams.store.definitions import Definitions
from tidemill.streams.store.finished import Ended
from tidemill.streams.store.jobs import DEDUPE_RETENTION_MS, Jobs
from tidemill.streams.store.kept_cancels import KeptCancels
from tidemill.streams.store.kept_signals import KeptSignals
from tidemill.streams.store.memory import Memory
from tidemill.streams.store.position import KIND as POSITION_KEY
from tidemill.streams.store.position import Position, needs_in
from tidemill.streams.store.table import AnyTable, UnknownRow


class PartitionState:
    """The state of one partition."""

    def __init__(
        self,
        *,
        dedupe_retention_ms: int = DEDUPE_RETENTION_MS,
        interruptions_max: int = INTERRUPTIONS_MAX,
    ) -> None:
        self._position = Position()
        self._definitions = Definitions()
        self._jobs = Jobs(self._position, dedupe_retention_ms)
        self.policies = Policies(self._definitions, interruptions_max)
        self._definitions.policies = self.policies
        self.cancels = KeptCancels()
        gathers = self.policies.gather.parents
        gathers.table.jobs = self._jobs.live
        gathers.memory = self.memory = Memory(self._jobs.live, gathers.table)
        self.signals = KeptSignals()
        self._tables: list[AnyTable] = []
        self._by_kind: dict[bytes, AnyTable] = {}
        # The registry: a new table is one line here. Rows are written in this order.
        self.add(self._jobs)
        for policy in self.policies.all:
            for table in policy.tables():
                self.add(table)
        self.add(self._definitions)
        self.add(self.cancels)
        self.add(self.memory)
        self.add(self.signals)
        self.jobs = self._jobs.live
        self.finished = self._jobs.finished
        self.definitions = self._definitions.values
        self.kinds = self._definitions.kinds
        self._job_types = self._definitions.job_types
        self._raw_rows: dict[bytes, bytes] = {}  # while a restore reads

    def add(self, table: AnyTable) -> None:
        """One more table. The first byte of their keys tells its rows from those of others."""
        if table.kind in self._by_kind or table.kind == POSITION_KEY or len(table.kind) != 1:
            raise ValueError(f"the kind of a table must be a byte of its own, not {table.kind!r}")
        self._tables.append(table)
        self._by_kind[table.kind] = table

    def add_policy(self, policy: Policy) -> None:
        """One more policy with its tables, before any row is loaded."""
        self.policies.add(policy)
        for table in policy.tables():
            self.add(table)

    # --- what a decision may look at ---

    @property
    def applied(self) -> dict[str, int]:
        """The last decided offset by input."""
        return self._position.applied

    @property
    def clock_ms(self) -> int:
        return self._position.clock_ms

    @property
    def accepted(self) -> int:
        return self._position.accepted

    def job_type(self, name: str) -> JobType | None:
        return self._job_types.get(name)

    def ended(self, key: JobKey) -> Ended | None:
        """What is remembered of an ended job whose row is packed."""
        return self._jobs.ended(key)

    def ended_row(self, row_key: bytes) -> Ended | None:
        """The same by the key of its row."""
        return self.finished.get(row_key[1:])

    # --- what a decision changes ---

    def begin(self, now_ms: int) -> int:
        """Starts a group; the partition's clock never goes back. Returns the instant to use."""
        return self._position.begin(now_ms)

    def put(self, before: Job | None, after: Job) -> None:
        """A decision made `after` of `before`: keeps the old value."""
        self._jobs.put(before, after)
        if before is None or before.is_refused:
            self._position.accepted += 1
            if len(self.cancels):
                self.cancels.drop(after.key)

    def next_message(self) -> int:
        """The number of one more message of this partition; the first one is 1."""
        self._position.sent += 1
        return self._position.sent

    def define(self, definition: Definition) -> None:
        """Takes a type's definition into the partition."""
        self._definitions.put(definition.type, definition)

    def forget_old(self, now_ms: int) -> bool:
        """Forgets what is beyond its retention, a bounded number at a time.

        True when there may be more of it.
        """
        self._position.move_clock(now_ms)
        has_more = False
        for table in self._tables:
            has_more = table.forget(now_ms) or has_more
        for key in self._jobs.buried:
            self.memory.forget_job(key)
        return has_more

    # --- the group's end ---

    @property
    def has_changes(self) -> bool:
        """Whether there is anything to commit: a changed row or a new applied position."""
        for table in self._tables:
            if table.has_changes():
                return True
        return self._position.has_changes()

    def write_rows(self, pages: BatchBuilder) -> None:
        """The rows that this group's transaction writes, the position last."""
        for table in self._tables:
            table.write(pages)
        self._position.needs = self._needs()
        self._position.write(pages)

    def _needs(self) -> str:
        """The first version of Tidemill that reads all rows there are; "" of all versions."""
        needs = [table.since for table in self._tables if table.since and table.has_rows()]
        return max(needs, key=_version, default="")

    def commit(self) -> None:
        """The transaction is committed: ended jobs are packed, old values dropped."""
        for table in self._tables:
            table.commit()
        self._position.commit()

    def rollback(self) -> None:
        """The transaction was aborted: everything is as it was before the group."""
        for table in self._tables:
            table.rollback()
        self._position.rollback()

    # --- restore ---

    def load(self, key: bytes, value: bytes | None) -> None:
        """One row of the state topic, in the topic's order: a later one of a key replaces it."""
        if value is None:
            self._raw_rows.pop(key, None)
        else:
            self._raw_rows[key] = value

    def loaded(self) -> None:
        """All rows are read: each last one is decoded, once, and what is derived is built.

        Raises NeedsNewer when one of them is of a newer version of Tidemill: to pass over it would
        lose it.
        """
        place = self._raw_rows.pop(POSITION_KEY, None)
        needs = needs_in(place)
        if place is not None:
            self._position.load(POSITION_KEY, place)
        while self._raw_rows:
            key, value = self._raw_rows.popitem()
            table = self._by_kind.get(key[:1])
            if table is None:
                raise NeedsNewer(f"the state has a row of the kind {_text(key[:1])}", needs)
            try:
                table.load(key, value)
            except UnknownRow as error:
                raise NeedsNewer(f"the state has {error}", needs) from error
        for table in self._tables:
            table.loaded()
        # A job that waits for what nobody here knows would never be woken.
        known = {NO_WORKER, HANDED_BACK[0], *[policy.id for policy in self.policies.all]}
        for job in self.jobs.values():
            if job.waits_for is not None and job.waits_for[0] not in known:
                raise NeedsNewer(f"the state has a job that waits for {job.waits_for[0]!r}", needs)


def _text(kind: bytes) -> str:
    return repr(kind.decode("ascii", "backslashreplace"))


def _version(text: str) -> list[int]:
    """For the order among versions: "0.10.0" is later than "0.9.0"."""
    return [int(part) for part in text.split(".") if part.isdigit()]
