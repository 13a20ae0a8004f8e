"""Cancel and Redrive, clicked on the page of a real `tidemill dev`: the job's state follows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.integration.test_dev import Dev
from tests.page.conftest import Watched
from tests.waiting import wait_until
from tidemill.agents.api.routes import job_path
from tidemill.agents.embedded.ports import free_port
from tidemill.client import Client

pytestmark = pytest.mark.timeout(180)

SECONDS: Final = 60.0
JOBS: Final = '''
from pathlib import Path
from tidemill import Context, NonRetryable, job

@job("needs.a.file")
def needs_a_file(payload: dict) -> str:
    if not Path(payload["path"]).exists():
        raise NonRetryable("there is no file", code="NO_FILE")
    return "it is there"


@job("needs.a.word")
async def needs_a_word(payload: dict, ctx: Context) -> str:
    return await ctx.wait("the word", str)
'''


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Kafka's address and the page's."""
    (tmp_path / "jobs.py").write_text(JOBS)
    started = Dev(
        tmp_path, "jobs.py", "--data", str(tmp_path / "data"), "--kafka-port", str(free_port()),
        "--clickhouse-port", str(free_port()), "--http-port", str(free_port()),
    )
    try:
        kafka, _, http = started.wait_ready()
        yield kafka, http
        started.stop()
    finally:
        started.close()


def shown(page: Page, url: str, text: str) -> None:
    """The page of the job says so: rows come to ClickHouse a second after the event."""

    def says() -> bool:
        page.goto(url)
        return bool(page.locator(".story").filter(has_text=re.compile(text, re.I)).count())

    wait_until(says, SECONDS, lambda: page.locator("body").inner_text()[:2_000])


def test_cancel_and_redrive_do_what_their_buttons_say(
    browser: Browser, dev: tuple[str, str], tmp_path: Path
) -> None:
    kafka, http = dev
    context = browser.new_context()
    watched = Watched(context.new_page(), http)
    page = watched.page
    file = tmp_path / "file"
    later = datetime.now(UTC) + timedelta(hours=1)
    with Client(kafka) as client:
        waits = client.enqueue("needs.a.file", user_id="ada/x", job_id="wait s?", run_at=later)
        fails = client.enqueue("needs.a.file", user_id="ada", payload={"path": str(file)})
        assert client.wait(fails, SECONDS).status == "failed"

        url = http + job_path(waits.job_id, "ada/x")
        shown(page, url, "scheduled")
        page.get_by_role("button", name="Cancel", exact=True).click()
        assert client.wait(waits, SECONDS).status == "cancelled"
        shown(page, url, "cancelled")
        expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)

        url = http + job_path(fails.job_id, "ada")
        shown(page, url, "NO_FILE")
        file.touch()
        page.get_by_role("button", name="Redrive", exact=True).click()
        shown(page, url, "succeeded")
        expect(page.locator("[data-part=result]")).to_contain_text("it is there")
        expect(page.get_by_role("button", name="Redrive", exact=True)).to_have_count(0)

        asked = client.enqueue("needs.a.word", user_id="ada", job_id="asked")
        url = http + job_path("asked", "ada")
        shown(page, url, "signal the word")
        expect(page.locator("[data-part=wait]")).to_have_text("signal the word")
        told = httpx.post(
            f"{http}/api/jobs/asked/signal", json={"name": "the word", "value": "swordfish"},
            params={"user_id": "ada"},
        )
        assert told.json()["event"] == "resumed", told.text
        assert client.wait(asked, SECONDS).result == "swordfish"
        shown(page, url, "signal came")
        expect(page.locator("[data-part=wait]")).to_have_count(0)
    # Until its row is in ClickHouse a job's page is a 404, which the browser tells of.
    assert [each for each in watched.complaints if "404" not in each] == []
    context.close()
