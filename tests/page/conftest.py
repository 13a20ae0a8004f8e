"""A headless Chromium and the page that it looks at.

Owns the browser, the server under test and a watch over everything that the browser complains of.
Refuses to know what the page should show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.debian import find
from tests.page.sample import Sample, engine_with, make_sample
from tidemill.agents.api.main import ApiServer, build_api
from tidemill.agents.clickhouse.engine import Engine
from tidemill.agents.settings import ApiSettings

# Chromium tells its maker nothing, and needs neither a sandbox nor a graphics card here.
FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)

Open = Callable[..., "Watched"]


class Watched:
    """A page, and what went wrong on it so far."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self.requests.append(request.url))

    def _on_console(self, message: Any) -> None:
        # Violations of the content security policy are console errors.
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def go(self, path: str) -> Page:
        """Open an address of the server."""
        self.page.goto(self.base + path)
        return self.page

    def check(self) -> None:
        """No complaint, and nothing was asked of anybody else."""
        assert self.complaints == []
        foreign = [url for url in self.requests if not url.startswith((self.base, "data:"))]
        assert foreign == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find("chromium")
    if path is None:
        pytest.skip("no Chromium: `make debian` installs it from Debian where it may")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def sample() -> Sample:
    return make_sample(datetime.now(UTC), jobs=1_500)


@pytest.fixture(scope="module")
def engine(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_with(tmp_path_factory.mktemp("clickhouse"), sample) as opened:
        yield opened


@pytest.fixture
def serve() -> Iterator[Callable[[Engine | Callable[[], Engine]], str]]:
    """Serve an engine; gives the address."""
    with ExitStack() as stack:

        def start(engine: Engine | Callable[[], Engine]) -> str:
            server = ApiServer(build_api(engine, ApiSettings()), "127.0.0.1", 0)
            server.start()
            stack.callback(server.stop)
            return f"http://127.0.0.1:{server.port}"

        yield start


@pytest.fixture
def open_page(
    browser: Browser, engine: Engine, serve: Callable[[Engine], str], tmp_path: Path
) -> Iterator[Open]:
    """A watched page of the server, in a browser profile of its own."""
    with ExitStack() as stack:

        def start(scheme: Literal["light", "dark"] = "light", base: str | None = None) -> Watched:
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": 1440, "height": 900}
            )
            stack.callback(context.close)
            return Watched(context.new_page(), base or serve(engine))

        yield start
