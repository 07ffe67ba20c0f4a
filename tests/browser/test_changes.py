"""What the page changes, where the service says that it may: aborts and signals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from etcd_actions import Phase
from etcd_actions.etcd.api import Etcd
from tests.browser.shown import minutes_ago, open_action, open_run, phase_shown
from tests.support.chromium import Page
from tests.support.page_runs import HOSTILE, forecast, small_run
from tests.support.page_site import PageSite, open_page_site
from tests.support.waiting import eventually_holds

pytestmark = pytest.mark.slow


@pytest.fixture
async def changeable(etcd: Etcd, prefix: bytes, tmp_path: Path) -> AsyncIterator[PageSite]:
    async with open_page_site(etcd, prefix, tmp_path, page_actions="true") as site:
        yield site


async def test_a_run_is_aborted_with_a_reason(page: Page, changeable: PageSite) -> None:
    run = small_run(minutes_ago(1))
    await open_run(page, changeable, run)
    await page.click("button", "Abort run")
    await page.until("document.querySelector('dialog[open]') !== null")
    await page.type(HOSTILE[0])
    await page.click("dialog button", "Abort run")
    await page.until_shown("aborted", ".bar .badge")
    for name in ("a0", "train", "fold-2"):
        await phase_shown(page, name, "ABORTED")
    await phase_shown(page, "extract", "SUCCEEDED")
    await page.until_shown(HOSTILE[0], ".problem")
    assert await page.value("window.__ran === undefined")
    stored = await changeable.client.get_task_action(run.action_id("fold-2"))
    assert stored.phase is Phase.ABORTED
    await page.until("document.querySelector('.bar .danger').hidden")


async def test_an_abort_that_is_cancelled_changes_nothing(page: Page, changeable: PageSite) -> None:
    run = small_run(minutes_ago(1))
    await open_run(page, changeable, run)
    await page.click("button", "Abort run")
    await page.until("document.querySelector('dialog[open]') !== null")
    await page.press("Escape")
    await page.until("document.querySelector('dialog') === null")
    assert (await changeable.client.get_task_action(run.action_id())).phase is Phase.RUNNING


async def test_one_action_is_aborted(page: Page, changeable: PageSite) -> None:
    run = small_run(minutes_ago(1))
    await open_action(page, changeable, run, "train")
    await page.click("aside button", "Abort")
    await page.until("document.querySelector('dialog[open]') !== null")
    await page.press("Enter")
    await page.until_shown("aborted", "aside .panel-state")
    await phase_shown(page, "fold-2", "ABORTED")
    await phase_shown(page, "a0", "RUNNING")


async def test_a_condition_is_signalled(page: Page, changeable: PageSite) -> None:
    run = forecast(minutes_ago(8))
    await open_action(page, changeable, run, "approve")
    await page.click("aside button", "Signal")
    await page.until("document.querySelector('dialog[open] select') !== null")
    await page.press("ArrowDown")
    await page.click("dialog button", "Signal")
    await page.until_shown("succeeded", "aside .panel-state")

    async def is_signalled() -> bool:
        stored = await changeable.client.get_task_action(run.action_id("approve"))
        value = stored.status.signal_value_bytes
        # The second choice is false.
        return stored.phase is Phase.SUCCEEDED and value is not None and b"\x01" not in value

    await eventually_holds(is_signalled)


async def test_without_the_setting_the_page_offers_no_changes(page: Page, site: PageSite) -> None:
    run = forecast(minutes_ago(8))
    await open_action(page, site, run, "approve")
    await page.until_shown("publish to the planning board?", "aside")
    # What is shown at the last is shown: there are still no buttons.
    await page.click("aside [role=tab]", "Raw")
    await page.until_shown("ACTION_PHASE_PAUSED", "aside pre.raw")
    assert not [text for text in await page.texts("button:not([hidden])") if "Abort" in text]
    assert not [text for text in await page.texts("button") if "Signal" in text]
    assert await page.value("document.querySelector('.bar .danger').hidden") is True
