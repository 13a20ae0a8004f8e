"""Strategies for what a partition may meet: outcomes, requests and forwards of any shape.

Owns the drawing. Most values are nearly right, so that they get past the first check; ids are
often those of living jobs, so that the deep paths are reached.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from hypothesis import strategies as st

from tests.property.rig import TOPICS, WORKER, Input
from tidemill.schemas.wire import BackoffSpec, Definition, LimitSpec
from tidemill.streams.envelope import KIND_HEADER, ORIGIN_HEADER, POLICY_HEADER, VERSION_HEADER

USERS: Final = ("u", 'ü/"2\\', "\u2028\U0001f409", "a" * 256)
JOBS: Final = ("1", 'q"', "x/y", "%s%d")
TYPES: Final = ("plain", "skip", "delay", "unique", "late", "never")
DEEP: Final = "@deep@"  # becomes 1,000 nested arrays: more than orjson writes, as many as it reads
LONG: Final = "@long@"  # becomes a text of 600,000 characters
BIG: Final = "@big@"  # becomes an integer of 400 digits

_TEXT: Final = st.text(max_size=8)
_SCALARS: Final = st.one_of(
    st.none(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), _TEXT,
    st.sampled_from((0, -1, 2**31, -(2**63), 2**63, 2**64 - 1, DEEP, LONG, BIG)),
)
ANYTHING: Final = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)


def _fields(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A dict of these fields; now and then one is missing, or is anything at all."""

    def bent(fields: dict[str, Any], name: str, how: str, value: Any) -> dict[str, Any]:
        if how == "missing":
            fields.pop(name, None)
        elif how == "anything":
            fields[name] = value
        return fields

    return st.builds(
        bent, st.fixed_dictionaries(known), st.sampled_from((*known, "surprise")),
        st.sampled_from(("", "", "missing", "anything")), ANYTHING,
    )


_INSTANTS: Final = st.one_of(
    st.none(), st.sampled_from((0, 1, 1_760_000_000_000, 10**13, 2**62)),
    st.sampled_from(("1970-01-01T00:00:00Z", "2299-12-31T00:00:00+14:00", "0001-01-01T00:00Z")),
)
REQUESTS: Final = _fields(
    type=st.sampled_from(TYPES), user_id=st.sampled_from(USERS), job_id=st.sampled_from(JOBS),
    payload=st.dictionaries(_TEXT, _SCALARS, max_size=2), run_at=_INSTANTS, expires_at=_INSTANTS,
    priority=st.sampled_from(("high", "medium", "low")),
    queue=st.sampled_from((None, "side", "nobody")), unique_key=st.sampled_from((None, "k", "\t")),
    timeout_seconds=st.sampled_from((None, 1e-9, 30, 86_400)),
    max_attempts=st.sampled_from((None, 1, 100)), tags=st.sampled_from(((), ("a", "\x00"))),
)
PLAIN_REQUESTS: Final = _fields(
    type=st.sampled_from(TYPES), user_id=st.sampled_from(USERS), payload=st.just({"x": DEEP})
)
OUTCOMES: Final = _fields(
    kind=st.sampled_from(
        (
            "started", "progressed", "succeeded", "failed", "skipped", "returned", "stepped",
            "suspended",
        )
    ),
    name=st.sampled_from((None, "go", "")),
    waits=st.one_of(
        st.none(), ANYTHING,
        st.fixed_dictionaries(
            {
                "kind": st.sampled_from(("sleep", "signal", "moon")),
                "name": st.sampled_from(("go", "nap", "", 7)),
                "for_ms": st.sampled_from((0, 5, -1, True, 2**63)),
                "timeout_ms": st.sampled_from((None, 0, 5, -1, "1h", 2**63)),
            }
        ),
    ),
    user_id=st.sampled_from(USERS), job_id=st.sampled_from(JOBS), epoch=st.integers(0, 3),
    started_at=st.sampled_from((None, True, -5, 0, 1_760_000_000_000, 2**63)),
    finished_at=st.sampled_from((None, -5, 1_760_000_000_000, 2**64 - 1)),
    retry_after_ms=st.sampled_from((None, None, -(2**63), 2**64 - 1)),
    result=ANYTHING, reason=st.one_of(st.none(), _SCALARS), progress=ANYTHING,
    error=st.one_of(
        st.none(), st.fixed_dictionaries({"code": ANYTHING, "message": ANYTHING}),
        st.fixed_dictionaries({"code": _TEXT, "message": _TEXT, "retryable": st.booleans()}),
    ),
    children=st.one_of(
        st.none(), st.lists(st.one_of(REQUESTS, PLAIN_REQUESTS, ANYTHING), max_size=3)
    ),
)
PACKS: Final = _fields(
    schema_version=st.just(1), worker_id=st.just(WORKER), incarnation=st.just(1),
    outcomes=st.lists(OUTCOMES, min_size=1, max_size=4),
)
COMMANDS: Final = _fields(
    command=st.sampled_from(("cancel", "redrive")), user_id=st.sampled_from(USERS),
    job_id=st.sampled_from(JOBS), reason=st.sampled_from((None, "\x00")),
)
SIGNALS: Final = _fields(
    command=st.just("signal"), user_id=st.sampled_from(USERS), job_id=st.sampled_from(JOBS),
    name=st.sampled_from(("go", "n" * 128, "n" * 129, "", "\x00", "ü\n")), value=ANYTHING,
    actor=st.sampled_from((None, "ada", "a" * 200)),
)
_ORIGINS: Final = st.sampled_from(
    (
        b"jobs.requested/0/7", b"jobs.requested/1/" + b"9" * 5_000, b"a/b/c/1/2", b"\xff/1/2",
        b"/1/2", b"jobs.requested/-1/2", "t/\u0661/2".encode(), b"",
    )
)


