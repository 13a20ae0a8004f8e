"""What the command line asks of ClickHouse: parameters as it reads them, spans of time."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from tidemill import sql
from tidemill.history import since_of


def test_a_parameter_is_read_as_it_was_meant() -> None:
    request = sql._request(
        "http://127.0.0.1:8123", "SELECT {id:String}", {"id": "a\\b\tc"}, None, {}
    )
    # The server takes a parameter for an escaped value of its TSV.
    assert parse_qs(urlsplit(request.full_url).query)["param_id"] == ["a\\\\b\\tc"]


def test_a_span_before_all_time_is_named() -> None:
    with pytest.raises(ValueError, match="999999d ago is before all time"):
        since_of("999999d")


@pytest.mark.parametrize(
    ("address", "database"),
    [
        ("http://127.0.0.1:8123", None), ("http://127.0.0.1:8123/", None),
        ("http://u:p@host:8123/jobs", "jobs"), ("http://host/my%20jobs/", "my jobs"),
        ("http://host/one?database=other", "other"),
    ],
)
def test_the_database_of_an_address_is_the_one_that_the_roles_use(
    address: str, database: str | None
) -> None:
    request = sql._request(address, "SELECT 1", {}, None, {})
    found = parse_qs(urlsplit(request.full_url).query).get("database", [None])
    assert found == [database]
