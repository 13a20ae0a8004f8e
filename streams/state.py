"""Everything that one ledger partition knows, and how a failed transaction is undone.

Owns jobs, ended jobs, limits, unique keys, definitions and the applied positions of a partition.
Refuses to know the order among waiting jobs and when timers fire (`streams.schedule`).

A group of decisions changes this state at once, so that each decision sees the ones before it; the
old values are kept until `settle` (the transaction was committed) or `undo` (it was not). Nobody
but the decider reads it in between.
"""

from __future__ import annotations

from itertools import islice
from typing import Final, TypeVar

from schemas.record_pages import RecordPages
from schemas.wire import Definition
from schemas.words import TERMINAL_STATES, State
from streams import limits, rows
from streams.finished import COUNT_MAX, Ended, FinishedJobs, digest_of
from streams.job import Job, JobKey
from streams.kept_cancels import KeptCancel, KeptCancels
from streams.limits import NOTHING_USED, LimitState
from streams.policy import Limit, Policy

_K = TypeVar("_K")
_V = TypeVar("_V")

DEDUPE_RETENTION_MS: Final = 86_400_000  # ms that an ended job's id is remembered, a day
DEAD_LETTERS_MAX: Final = 200_000  # dead letters a partition keeps whole, the oldest go first
# Stops of its workers that a run survives while it runs: a deploy a day for three months. A job
# that is longer than the stop grace begins anew with each, so it must not do so for ever.
INTERRUPTIONS_MAX: Final = 100
DEAD_RETENTION_MS: Final = 30 * 86_400_000  # ms that a dead letter stays redrivable
FORGET_AT_ONCE_MAX: Final = 1_000  # rows forgotten in one group, so that no group grows long


_OVER: Final = TERMINAL_STATES