def to_json(value: Any) -> bytes:
    """JSON text in which the marks have become what they stand for."""
    text = orjson.dumps(value)
    text = text.replace(b'"@deep@"', b"[" * 1_000 + b"]" * 1_000)
    text = text.replace(b'"@long@"', b'"' + b"x" * 600_000 + b'"')
    return text.replace(b'"@big@"', b"1" * 400)


def _input(topic: str) -> Any:
    return lambda body: Input(topic, to_json(body))


_FORWARDS: Final = st.builds(
    lambda body, origin, kind: Input(
        TOPICS.internal, to_json(body), ((ORIGIN_HEADER, origin), (KIND_HEADER, kind))
    ),
    st.one_of(REQUESTS, COMMANDS, SIGNALS), _ORIGINS,
    st.sampled_from((b"request", b"command", None)),
)
_PLANS: Final[st.SearchStrategy[Any]] = st.recursive(
    st.just([]),
    lambda inner: st.lists(
        st.tuples(st.sampled_from((None, "u", "queue:mail")), inner), max_size=3
    ),
    max_leaves=4,
)
# Of the policy that the rig has, or of none: one that came later stops the ledger.
_MESSAGES: Final = st.builds(
    lambda body, origin, policy, version: Input(
        TOPICS.internal, to_json(body),
        (
            (ORIGIN_HEADER, origin), (KIND_HEADER, b"message"), (VERSION_HEADER, version),
            (POLICY_HEADER, policy),
        ),
    ),
    st.one_of(_fields(name=_TEXT, plan=_PLANS), ANYTHING),
    st.one_of(st.just(b"jobs.internal/0/7"), st.just(b"jobs.internal/3/7"), _ORIGINS),
    st.sampled_from((b"relay", b"relay", None, b"", b"\xff", b"a policy")),
    st.sampled_from((None, b"1", b"0", b"", b"\xff")),
)
_RAW: Final = st.builds(
    Input, st.sampled_from(TOPICS.ledger_inputs),
    st.one_of(st.none(), st.binary(max_size=20), st.just(b"[" * 5_000)),
)
INPUTS: Final = st.one_of(
    PACKS.map(_input(TOPICS.outcomes)), PACKS.map(_input(TOPICS.outcomes)),
    REQUESTS.map(_input(TOPICS.requested)), COMMANDS.map(_input(TOPICS.commands)),
    SIGNALS.map(_input(TOPICS.commands)),
    _FORWARDS, _MESSAGES, _RAW,
)

_LIMITS: Final = st.lists(
    st.builds(
        LimitSpec, limit=st.sampled_from((1, 2, 1_000)),
        window_ms=st.sampled_from((1, 5_000, 366 * 86_400_000)),
        over=st.sampled_from(("skip", "delay")),
    ),
    max_size=2,
).map(tuple)
DEFINITIONS: Final = st.builds(
    Definition, schema_version=st.just(1), type=st.sampled_from(TYPES[:-1]), limits=_LIMITS,
    queue=st.sampled_from(("default", "side")), max_attempts=st.sampled_from((1, 2, 100)),
    timeout_ms=st.sampled_from((1, 86_400_000)),
    unique_by=st.sampled_from((None, "user")),
    backoff=st.builds(
        BackoffSpec, base_ms=st.sampled_from((0, 1, 30 * 86_400_000)),
        factor=st.sampled_from((1.0, 1_000.0)), jitter=st.sampled_from((0.0, 1.0)),
        cap_ms=st.sampled_from((0, 30 * 86_400_000)),
    ),
)
