"""The list of runs on the page."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from etcd_actions import Phase
from tests.browser.shown import minutes_ago
from tests.support.chromium import Browser, Page, Screen
from tests.support.page_runs import demonstration, forecast, small_run
from tests.support.page_site import PageSite

pytestmark = pytest.mark.slow

ROWS = "[role=grid] .row[data-key]"
SHOWN = (
    f"[...document.querySelectorAll('{ROWS}')]"
    ".sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)"
    ".map(each => each.querySelector('.run-link').textContent)"
)


async def test_runs_are_listed_newest_first(page: Page, site: PageSite) -> None:
    await site.put(*(small_run(minutes_ago(number), f"run-{number}") for number in range(1, 6)))
    await page.go(site.url)
    await page.until(f"{SHOWN}.join() === 'run-1,run-2,run-3,run-4,run-5'")
    assert "5 runs" in await page.value("document.body.innerText")


async def test_a_new_run_appears_and_its_end_is_shown(page: Page, site: PageSite) -> None:
    await site.put(small_run(minutes_ago(2), "old"))
    await page.go(site.url)
    await page.until(f"{SHOWN}.join() === 'old'")
    new = small_run(minutes_ago(1), "new")
    await site.put(new)
    await page.until(f"{SHOWN}.join() === 'new,old'")
    await site.report(new.action_id(), Phase.SUCCEEDED)
    await page.until(
        f"document.querySelector('{ROWS}[aria-rowindex=\"1\"] .badge').dataset.phase"
        " === 'SUCCEEDED'"
    )


async def test_the_numbers_of_actions_follow_the_runs(page: Page, site: PageSite) -> None:
    run = small_run(minutes_ago(2), "counted")
    await site.put(run, *(small_run(minutes_ago(3 + n), f"r{n}") for n in range(100)))
    await page.go(site.url)
    count = f"document.querySelector('{ROWS}[aria-rowindex=\"1\"] .count').textContent"
    await page.until(f"{count} === '3/6'")
    await site.report(run.action_id("fold-2"), Phase.SUCCEEDED)
    await page.until(f"{count} === '4/6'")
    grid = "document.querySelector('[role=grid] .rows')"
    last = f"document.querySelector('{ROWS}[aria-rowindex=\"101\"] .count')?.textContent"
    await page.until(f"({grid}.scrollTop = {grid}.scrollHeight, {last} === '3/6')")


@pytest.mark.parametrize("width", [320, 721, 768, 861, 1001, 1280])
async def test_no_column_is_outside_at_any_width(
    browser: Browser, site: PageSite, width: int
) -> None:
    await site.put(small_run(minutes_ago(3_000), "r" * 30))
    async with browser.open_page(Screen(width=width, height=600)) as page:
        await page.go(site.url)
        await page.until(f"document.querySelector('{ROWS} .count')?.textContent === '3/6'")
        for row in (".runs-head", ROWS):
            element = f"document.querySelector('{row}')"
            assert await page.value(f"{element}.scrollWidth - {element}.clientWidth") == 0, row
        assert await page.value("document.documentElement.scrollWidth - innerWidth") == 0


async def test_runs_are_filtered_and_the_address_keeps_the_filter(
    page: Page, site: PageSite
) -> None:
    runs = list(demonstration(minutes_ago(0)))
    await site.put(*runs)
    await page.go(site.url)
    await page.until(f"{SHOWN}.length > 10")
    await page.click("input[name=q]")
    await page.type("REINDEX")
    await page.until(f"{SHOWN}.every(each => each.includes('reindex'))")
    await page.value("document.querySelector('select[name=phase]').value = 'FAILED'")
    await page.value(
        "document.querySelector('select[name=phase]')"
        ".dispatchEvent(new Event('change', {bubbles: true}))"
    )
    matching = [
        run.name
        for run in runs
        if "reindex" in run.name and run.steps[0].phases[-1][0] is Phase.FAILED
    ]
    shown = f"{SHOWN}.slice().sort().join() === '{','.join(sorted(matching))}'"
    await page.until(shown)
    address = await page.value("location.search")
    assert "phase=FAILED" in address
    await page.go("about:blank")
    await page.go(f"{site.url}/{address}")
    await page.until(shown)
    await page.click("input[name=q]")
    await page.type("no such run")
    await page.click("button", "Clear the filters")
    await page.until(f"{SHOWN}.length > 10")


async def test_a_label_filters_runs(page: Page, site: PageSite) -> None:
    runs = list(demonstration(minutes_ago(0)))
    await site.put(*runs)
    await page.go(f"{site.url}/?label={quote('team=forecast')}")
    expected = sum(run.labels.get("team") == "forecast" for run in runs)
    await page.until_shown(f"{expected} runs")


async def test_a_run_is_opened_and_left_again(page: Page, site: PageSite) -> None:
    run = forecast(minutes_ago(8))
    await site.put(run)
    await page.go(site.url)
    await page.click(".run-link", run.name)
    await page.until_shown("train_all_regions")
    assert await page.value("location.pathname") == run.path
    await page.value("history.back()")
    await page.until(f"{SHOWN}.join() === '{run.name}'")


async def test_a_service_without_runs_says_how_to_start_one(page: Page, site: PageSite) -> None:
    await page.go(site.url)
    await page.until_shown("No runs yet")


async def test_all_of_many_runs_are_reached_by_scrolling(page: Page, site: PageSite) -> None:
    await site.put(*(small_run(minutes_ago(number), f"run-{number}") for number in range(450)))
    await page.go(site.url)
    await page.until(f"{SHOWN}[0] === 'run-0'")
    grid = "document.querySelector('[role=grid] .rows')"
    await page.until(f"({grid}.scrollTop = {grid}.scrollHeight, {SHOWN}.at(-1) === 'run-449')")
    assert await page.count(ROWS) < 80
