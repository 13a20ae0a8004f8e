"""Settings: sources, bounds, and messages that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.agents.callers import http_address, is_loopback
from tidemill.agents.settings import (
    MASK,
    ApiSettings,
    CommonSettings,
    LedgerSettings,
    SettingsError,
    SinkSettings,
    StackSettings,
    WorkerSettings,
    effective,
    load,
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith("TIDEMILL_"):
            monkeypatch.delenv(name)


def test_defaults_are_those_of_the_dev_stack() -> None:
    settings = load(CommonSettings)
    assert settings.kafka == "127.0.0.1:9092"
    assert settings.clickhouse == "http://127.0.0.1:8123"
    assert settings.partitions == 4
    assert settings.data == Path(".tidemill")


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_KAFKA", "a:1")
    monkeypatch.setenv("TIDEMILL_PARTITIONS", "8")
    settings = load(LedgerSettings, kafka="b:2", partitions=None)
    assert (settings.kafka, settings.partitions) == ("b:2", 8)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a,b", ("a", "b")),
        (" a , b ,", ("a", "b")),
        ("", None),
        (None, None),
    ],
)
def test_queues_are_words_with_commas(given: str | None, expected: tuple[str, ...] | None) -> None:
    assert load(WorkerSettings, queues=given).queues == expected


def test_queues_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_QUEUES", "mail,slow")
    assert load(WorkerSettings).queues == ("mail", "slow")


@pytest.mark.parametrize(
    ("cls", "given", "words"),
    [
        (CommonSettings, {"kafka": "nowhere"}, ("--kafka", "'nowhere'", "HOST:PORT")),
        (CommonSettings, {"kafka": "a:70000"}, ("--kafka", "HOST:PORT")),
        (CommonSettings, {"partitions": 0}, ("--partitions", "greater than or equal to 1")),
        (CommonSettings, {"clickhouse": "8123"}, ("--clickhouse", "http://HOST:PORT")),
        (CommonSettings, {"topic_prefix": "a/b"}, ("--topic-prefix",)),
        (WorkerSettings, {"queues": "a b"}, ("--queues", "'a b'", "letters")),
        (WorkerSettings, {"concurrency": 0}, ("--concurrency",)),
        (SinkSettings, {"batch_seconds": 0}, ("--batch-seconds",)),
        (ApiSettings, {"http_host": "0.0.0.0"}, ("token is required", "TIDEMILL_TOKEN")),
        (StackSettings, {"http_host": "example.com"}, ("token is required",)),
    ],
)
def test_a_wrong_option_is_named_with_the_way_out(
    cls: type[CommonSettings], given: dict[str, object], words: tuple[str, ...]
) -> None:
    with pytest.raises(SettingsError) as raised:
        load(cls, **given)
    for word in words:
        assert word in str(raised.value)


def test_a_wrong_variable_is_named_as_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_PARTITIONS", "many")
    with pytest.raises(SettingsError, match="TIDEMILL_PARTITIONS"):
        load(CommonSettings)


def test_several_wrong_settings_are_all_named() -> None:
    with pytest.raises(SettingsError) as raised:
        load(CommonSettings, kafka="x", partitions=0)
    assert "--kafka" in str(raised.value)
    assert "--partitions" in str(raised.value)


def test_an_address_off_loopback_is_fine_with_a_token() -> None:
    assert load(ApiSettings, http_host="0.0.0.0", token="t").token is not None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True),
        ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False), ("example.com", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_an_address_of_ipv6_stands_in_brackets() -> None:
    assert http_address("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert http_address("::1", 80) == "http://[::1]:80"


def test_effective_settings_tell_their_source_and_mask_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIDEMILL_TOKEN", "secret-word")
    monkeypatch.setenv("TIDEMILL_CLICKHOUSE", "http://bob:hunter2@db:8123")
    rows = {row.name: row for row in effective(load(StackSettings, kafka="a:1"), kafka="a:1")}
    assert (rows["kafka"].value, rows["kafka"].source) == ("a:1", "command line")
    assert (rows["token"].value, rows["token"].source) == (MASK, "environment")
    assert rows["clickhouse"].value == f"http://{MASK}@db:8123"
    assert rows["partitions"].source == "default"
    shown = " ".join(row.value for row in rows.values())
    assert "secret-word" not in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    "cls", [CommonSettings, LedgerSettings, WorkerSettings, SinkSettings, StackSettings]
)
def test_every_setting_says_what_it_means(cls: type[CommonSettings]) -> None:
    silent = [row.name for row in effective(load(cls)) if not row.meaning]
    assert silent == []


ROLES = (CommonSettings, LedgerSettings, WorkerSettings, SinkSettings, ApiSettings, StackSettings)


@pytest.mark.parametrize("cls", ROLES)
@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_a_variable_that_is_empty_is_not_set(
    cls: type[CommonSettings], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = load(cls)
    for name in cls.model_fields:
        monkeypatch.setenv(f"TIDEMILL_{name.upper()}", text)
    assert load(cls).model_dump(exclude={"worker_id"}) == usual.model_dump(exclude={"worker_id"})
    assert {row.source for row in effective(load(cls))} == {"default"}


@pytest.mark.parametrize("cls", ROLES)
def test_an_option_that_is_empty_is_not_given(
    cls: type[CommonSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMILL_KAFKA", "a:1")
    names = set(cls.model_fields) - {"topic_prefix"}
    assert load(cls, **dict.fromkeys(names, "")).kafka == "a:1"
    # An empty prefix is a prefix: none.
    monkeypatch.setenv("TIDEMILL_TOPIC_PREFIX", "x.")
    assert load(cls, topic_prefix="").topic_prefix == ""


@pytest.mark.parametrize("token", ["", "  ", "\n"])
@pytest.mark.parametrize("cls", [ApiSettings, StackSettings])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "tidemill.example"])
def test_an_empty_token_opens_nothing(
    cls: type[ApiSettings], token: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMILL_TOKEN", token)
    with pytest.raises(SettingsError, match="a token is required"):
        load(cls, http_host=host)


@pytest.mark.parametrize("token", ["M\u00fcller", "a\nb", "a\x1bb"])
def test_a_token_that_no_header_carries_is_refused(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMILL_TOKEN", token)
    with pytest.raises(SettingsError, match="TIDEMILL_TOKEN"):
        load(ApiSettings)


def test_a_token_loses_the_line_end_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_TOKEN", "secret\n")
    token = load(ApiSettings).token
    assert token is not None
    assert token.get_secret_value() == "secret"


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", ()), ("Tide.example", ("tide.example",)), ("a, [::1],b,", ("a", "::1", "b"))],
)
def test_allowed_hosts_are_words_with_commas(given: str, expected: tuple[str, ...]) -> None:
    assert load(ApiSettings, allowed_hosts=given).allowed_hosts == expected


@pytest.mark.parametrize("given", ["*", "a:80", "http://a", "a/b", "a b", "user@a"])
def test_what_is_no_hosts_name_is_not_allowed(given: str) -> None:
    with pytest.raises(SettingsError, match="host's name"):
        load(ApiSettings, allowed_hosts=given)
