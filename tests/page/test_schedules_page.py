"""Schedules on the page of a real `tidemill dev`: what is listed, and what its buttons do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.integration.test_dev import Dev
from tests.page.conftest import Watched
from tests.page.test_page import accessibility_faults
from tidemill.agents.embedded.ports import free_port

pytestmark = pytest.mark.timeout(180)

MS: Final = 60_000
NARROW: Final = 390
JOBS: Final = '''
from tidemill import NonRetryable, Tick, schedule

@schedule("digest.daily", cron="0 9 * * *", zone="Europe/Berlin", overlap="queue_one")
async def digest(tick: Tick) -> dict:
    return {"for": tick.name}

@schedule("feeds.broken", every="90min", first="now")
async def broken() -> None:
    raise NonRetryable("no feed", code="NO_FEED")
'''


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("schedules")
    (folder / "jobs.py").write_text(JOBS)
    started = Dev(
        folder, "jobs.py", "--data", str(folder / "data"), "--kafka-port", str(free_port()),
        "--clickhouse-port", str(free_port()), "--http-port", str(free_port()),
    )
    try:
        yield started.wait_ready()[2]
        started.stop()
    finally:
        started.close()


@pytest.fixture
def page(browser: Browser, http: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    watched = Watched(context.new_page(), http)
    yield watched.go("/schedules")
    context.close()
    watched.check()


def row(page: Page, name: str) -> Locator:
    return page.locator("[data-table=schedules] tbody tr", has_text=name)


def test_schedules_are_listed_with_what_comes_and_what_was(page: Page) -> None:
    daily, broken = row(page, "digest.daily"), row(page, "feeds.broken")
    expect(daily).to_contain_text("0 9 * * *", timeout=MS)  # a worker has announced them
    expect(daily).to_contain_text("Europe/Berlin")
    expect(daily).to_contain_text("queue one")
    expect(daily.locator("time[data-relative]").first).to_contain_text("in ")
    expect(broken).to_contain_text("every 1h30min")
    # The last tick comes by itself, from ClickHouse.
    expect(broken).to_contain_text("failed", timeout=MS)
    expect(broken).to_contain_text("NO_FEED")
    broken.get_by_role("link", name="feeds.broken").click()
    expect(page.locator("[data-table=jobs]")).to_contain_text("feeds.broken@")


def test_buttons_pause_resume_and_run_now(page: Page) -> None:
    daily = row(page, "digest.daily")
    expect(daily).to_have_count(1, timeout=MS)
    daily.get_by_role("button", name="Pause digest.daily").click()
    expect(page.locator("[data-part=told]")).to_contain_text("digest.daily is paused")
    expect(daily).to_contain_text("paused")
    expect(daily.locator("td").nth(4)).to_have_text("–")
    page.get_by_role("link", name="Paused").click()
    expect(page.locator("[data-table=schedules] tbody tr")).to_have_count(1)
    daily.get_by_role("button", name="Resume digest.daily").click()
    expect(daily.locator("td").nth(4)).to_contain_text("in ")
    daily.get_by_role("button", name="Run now: digest.daily").click()
    expect(daily).to_contain_text("succeeded", timeout=MS)
    page.get_by_label("Name or type").fill("nothing")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("main")).to_contain_text("No schedule matches")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_fits_a_phone(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    expect(row(page, "digest.daily")).to_have_count(1, timeout=MS)
    assert accessibility_faults(page) == []
    page.set_viewport_size({"width": NARROW, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert accessibility_faults(page) == []
