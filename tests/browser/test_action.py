"""One action on the page: its error, attempts, log, inputs and outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from etcd_actions import Phase
from tests.browser.shown import minutes_ago, open_action
from tests.support.chromium import Page
from tests.support.page_data import Run, Step
from tests.support.page_runs import EVICTED, TRACEBACK, forecast, small_run, went
from tests.support.page_site import PageSite, with_data

pytestmark = pytest.mark.slow


async def test_an_error_is_shown_with_its_whole_traceback(page: Page, site: PageSite) -> None:
    await open_action(page, site, small_run(minutes_ago(1)), "check")
    await page.until_shown("KeyError", "aside .error-block .code")
    shown = await page.value("document.querySelector('aside .error-block pre').textContent")
    assert shown == TRACEBACK


async def test_each_attempt_has_its_phases_and_its_error(page: Page, site: PageSite) -> None:
    await open_action(page, site, forecast(minutes_ago(8)), "weather")
    await page.until_shown("3 attempts", "aside")
    items = await page.texts("aside .attempts > li")
    assert [text.split()[0] for text in items] == ["#3", "#2", "#1"]
    assert EVICTED.message in items[1]
    assert EVICTED.message in items[2]
    assert EVICTED.message not in items[0]
    phases = await page.texts("aside .attempts > li:first-child table .badge .word")
    assert [each.lower() for each in phases] == ["queued", "initializing", "running", "succeeded"]


async def test_an_open_action_follows_its_changes(page: Page, site: PageSite) -> None:
    run = small_run(minutes_ago(1))
    await open_action(page, site, run, "fold-2")
    await page.until_shown("running", "aside .panel-state")
    await site.report(run.action_id("fold-2"), Phase.SUCCEEDED)
    await page.until_shown("succeeded", "aside .panel-state")


async def test_a_log_is_followed_as_it_grows(page: Page, site: PageSite) -> None:
    run = small_run(minutes_ago(1))
    await site.put(run)
    log = await site.log_of(run.action_id("fold-2"))
    log.write_text("epoch 1\n\x1b[31mepoch 2 in red\x1b[0m\n")
    await open_action(page, site, run, "fold-2", "Log")
    await page.until_shown("epoch 2 in red\n", "aside .log")
    with log.open("a") as file:
        file.write("epoch 3 <b>not bold</b>\n")
    await page.until_shown("epoch 3 <b>not bold</b>", "aside .log")
    shown = await page.value("document.querySelector('aside .log').textContent")
    assert shown == "epoch 1\nepoch 2 in red\nepoch 3 <b>not bold</b>\n"
    assert await page.count("aside .log b") == 0


async def test_a_log_stays_where_one_reads_and_follows_again_at_its_end(
    page: Page, site: PageSite
) -> None:
    run = small_run(minutes_ago(1))
    await site.put(run)
    log = await site.log_of(run.action_id("fold-2"))
    log.write_text("".join(f"line {number}\n" for number in range(500)))
    await open_action(page, site, run, "fold-2", "Log")
    await page.until_shown("line 499\n", "aside .log")
    output = "document.querySelector('aside .log')"
    at_end = f"{output}.scrollHeight - {output}.scrollTop - {output}.clientHeight < 5"
    await page.until(at_end)
    await page.value(f"{output}.scrollTop = 0")
    await page.until("!document.querySelector('aside input[type=checkbox]').checked")
    with log.open("a") as file:
        file.write("line 500\n")
    await page.until_shown("line 500\n", "aside .log")
    assert await page.value(f"{output}.scrollTop") == 0
    await page.value(f"{output}.scrollTop = {output}.scrollHeight")
    await page.until("document.querySelector('aside input[type=checkbox]').checked")
    with log.open("a") as file:
        file.write("line 501\n" * 50)
    await page.until_shown("line 501\n", "aside .log")
    await page.until(at_end)


async def test_the_log_of_an_earlier_attempt_is_shown(page: Page, site: PageSite) -> None:
    run = forecast(minutes_ago(8))
    await site.put(run)
    for attempt in (1, 3):
        log = await site.log_of(run.action_id("weather"), attempt)
        log.write_text(f"attempt {attempt} was here\n")
    await open_action(page, site, run, "weather", "Log")
    await page.until_shown("attempt 3 was here", "aside .log")
    await page.click("aside [role=tab]", "Overview")
    await page.click("aside .attempts > li:last-child button", "log")
    await page.until_shown("attempt 1 was here", "aside .log")


async def test_inputs_and_outputs_are_shown_as_values(
    page: Page, site: PageSite, tmp_path: Path
) -> None:
    inputs = {"horizon": 14, "region": "emea", "fast": True, "share": 0.25}
    run = with_data(small_run(minutes_ago(1)), tmp_path, inputs)
    await site.put(run)
    await site.put_outputs(run.action_id("extract"), {"o0": "s3://sales/2026-11-28"})
    await open_action(page, site, run, "extract", "Data")
    await page.until_shown("s3://sales/2026-11-28", "aside .values")
    for name, value in (("horizon", "14"), ("region", "emea"), ("fast", "True"), ("share", "0.25")):
        await page.until_shown(name, "aside .values")
        await page.until_shown(value, "aside .values")


async def test_a_report_is_linked_and_cannot_reach_the_page(
    page: Page, site: PageSite, tmp_path: Path
) -> None:
    steps = [
        Step(name="a0", parent="", task="main", phases=went(0, 1, 2)),
        Step(name="with", reports=True, phases=went(2, 3, 4, end=9)),
        Step(name="without", phases=went(2, 3, 4, end=9)),
    ]
    run = with_data(Run(name="r1", started=minutes_ago(1), steps=steps), tmp_path, {})
    await site.put(run)
    action = await site.client.get_task_action(run.action_id("with"))
    file = Path(action.output_uri) / "report.html"
    file.parent.mkdir(parents=True)
    file.write_text("<h1>Figures</h1><script>window.__ran = self.origin</script>")
    await open_action(page, site, run, "without")
    assert not [each for each in page.requests if "CreateDownloadLink" in each]
    await open_action(page, site, run, "with")
    await page.until_shown("Open the report", "aside")
    link = "document.querySelector('aside a.button')"
    assert await page.value(f"{link}.rel") == "noopener noreferrer"
    await page.go(await page.value(f"{link}.href"))
    await page.until_shown("Figures")
    # Its scripts may run, as a document of no origin.
    assert await page.value("window.__ran") == "null"
    # A report has no icon, for which the browser looks.
    assert not [each for each in page.problems if "favicon.ico" not in each]
    page.problems.clear()


async def test_the_object_is_shown_as_it_is(page: Page, site: PageSite) -> None:
    await open_action(page, site, small_run(minutes_ago(1)), "check", "Raw")
    await page.until_shown('"ACTION_PHASE_FAILED"', "aside pre.raw")


async def test_an_action_that_is_not_there_is_said_to_be_missing(
    page: Page, site: PageSite
) -> None:
    run = small_run(minutes_ago(1))
    await site.put(run)
    await page.go(f"{site.url_of(run)}?action=none")
    await page.until("document.querySelector('aside .problem') !== null")
    page.problems.clear()
