"""The errors that cross the edge between a library and our code.

Owns the translation of confluent-kafka and aiokafka errors, made once, here; refuses to know what
the caller does about them beyond the three kinds below.
"""

from __future__ import annotations

from aiokafka.errors import CorruptRecordException
from confluent_kafka import KafkaError, KafkaException

from tidemill.agents import exit_codes

# librdkafka codes that mean "someone else owns this transactional id now".
_FENCED_CODES = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
    }
)


_DAMAGE_CODES = frozenset({KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION})


class EngineError(Exception):
    """Root of all errors that the runtime raises on purpose."""


class RecoverableError(EngineError):
    """The same call may succeed later; nothing was half done."""


class AbortableError(RecoverableError):
    """The transaction was aborted; doing the same group again is safe and expected."""


class PoisonMessage(EngineError):
    """One record can never be handled; its neighbours can."""


class FatalError(EngineError):
    """This process must end; the next owner restores and goes on."""


class FencedError(FatalError):
    """Another process owns this transactional id; nothing of the open transaction will be seen."""


class DamagedError(FatalError):
    """A record that Kafka holds cannot be read: what is on its disk is damaged."""


class NotRestoredError(FatalError):
    """A partition was asked to decide before its state had been restored: a bug of the caller."""


def kafka_error_of(error: KafkaException) -> KafkaError:
    """Return the library's error inside ``error``."""
    inner = error.args[0]
    if not isinstance(inner, KafkaError):
        raise FatalError(f"unexpected error shape from the Kafka client: {error!r}") from error
    return inner


def is_fenced(error: KafkaError) -> bool:
    """Tell whether ``error`` means that a newer owner exists."""
    return error.code() in _FENCED_CODES


def to_fatal(error: KafkaError, doing: str) -> FatalError:
    """Translate a fatal client error; ``doing`` says what was tried."""
    kind = FencedError if is_fenced(error) else FatalError
    if error.code() in _DAMAGE_CODES:
        return DamagedError(
            f"{doing}: the record is damaged on Kafka's disk ({error.str()}); put back a copy of "
            "Kafka's folder"
        )
    return kind(f"{doing}: {error.name()}: {error.str()}")


def final_code(error: BaseException | None) -> int | None:
    """The exit code of an error after which another start ends the same way; None for others."""
    return exit_codes.DAMAGED if isinstance(error, DamagedError | CorruptRecordException) else None
