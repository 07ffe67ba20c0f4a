"""A run of 10,000 actions: what the document has of it, and that it stays of use."""

from __future__ import annotations

import pytest

from etcd_actions import Phase
from tests.browser.shown import NAMES, ROWS, minutes_ago, phase_shown
from tests.support.chromium import Page
from tests.support.page_runs import large_run
from tests.support.page_site import PageSite

pytestmark = pytest.mark.slow

COUNT = 10_000
GRID = "document.querySelector('[role=treegrid]')"


async def test_ten_thousand_actions_take_some_tens_of_rows(page: Page, site: PageSite) -> None:
    run = large_run(minutes_ago(60), COUNT)
    await site.put(run)
    await page.go(f"{site.url_of(run)}?view=timeline")
    await page.until(f"{GRID}?.ariaRowCount === '{COUNT}'")
    await page.until(f"document.querySelectorAll('{ROWS}').length > 5")
    assert await page.count(ROWS) < 60
    assert await page.value("document.querySelectorAll('*').length") < 2_000
    # A change of what is in view, and of what is not.
    await site.report(run.action_id("part-000"), Phase.SUCCEEDED)
    await phase_shown(page, "part-000", "SUCCEEDED")
    last = f"row-{COUNT - 2:05}"
    await site.report(run.action_id(last), Phase.SUCCEEDED)
    # The last one is reached by one key, and found by its name.
    await page.value(f"{GRID}.focus()")
    await page.press("End")
    await page.until(f"{NAMES}.includes('{last}')")
    await phase_shown(page, last, "SUCCEEDED")
    assert await page.count(ROWS) < 60
    await page.press("/")
    await page.type("row-05001")
    await page.until(f"{NAMES}.includes('row-05001') && {NAMES}.length < 5")
    assert await page.value(f"{GRID}.ariaRowCount") == str(len(await page.value(NAMES)))
