"""The page in headless Chromium: what it shows, how it lives, and what it never does."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Open
from tests.page.sample import Sample, insert, request
from tidemill.agents import queries
from tidemill.agents.api import view
from tidemill.agents.api.main import STATIC
from tidemill.agents.api.routes import job_path
from tidemill.agents.clickhouse.engine import Engine, EngineUnavailable

AXE: Final = (Path(__file__).parent / "axe.min.js").read_text(encoding="utf-8")
CHARTS: Final = 5
SCRIPT: Final = "<script>window.stolen=1</script><img src=x onerror='window.stolen=1'>"


def figure(page: Page, name: str) -> str:
    return page.locator(f"[data-kpi={name}]").inner_text().replace("\n", " ")


def table(page: Page, name: str) -> list[list[str]]:
    rows = page.locator(f"[data-table={name}] tbody tr").all()
    return [[cell.strip() for cell in row.locator("td").all_inner_texts()] for row in rows]


def brightness(page: Page, selector: str) -> float:
    color = page.locator(selector).first.evaluate("e => getComputedStyle(e).backgroundColor")
    parts = [float(part) for part in re.findall(r"[\d.]+", color)[:3]]
    return sum(parts) / len(parts)


def accessibility_faults(page: Page) -> list[str]:
    """What axe-core finds: rules of WCAG A and AA that are broken."""
    page.evaluate(AXE)
    found: dict[str, Any] = page.evaluate(
        "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']})"
    )
    return [
        f"{fault['id']}: {node['html'][:120]} {node['any'][0]['message'] if node['any'] else ''}"
        for fault in found["violations"]
        for node in fault["nodes"]
    ]


def test_the_numbers_shown_are_the_numbers_queried(open_page: Open, engine: Engine) -> None:
    watched = open_page()
    page = watched.go("/?minutes=60")
    window = queries.Window.last(60, datetime.now(UTC))
    live = queries.run(engine, "live_now")[0]
    latency = queries.run(engine, "latency", window)[0]
    totals = queries.run(engine, "totals", window)[0]
    assert figure(page, "waiting") == view.number(live["waiting"])
    assert figure(page, "in_flight") == view.number(live["in_flight"])
    assert figure(page, "dead") == view.number(live["dead_letters"])
    assert figure(page, "wait") == view.duration(latency["wait_p50_ms"])
    assert figure(page, "run") == view.duration(latency["run_p50_ms"])
    assert figure(page, "error") == view.percent(totals["error_percent"])
    errors = queries.run(engine, "error_rate_by_type", window, limit=8)
    assert [row[:4] for row in table(page, "error_rate_by_type")] == [
        [row["type"], view.number(row["attempts"]), view.number(row["attempts_failed"]),
         view.percent(row["error_percent"])]
        for row in errors
    ]
    states = queries.run(engine, "states_now")
    assert [row[:2] for row in table(page, "states")] == [
        [row["status"], view.number(row["jobs"])] for row in states
    ]
    failures = queries.run(engine, "last_failures", window, limit=8)
    assert [row[1] for row in table(page, "last_failures")] == [row["job_id"] for row in failures]
    watched.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_quiet_and_accessible(
    open_page: Open, sample: Sample, scheme: Literal["light", "dark"]
) -> None:
    watched = open_page(scheme)
    failed = next(row for row in sample.ended("failed") if row["attempt"])
    job = job_path(failed["job_id"], failed["user_id"])
    for path in ("/", "/jobs?status=failed", job, "/docs"):
        page = watched.go(path)
        if path == "/":
            expect(page.locator(".chart canvas")).to_have_count(CHARTS)
        is_bright = brightness(page, "body") > 128
        assert is_bright == (scheme == "light"), path
        assert accessibility_faults(page) == [], path
    page = watched.go("/")
    expect(page.locator("#charts[data-drawn]")).to_be_visible()
    watched.check()


def test_the_api_describes_itself_without_another_host(open_page: Open) -> None:
    watched = open_page()
    page = watched.go("/docs")
    document = page.request.get(watched.base + "/openapi.json").json()
    told = [
        f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item
    ]
    shown = page.locator("section h2").all_inner_texts()
    assert sorted(shown) == sorted(told)
    assert "POST /api/jobs" in shown
    # Fields of a request, with their bounds, and what comes back.
    heading = page.get_by_role("heading", name="POST /api/jobs", exact=True)
    asking = page.locator("section", has=heading)
    expect(asking).to_contain_text("user_id")
    expect(asking).to_contain_text("at most 256")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    watched.check()


def test_the_charts_tell_units_and_latest_numbers(open_page: Open) -> None:
    watched = open_page()
    page = watched.go("/?minutes=60")
    throughput = page.locator("[data-chart=throughput]")
    expect(throughput.locator(".u-legend .u-label").first).to_have_text("time")
    labels = throughput.locator(".u-legend .u-label").all_inner_texts()
    assert labels[:3] == ["time", "succeeded", "failed"]
    expect(throughput.locator(".u-legend .u-value").nth(1)).to_have_text(re.compile(r"^\d"))
    expect(page.locator("[data-chart=wait_series] .u-legend")).to_contain_text("p99")
    watched.check()


def test_what_nobody_can_run_is_on_the_first_page_and_in_the_job_s_story(open_page: Open) -> None:
    watched = open_page()
    page = watched.go("/?minutes=60")
    panel = page.locator("[data-table=nobody_runs]")
    expect(panel).to_contain_text("mail")
    expect(panel).to_contain_text("no living worker serves its queue")
    expect(panel).to_contain_text("no living worker of its queue runs this type")
    expect(page.locator("[data-table=hand_backs]")).to_contain_text("type not run")
    page = watched.go("/jobs/letter-0?user_id=ada")
    expect(page.locator("main")).to_contain_text("no living worker serves its queue")
    watched.check()


def test_new_jobs_show_up_without_a_reload(open_page: Open, engine: Engine) -> None:
    watched = open_page()
    page = watched.go("/")
    page.evaluate("window.isSameDocument = true")
    before = queries.run(engine, "live_now")[0]["waiting"]
    made = Sample()
    for index in range(7):
        request(made, datetime.now(UTC), "live", f"live-{index}", "live.test", "live", {})
    insert(engine, made)
    expect(page.locator("[data-kpi=waiting]")).to_have_text(
        view.number(before + 7), timeout=10_000
    )
    expect(page.locator("[data-table=queues]")).to_contain_text("live")
    assert page.evaluate("window.isSameDocument") is True
    watched.check()


def test_a_hidden_tab_asks_for_nothing(open_page: Open) -> None:
    watched = open_page()
    watched.page.clock.install()
    page = watched.go("/jobs")
    page.clock.run_for(5_000)
    asked = [url for url in watched.requests if "/jobs" in url]
    assert len(asked) >= 2
    page.evaluate(
        "Object.defineProperty(document, 'hidden', {get: () => true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    expect(page.locator("#live")).to_have_text("paused")
    page.wait_for_load_state("networkidle")
    count = len(watched.requests)
    page.clock.run_for(20_000)
    assert len(watched.requests) == count
    watched.check()


def test_the_theme_can_be_chosen_and_stays(open_page: Open) -> None:
    watched = open_page("light")
    page = watched.go("/")
    expect(page.locator(".chart canvas")).to_have_count(CHARTS)
    page.click("#theme")
    assert brightness(page, "body") < 128
    expect(page.locator(".chart canvas")).to_have_count(CHARTS)
    page = watched.go("/jobs")
    assert brightness(page, "body") < 128
    page.click("#theme")
    assert brightness(page, "body") > 128
    watched.check()


def test_filters_live_in_the_address(open_page: Open, engine: Engine) -> None:
    watched = open_page()
    page = watched.go("/jobs")
    page.get_by_label("Type").select_option("email.send")
    page.get_by_role("button", name="Filter").click()
    expect(page).to_have_url(re.compile("type=email.send"))
    page.get_by_role("link", name="Succeeded").click()
    expect(page).to_have_url(re.compile("status=succeeded"))
    expect(page.locator("[data-table=jobs] tbody tr")).to_have_count(50)
    rows = table(page, "jobs")
    assert len(rows) == 50
    assert {(row[0], row[3]) for row in rows} == {("succeeded", "email.send")}
    page.get_by_role("link", name="Older").click()
    expect(page).to_have_url(re.compile("cursor="))
    expect(page.get_by_role("link", name="Newest")).to_be_visible()
    older = table(page, "jobs")
    assert not {row[1] for row in rows} & {row[1] for row in older}
    watched.check()


def test_a_job_tells_its_story(open_page: Open, sample: Sample) -> None:
    watched = open_page()
    watched.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    failed = next(row for row in sample.ended("failed") if row["attempt"] > 1)
    events = [row for row in sample.rows if row["job_id"] == failed["job_id"]]
    page = watched.go(job_path(failed["job_id"], failed["user_id"]))
    expect(page.locator(".story li")).to_have_count(len(events))
    expect(page.locator(".story")).to_contain_text("Retry scheduled")
    expect(page.locator(".story")).to_contain_text(failed["error_message"])
    expect(page.locator("[data-part=payload]")).to_contain_text('"language"')
    expect(page.locator("form[action^='/job/redrive?job_id=']")).to_have_count(1)
    expect(page.locator("form[action^='/job/cancel?']")).to_have_count(0)
    page.get_by_role("button", name="Copy as CLI").click()
    expect(page.locator(".actions")).to_contain_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == view.Ports().show(failed["job_id"], failed["user_id"])
    watched.check()


def test_scripts_in_a_job_do_not_run(open_page: Open, engine: Engine) -> None:
    made = Sample()
    hostile = request(
        made, datetime.now(UTC), f"u{SCRIPT}", f"j{SCRIPT}", f"t{SCRIPT}", f"q{SCRIPT}",
        {"text": SCRIPT},
    )
    error: dict[str, Any] = {"error_code": f"C{SCRIPT}", "error_message": f"m{SCRIPT}"}
    hostile.tell("attempt_failed", "running", **error).tell(
        "failed", "failed", reason=f"r{SCRIPT}", **error
    )
    insert(engine, made)
    watched = open_page()
    for path in ("/", "/jobs", job_path(f"j{SCRIPT}", f"u{SCRIPT}")):
        page = watched.go(path)
        page.wait_for_load_state("networkidle")
        expect(page.locator("main")).to_contain_text(f"m{SCRIPT}" if path != "/jobs" else SCRIPT)
        assert page.evaluate("window.stolen") is None
        assert page.locator("main img, main script").count() == 0
    watched.check()


def test_without_clickhouse_there_is_a_banner(
    open_page: Open, serve: Callable[[Callable[[], Engine]], str]
) -> None:
    def away() -> Engine:
        raise EngineUnavailable("connection refused")

    watched = open_page(base=serve(away))
    page = watched.go("/jobs")
    expect(page.get_by_role("alert")).to_contain_text("ClickHouse does not answer")
    assert accessibility_faults(page) == []
    watched.check()


def test_the_table_of_vendored_files_is_true() -> None:
    folder = STATIC / "vendor"
    table_row = re.compile(r"^\| (\S+) \|.*\| ([0-9a-f]{64}) \|$", re.MULTILINE)
    told = dict(table_row.findall((folder / "VENDORED.md").read_text(encoding="utf-8")))
    found = {
        path.name: sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.suffix in (".js", ".css")
    }
    assert found == told
