"""What stays wrong ends all with its code; what may pass is tried again."""

from __future__ import annotations

import errno
from typing import Any

import pydantic
import pytest
from aiokafka.errors import CorruptRecordException
from confluent_kafka import KafkaError

from tests.unit.test_supervisor import Child, Clock
from tidemill.agents import exit_codes
from tidemill.agents import supervisor as supervisor_module
from tidemill.agents.embedded.errors import DamagedFolderError, JavaError
from tidemill.agents.runtime.errors import final_code, to_fatal
from tidemill.agents.supervisor import FAILED_STARTS_MAX, Supervisor
from tidemill.agents.worker import start
from tidemill.agents.worker.errors import ModuleLoadError
from tidemill.agents.worker.handlers import build_handler
from tidemill.agents.worker.start import check_topics, definition_value
from tidemill.cli.app import exit_code_of
from tidemill.schemas.wire import Definition

FAR_SECONDS = 60.0


class Role(Child):
    """A role that ends with one code whenever it is started, before it serves."""

    def __init__(self, code: int, *, is_begun: bool = False) -> None:
        super().__init__()
        self.always = code
        self.is_begun = is_begun

    def start(self) -> None:
        super().start()
        self.code = self.always

    def is_ready(self) -> bool:
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(supervisor_module, "time", clock)
    return clock


def starts_of(role: Role, clock: Clock) -> tuple[Supervisor, list[str]]:
    said: list[str] = []
    supervisor = Supervisor(said.append)
    supervisor.add(role, 0)
    for _ in range(4 * FAILED_STARTS_MAX):
        supervisor.look()
        clock.now += FAR_SECONDS
    return supervisor, said


@pytest.mark.parametrize("code", sorted(exit_codes.HOPELESS))
def test_a_code_that_says_never_again_ends_all(code: int, clock: Clock) -> None:
    role = Role(code)
    supervisor, said = starts_of(role, clock)
    assert (role.starts, supervisor.fatal_exit_code) == (1, code)
    assert len(said) == 1


@pytest.mark.parametrize("code", [1, 9, 13, 120])
def test_an_end_at_each_start_is_final(code: int, clock: Clock) -> None:
    role = Role(code)
    supervisor, said = starts_of(role, clock)
    assert (role.starts, supervisor.fatal_exit_code) == (FAILED_STARTS_MAX, code)
    assert f"exit code {code}" in said[-1]


@pytest.mark.parametrize("code", [*sorted(exit_codes.PASSING), 0, -9, -11])
def test_what_waits_for_others_or_was_killed_is_started_again(code: int, clock: Clock) -> None:
    role = Role(code)
    supervisor, _ = starts_of(role, clock)
    assert role.starts > FAILED_STARTS_MAX
    assert supervisor.fatal_exit_code is None


@pytest.mark.parametrize("code", [1, 2, 8, 13, 64, 78])
def test_a_job_that_ends_its_worker_does_not_end_all(code: int, clock: Clock) -> None:
    role = Role(code, is_begun=True)
    supervisor, _ = starts_of(role, clock)
    assert role.starts > FAILED_STARTS_MAX
    assert supervisor.fatal_exit_code is None


class Plain:
    """No model."""


class NoSchema(pydantic.BaseModel):
    """Holds what JSON Schema has no word for."""

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    plain: Plain | None = None


class RaisingSchema(pydantic.BaseModel):
    """Its own schema code has a fault."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
        raise KeyError("a fault of the user's")


class OddDefault(pydantic.BaseModel):
    """Half a pair of surrogates has no UTF-8."""

    text: str = "\ud800"


@pytest.mark.parametrize("model", [NoSchema, RaisingSchema, OddDefault])
def test_a_schema_that_cannot_be_made_is_left_out_with_a_warning(
    model: type[pydantic.BaseModel], caplog: pytest.LogCaptureFixture
) -> None:
    def run(payload: Any) -> None: ...

    run.__annotations__["payload"] = model
    value = definition_value(build_handler("odd", run))
    assert Definition.model_validate_json(value).payload_schema is None
    [line] = caplog.messages
    assert "'odd'" in line
    assert "test_final_errors.py" in line


def handlers(*queues: str) -> dict[str, Any]:
    def run(payload: dict[str, Any]) -> None: ...

    return {f"t{n}": build_handler(f"t{n}", run, queue=queue) for n, queue in enumerate(queues)}


@pytest.mark.parametrize(
    ("prefix", "queues", "words"),
    [("", ("a.b", "a_b"), "'a.b' and 'a_b'"), ("p.", ("x", "a_b_c", "a.b_c"), "another queue")],
)
def test_queues_whose_topics_kafka_would_refuse(
    prefix: str, queues: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ModuleLoadError, match=words) as caught:
        check_topics(prefix, handlers(*queues))
    assert "test_final_errors.py" in str(caught.value)


def test_queues_that_go_together() -> None:
    check_topics("p.", handlers("a.b", "a.b", "a-b", "ab", "A.b"))


def test_a_definition_that_cannot_be_written_names_its_handler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start, "DEFINITION_BYTES_MAX", 10)
    with pytest.raises(ModuleLoadError, match=r"'t0' on .*test_final_errors\.py"):
        definition_value(handlers("q")["t0"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (to_fatal(KafkaError(KafkaError._BAD_MSG), "reading a-0"), exit_codes.DAMAGED),
        (to_fatal(KafkaError(KafkaError._BAD_COMPRESSION), "reading a-0"), exit_codes.DAMAGED),
        (CorruptRecordException("Invalid CRC"), exit_codes.DAMAGED),
        (to_fatal(KafkaError(KafkaError._TRANSPORT), "reading a-0"), None),
        (OSError(28, "No space left on device"), None),
        (None, None),
    ],
)
def test_a_damaged_record_is_final(error: BaseException | None, code: int | None) -> None:
    assert final_code(error) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), exit_codes.FAILED),
        (OSError(errno.EMFILE, "Too many open files"), exit_codes.FAILED),
        (OSError(errno.EROFS, "Read-only file system", b"/data/x"), exit_codes.FAILED),
        (OSError(errno.EPERM, "a bug of ours"), None),
        (DamagedFolderError("x"), exit_codes.DAMAGED),
        (JavaError("x"), exit_codes.CONFIG),
    ],
)
def test_what_the_machine_refuses_is_one_line(error: Exception, code: int | None) -> None:
    assert exit_code_of(error) == code
