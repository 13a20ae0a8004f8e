"""What a worker does before it runs anything: load, check, publish; and which errors are final.

Owns the checks of modules, queues and definitions, and the line between what stays wrong and what
passes. Refuses to know how a job is run.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from tidemill.agents import clocks
from tidemill.agents.logging import LOAD_FAILED_EVENT, LOADED_EVENT, tell_supervisor
from tidemill.agents.runtime.clients import client_settings
from tidemill.agents.settings import WorkerSettings
from tidemill.agents.supervisor import SUPERVISED
from tidemill.agents.topics import (
    FINAL_KAFKA_ERRORS,
    OlderInstallation,
    TopicRefused,
    TopicsError,
    await_topics,
    ensure_ready_topics,
)
from tidemill.agents.worker.errors import ModuleLoadError, TidemillError
from tidemill.agents.worker.handlers import Handler
from tidemill.agents.worker.loading import load, loaded_files
from tidemill.agents.worker.module_names import LoadPlan, plan_modules
from tidemill.agents.worker.schedules import SCHEDULES, announcement
from tidemill.agents.worker.signature import place_of
from tidemill.schemas.topics import Topics
from tidemill.schemas.wire import DEFINITION_BYTES_MAX

START_RETRY_SECONDS: Final = 2.0  # between two tries to reach Kafka at the start
PUBLISH_SECONDS: Final = 20.0  # for definitions to be durable

# Who replaces threads, what to ask it, and of what.
GREEN_THREADS: Final = (
    ("gevent.monkey", "is_module_patched", "threading"),
    ("eventlet.patcher", "is_monkey_patched", "thread"),
)

logger = logging.getLogger("tidemill.worker")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything about a worker that is known without Kafka."""

    plan: LoadPlan
    handlers: Mapping[str, Handler]
    queues: tuple[str, ...]
    definitions: Mapping[str, bytes]
    """By type, and by key those that announce schedules, as they are published."""
    schedules: str
    """The set of schedules that it announces."""
    has_schedules: bool = False
    """Whether there is any in that set."""


def load_worker(settings: WorkerSettings, modules: Iterable[str]) -> Loaded:
    """Import the modules and check all that they define. Raises TidemillError, which is final.

    Under a supervisor, what was loaded is told to it, and so are the files of a failure: those are
    what somebody will mend.
    """
    is_supervised = SUPERVISED in os.environ
    plan: LoadPlan | None = None
    try:
        plan = plan_modules(modules)
        plan.environment.pop(SUPERVISED, None)
        handlers = {handler.type: handler for handler in load(plan)}
        check_threads()
        queues = queues_of(handlers, settings.queues)
        check_topics(settings.topic_prefix, handlers)
        definitions = {name: definition_value(each) for name, each in handlers.items()}
        targets = [target.name for target in plan.targets]
        specs = SCHEDULES.specs()
        schedules, announced = announcement(specs, targets)
    except TidemillError as error:
        if is_supervised:
            tell_supervisor(LOAD_FAILED_EVENT, files=_watched(plan))
        logger.error("%s", error, exc_info=error.__cause__)
        raise
    if is_supervised:
        told = [_described(handlers[name]) for name in sorted(handlers)]
        tell_supervisor(LOADED_EVENT, handlers=told, files=_watched(plan))
    return Loaded(
        plan, handlers, queues, {**definitions, **announced}, schedules, has_schedules=bool(specs)
    )


def check_threads() -> None:
    """Refuse modules that have put something else in place of Python's threads.

    The worker's loop never lets anything else run on its thread, so its beat would never begin, and
    nothing would say why. Raises ModuleLoadError.
    """
    for name, question, what in GREEN_THREADS:
        is_patched = getattr(sys.modules.get(name), question, None)
        if is_patched is not None and is_patched(what):
            who = name.partition(".")[0]
            raise ModuleLoadError(
                f"the modules have put {who}'s threads in place of Python's, and a worker waits "
                f"for ever with those: leave {who}'s monkey patching out where a worker loads the "
                "module; `def` and `async def` handlers wait side by side without it"
            )


def _watched(plan: LoadPlan | None) -> list[str]:
    targets = () if plan is None else plan.targets
    given = [target.file for target in targets if target.file is not None]
    return sorted({*given, *loaded_files()})


def _described(handler: Handler) -> dict[str, Any]:
    return {
        "type": handler.type, "queue": handler.queue, "kind": handler.runs_as,
        "max_attempts": handler.max_attempts, "timeout_seconds": handler.timeout_seconds,
        "limits": [
            f"{limit.limit} per {limit.window_ms / 1000:g} s, over: {limit.over}"
            for limit in handler.limits
        ],
    }


