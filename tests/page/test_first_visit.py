"""The page before the first job: a module of its own, since a process opens one chDB folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.page.conftest import Open
from tests.page.sample import engine_with
from tidemill.agents.api import view
from tidemill.agents.clickhouse.engine import Engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_with(tmp_path_factory.mktemp("clickhouse"), None) as opened:
        yield opened


@pytest.mark.parametrize("path", ["/", "/jobs"])
def test_an_empty_page_tells_how_to_make_the_first_job(open_page: Open, path: str) -> None:
    watched = open_page()
    page = watched.go(path)
    expect(page.locator(".welcome")).to_contain_text(view.Ports().first_job())
    assert page.locator("[data-copy]").first.get_attribute("data-copy") == view.Ports().first_job()
    watched.check()
