"""What the page of a run shows, for all its tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.support.chromium import Page
from tests.support.page_data import Run
from tests.support.page_site import PageSite

ROWS = "[role=treegrid] .row[data-key]"
NAMES = (
    f"[...document.querySelectorAll('{ROWS}')]"
    ".sort((a, b) => a.ariaRowIndex - b.ariaRowIndex).map(each => each.dataset.key)"
)


def minutes_ago(minutes: float) -> datetime:
    return datetime.now(UTC) - timedelta(minutes=minutes)


SETTLED = (
    "document.querySelector('.connection').dataset.state === 'live'"
    " && document.querySelector('[data-fact=By] .value').textContent !== ''"
)
"""All parts of the header are there, which move the others when they come."""


async def open_run(page: Page, site: PageSite, run: Run, query: str = "") -> None:
    """Put a run in and open its page; returns once all its actions are shown."""
    await site.put(run)
    await page.go(f"{site.url_of(run)}{query}")
    await page.until(SETTLED)
    await page.until(f"{NAMES}.length === {len(run.steps)}")


async def phase_shown(page: Page, action: str, phase: str) -> None:
    """Return once the row of an action shows a phase."""
    row = f"document.querySelector('{ROWS}[data-key=\"{action}\"]')"
    await page.until(f"{row}.dataset.phase === '{phase}'")


async def open_action(page: Page, site: PageSite, run: Run, action: str, tab: str = "") -> None:
    """Put a run in, open its page with an action of it, and one of the action's tabs."""
    await site.put(run)
    await page.go(f"{site.url_of(run)}?action={action}")
    await page.until("document.querySelector('aside .panel-state .badge') !== null")
    await page.until(SETTLED)
    if tab:
        await page.click("aside [role=tab]", tab)