def queues_of(handlers: Mapping[str, Handler], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The queues of the handlers, less those that were not asked for.

    Raises ModuleLoadError when a wanted queue has no handler.
    """
    known = sorted({handler.queue for handler in handlers.values()})
    if wanted is None:
        return tuple(known)
    missing = [queue for queue in wanted if queue not in known]
    if missing:
        raise ModuleLoadError(
            f"no handler of the given modules has queue {missing[0]!r}; their queues are "
            f"{', '.join(known)}: mend --queues, or name the module that serves it"
        )
    return tuple(dict.fromkeys(wanted))


def check_topics(prefix: str, handlers: Mapping[str, Handler]) -> None:
    """Refuse queues whose topics Kafka would take for one another. Lengths fit by their bounds."""
    topics = Topics(prefix)
    seen: dict[str, Handler] = {}
    for handler in handlers.values():
        name = topics.ready(handler.queue)
        where = f"{handler.type!r} on {place_of(handler.function)}"
        # Kafka names its metrics with "_" in place of ".", and refuses topics that differ so only.
        other = seen.setdefault(name.replace(".", "_"), handler)
        if other.queue != handler.queue:
            raise ModuleLoadError(
                f"the queues {other.queue!r} and {handler.queue!r} differ in '.' and '_' only, and "
                f"Kafka takes their topics for one another; give the job {where} or "
                f"{other.type!r} on {place_of(other.function)} another queue"
            )


def definition_value(handler: Handler) -> bytes:
    """What is published; without the payload's schema, which only informs, where it is too large.

    Raises ModuleLoadError, naming the handler, when it cannot be written at all.
    """
    try:
        definition = handler.definition()
        value = definition.model_dump_json().encode()
        if len(value) > DEFINITION_BYTES_MAX:
            logger.warning(
                "the definition of %r has %d bytes, at most %d are published: it goes without the "
                "schema of its payload", handler.type, len(value), DEFINITION_BYTES_MAX,
            )
            bare = definition.model_copy(update={"payload_schema": None})
            value = bare.model_dump_json().encode()
    except Exception as error:
        raise ModuleLoadError(
            f"the definition of {handler.type!r} on {place_of(handler.function)} cannot be "
            f"written: {error}; mend its @job"
        ) from error
    if len(value) > DEFINITION_BYTES_MAX:
        raise ModuleLoadError(
            f"the definition of {handler.type!r} on {place_of(handler.function)} has {len(value)} "
            f"bytes, at most {DEFINITION_BYTES_MAX} are published: give it fewer limits"
        )
    return value


def publish_definitions(kafka: str, topic: str, definitions: Mapping[str, bytes]) -> None:
    """Write what this worker can run to the compacted topic; durable on return."""
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, message: object) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer(
        client_settings(
            kafka,
            "tidemill-definitions",
            {
                "acks": "all",
                "linger.ms": 0,
                # Written twice, a definition is the same. An idempotent producer would wait half a
                # second for its number first, and with it every worker that starts.
                "enable.idempotence": False,
                "message.timeout.ms": int(PUBLISH_SECONDS * 1000),
            },
        )
    )
    for type_name, value in definitions.items():
        producer.produce(topic, value, type_name.encode(), on_delivery=delivered)
    left = producer.flush(PUBLISH_SECONDS)
    if failures and failures[0].code() in FINAL_KAFKA_ERRORS:
        raise TopicRefused(f"Kafka refuses the definitions in {topic}: {failures[0].str()}")
    if failures or left:
        why = failures[0].str() if failures else "no answer in time"
        raise TopicsError(
            f"the definitions could not be written to {topic}: {why}; run `tidemill topics apply`"
        )


def prepare(settings: WorkerSettings, loaded: Loaded) -> None:
    """Topics and definitions, for as long as Kafka needs to come up.

    Raises TopicRefused for an answer that waiting does not change, OlderInstallation where a topic
    is missing that only `topics apply` brings.
    """
    topics = Topics(settings.topic_prefix)
    needed = [topics.outcomes, topics.heartbeats, topics.control, topics.definitions]
    if loaded.has_schedules:
        needed.append(topics.schedules)  # no ledger without it asks for their jobs
    while True:
        try:
            await_topics(settings.kafka, topics, needed, logger.warning)
            ensure_ready_topics(settings.kafka, topics, loaded.queues)
            publish_definitions(settings.kafka, topics.definitions, loaded.definitions)
            return
        except (TopicRefused, OlderInstallation):
            raise
        except (TopicsError, KafkaException) as error:
            cause = error.args[0] if isinstance(error, KafkaException) else None
            if isinstance(cause, KafkaError) and cause.code() in FINAL_KAFKA_ERRORS:
                raise TopicRefused(f"Kafka refused: {cause.str()}") from error
            logger.warning("waiting for Kafka at %s: %s", settings.kafka, error)
            clocks.sleep(START_RETRY_SECONDS)


def explain_refusal(error: TopicRefused, queues: Iterable[str]) -> str:
    """One line: what Kafka refused, for which queues, and the way out."""
    return (
        f"{error}; the queues of this worker are {', '.join(queues)}: choose other names or "
        "another topic prefix, or ask for the right to create and write their topics"
    )