class PartitionState:
    """The state of one partition. Implements `lifecycle.Situation`."""

    def __init__(
        self,
        *,
        dedupe_retention_ms: int = DEDUPE_RETENTION_MS,
        interruptions_max: int = INTERRUPTIONS_MAX,
    ) -> None:
        self.jobs: dict[JobKey, Job] = {}
        self.finished = FinishedJobs()
        self.cancels = KeptCancels()
        self.applied: dict[str, int] = {}
        self.clock_ms = 0
        self.accepted = 0
        self.definitions: dict[str, Definition] = {}
        self._policies: dict[str, Policy] = {}  # of all definitions
        self._interruptions_max = interruptions_max
        self._dedupe_retention_ms = dedupe_retention_ms
        self._dead_letters: dict[JobKey, None] = {}
        self._limits: dict[tuple[str, str], LimitState] = {}
        self._unique: dict[tuple[str, str], JobKey] = {}
        self._old_jobs: dict[JobKey, Job | None] = {}
        self._old_limits: dict[tuple[str, str], LimitState | None] = {}
        self._old_unique: dict[tuple[str, str], JobKey | None] = {}
        self._old_definitions: dict[str, Definition | None] = {}
        self._old_position: tuple[dict[str, int], int, int] | None = None
        self._forgotten: list[bytes] = []
        self._buried: list[JobKey] = []
        self._raw_rows: dict[bytes, bytes] = {}  # while a restore reads
        #: How the handler of a type runs: async, thread, process.
        self.kinds: dict[str, str] = {}
        #: Types that are known, while jobs that waited for them are resolved; see `policy_for_new`.
        self.resolving: dict[str, None] = {}

    # --- what a decision may look at ---

    @property
    def interruptions_max(self) -> int:
        return self._interruptions_max

    def policy(self, type: str) -> Policy | None:
        return self._policies.get(type)

    def policy_for_new(self, type: str) -> Policy | None:
        """The same for a request that has just come. It waits behind those that wait for its type
        to be known, as long as there are any."""
        return None if self.resolving and type in self.resolving else self._policies.get(type)

    def unique_holder(self, user_id: str, unique_key: str) -> JobKey | None:
        return self._unique.get((user_id, unique_key))

    def limit_state(self, user_id: str, type: str) -> LimitState:
        return self._limits.get((user_id, type), NOTHING_USED)

    def kept_cancel(self, key: JobKey) -> KeptCancel | None:
        return self.cancels.get(key)

    def has_ended(self, key: JobKey) -> bool:
        return self.ended(key) is not None

    def ended(self, key: JobKey) -> Ended | None:
        """What is remembered of an ended job whose row is packed."""
        return self.finished.get(digest_of(key)) if len(self.finished) else None

    def ended_row(self, row_key: bytes) -> Ended | None:
        """The same by the key of its row."""
        return self.finished.get(row_key[1:])

    # --- what a decision changes ---

    def begin(self, now_ms: int) -> int:
        """Starts a group; the partition's clock never goes back. Returns the instant to use."""
        if self._old_position is None:
            self._old_position = (dict(self.applied), self.clock_ms, self.accepted)
        self.clock_ms = max(self.clock_ms, now_ms)
        return self.clock_ms

    def put(self, before: Job | None, after: Job) -> None:
        """A decision made `after` of `before`: keeps the old value, moves the indices along."""
        key = after.key
        if before is None or before.is_refused:
            self._accept(before, key)
        elif key not in self._old_jobs:
            self._old_jobs[key] = before
        self.jobs[key] = after
        self._move_unique(before, after, key)
        policy = self._policies.get(after.spec.type)
        is_held = after.holds_limit or (before is not None and before.holds_limit)
        # A held job is released even when its type has lost its limits since.
        if policy is not None and (policy.limits or is_held):
            self._move_limit(before, after, policy.limits)

    def _accept(self, before: Job | None, key: JobKey) -> None:
        """A request was accepted: of a new job, or the mended one of a refused job (`before`)."""
        if key not in self._old_jobs:
            self._old_jobs[key] = self.jobs.get(key)
        if before is not None:
            self.finished.take_up(rows.key_of(before.spec)[1:])
        self.accepted += 1
        if len(self.cancels):
            self.cancels.drop(key)

    def _move_unique(self, before: Job | None, after: Job, key: JobKey) -> None:
        unique_key = after.spec.unique_key
        if unique_key is None:
            return
        name = (key[0], unique_key)
        holder = self._unique.get(name)
        is_over = after.state in _OVER
        if is_over == (holder != key):
            return  # over and not the holder, or alive and already the holder
        self._old_unique.setdefault(name, holder)
        if is_over:
            del self._unique[name]
        else:
            self._unique[name] = key

    def _move_limit(self, before: Job | None, after: Job, specs: tuple[Limit, ...]) -> None:
        was_held = before is not None and before.holds_limit
        name = (after.spec.user_id, after.spec.type)
        used = self._limits.get(name, NOTHING_USED)
        if after.epoch == 1 and (before is None or before.epoch == 0):
            started_at = after.dispatched_at or self.clock_ms
            changed = limits.start(specs, used, started_at, is_held=was_held)
        elif was_held and not after.holds_limit:
            changed = limits.release(used)
        elif after.holds_limit and not was_held:
            changed = limits.hold(used)
        else:
            return
        self._old_limits.setdefault(name, self._limits.get(name))
        self._limits[name] = changed

    def define(self, definition: Definition) -> None:
        """Takes a type's definition into the partition."""
        type_name = definition.type
        self._old_definitions.setdefault(type_name, self.definitions.get(type_name))
        self._set_definition(type_name, definition)

    def _set_definition(self, type_name: str, definition: Definition | None) -> None:
        _put_back(self.definitions, type_name, definition)
        policy = None if definition is None else Policy(definition)
        _put_back(self._policies, type_name, policy)
        _put_back(self.kinds, type_name, None if definition is None else definition.runs_as)

    def forget_old(self, now_ms: int) -> bool:
        """Forgets ended jobs beyond their retention, a bounded number at a time.

        True when there may be more of them.
        """
        self.clock_ms = max(self.clock_ms, now_ms)
        forgotten = self.finished.forget_until(
            now_ms - self._dedupe_retention_ms, count_max=COUNT_MAX, at_most=FORGET_AT_ONCE_MAX
        )
        self._forgotten += forgotten
        self._forget_dead_letters(now_ms)
        idle = self._forget_limits(now_ms)
        most = max(len(forgotten), len(self._buried), 2 * idle)
        return most >= FORGET_AT_ONCE_MAX

    def _forget_dead_letters(self, now_ms: int) -> None:
        for key in self._dead_letters:
            job = self.jobs[key]
            too_many = len(self._dead_letters) - len(self._buried) > DEAD_LETTERS_MAX
            if not too_many and (job.finished_at or 0) > now_ms - DEAD_RETENTION_MS:
                break
            if key in self._old_jobs:
                break  # this group changes it
            self._buried.append(key)
            if len(self._buried) >= FORGET_AT_ONCE_MAX:
                break

    def _forget_limits(self, now_ms: int) -> int:
        """Drops what no window looks at any more; the rest goes behind the others. How many."""
        dropped = 0
        for name in list(islice(self._limits, FORGET_AT_ONCE_MAX)):
            used = self._limits.pop(name)
            policy = self._policies.get(name[1])
            specs = () if policy is None else policy.limits
            if limits.is_idle(specs, used, now_ms):
                self._old_limits.setdefault(name, used)
                dropped += 1
            else:
                self._limits[name] = used
        return dropped

    # --- the group's end ---

    @property
    def has_changes(self) -> bool:
        """Whether there is anything to commit: a changed row or a new applied position."""
        old = self._old_position
        return bool(
            self._old_jobs or self._old_definitions or self._old_limits or self.cancels.changed
            or self._forgotten or self._buried
            or (old is not None and old[0] != self.applied)
        )

    def write_rows(self, pages: RecordPages) -> None:
        """The rows that this group's transaction writes, the position last."""
        for key in self._old_jobs:
            job = self.jobs[key]
            row_key = rows.key_of(job.spec)
            if job.state in _OVER and not job.is_dead_letter:
                pages.add(row_key, rows.ended_value(job))
                continue
            page = pages.place()
            rows.put_live(page.begin(row_key), job)
            page.end_value()
            if not page.end():
                pages.add(row_key, rows.live_value(job))
        for name in self._old_limits:
            used = self._limits.get(name)
            limit_row = None if used is None else rows.limit_value(used)
            pages.add(rows.limit_key(*name), limit_row)
        for type_name in self._old_definitions:
            definition = self.definitions[type_name]
            pages.add(rows.definition_key(type_name), rows.definition_value(definition))
        for key in self.cancels.changed:
            kept = self.cancels.get(key)
            pages.add(rows.cancel_key(key), None if kept is None else rows.cancel_value(kept))
        for digest in self._forgotten:
            pages.add(b"j" + digest, None)
        for key in self._buried:
            dead = self.jobs[key]
            left = rows.ended_value(dead) if self._is_remembered(dead) else None
            pages.add(rows.key_of(dead.spec), left)
        position = rows.position_value(self.applied, self.clock_ms, self.accepted)
        pages.add(rows.POSITION_KEY, position)

    def settle(self) -> None:
        """The transaction is committed: ended jobs are packed, old values dropped."""
        dead_letters = self._dead_letters
        for key in self._old_jobs:
            job = self.jobs[key]
            if job.is_dead_letter:
                dead_letters[key] = None
                continue
            if dead_letters:
                dead_letters.pop(key, None)
            if job.state in _OVER:
                self._remember(job)
                del self.jobs[key]
        for key in self._buried:
            self._dead_letters.pop(key, None)
            job = self.jobs.pop(key)
            if self._is_remembered(job):
                self._remember(job)
        self.finished.settle()
        self.cancels.settle()
        self._drop_old()

    def _is_remembered(self, job: Job) -> bool:
        """Whether a repeat of an ended job must still be recognised."""
        return (job.finished_at or 0) > self.clock_ms - self._dedupe_retention_ms

    def _remember(self, job: Job) -> None:
        self.finished.add(
            rows.key_of(job.spec)[1:], job.finished_at or self.clock_ms, job.spec.fingerprint,
            job.state, job.is_refused,
        )

    def undo(self) -> None:
        """The transaction was aborted: everything is as it was before the group."""
        for key, job in self._old_jobs.items():
            _put_back(self.jobs, key, job)
        for name, used in self._old_limits.items():
            _put_back(self._limits, name, used)
        for unique, holder in self._old_unique.items():
            _put_back(self._unique, unique, holder)
        for type_name, definition in self._old_definitions.items():
            self._set_definition(type_name, definition)
        self.finished.undo()
        self.cancels.undo()
        if self._old_position is not None:
            self.applied, self.clock_ms, self.accepted = self._old_position
        self._drop_old()

    def _drop_old(self) -> None:
        self._old_jobs = {}
        self._old_limits = {}
        self._old_unique = {}
        self._old_definitions = {}
        self._old_position = None
        self._forgotten = []
        self._buried = []

    # --- restore ---

    def load(self, key: bytes, value: bytes | None) -> None:
        """One row of the state topic, in the topic's order: a later one of a key replaces it."""
        if value is None:
            self._raw_rows.pop(key, None)
        else:
            self._raw_rows[key] = value

    def loaded(self) -> None:
        """All rows are read: each last one is decoded, once, and the indices are built."""
        while self._raw_rows:
            key, value = self._raw_rows.popitem()
            self._load_row(key, value)
        self.finished.sort()
        self.cancels.sort()
        dead: list[Job] = []
        for job_key, job in self.jobs.items():
            if job.state is State.FAILED:
                dead.append(job)
            elif job.spec.unique_key is not None:
                self._unique[(job_key[0], job.spec.unique_key)] = job_key
        dead.sort(key=lambda job: job.finished_at or 0)
        self._dead_letters = {job.key: None for job in dead}

    def _load_row(self, key: bytes, value: bytes) -> None:
        kind = key[:1]
        if kind == b"j":
            row = rows.read_job(value)
            if isinstance(row, Ended):
                self.finished.add(key[1:], *row)
            else:
                self.jobs[row.key] = row
        elif kind == b"l":
            name, used = rows.read_limit(key, value)
            self._limits[name] = used
        elif kind == b"d":
            definition = rows.read_definition(value)
            self._set_definition(definition.type, definition)
        elif kind == b"c":
            self.cancels.load(rows.read_cancel(value))
        elif kind == b"p":
            self.applied, self.clock_ms, self.accepted = rows.read_position(value)


def _put_back(mapping: dict[_K, _V], key: _K, old: _V | None) -> None:
    if old is None:
        mapping.pop(key, None)
    else:
        mapping[key] = old
