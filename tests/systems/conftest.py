"""What tests of the systems share: a database server, where one is installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres_server import postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a Postgres server."""
    with postgres_server() as dsn:
        if dsn is None:
            pytest.skip("no Postgres: `make debian` installs Debian's where it may")
        yield dsn
