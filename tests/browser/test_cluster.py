"""The cluster on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from etcd_actions.etcd.api import Etcd
from tests.support.chromium import Page
from tests.support.page_site import PageSite, open_page_site

pytestmark = pytest.mark.slow

SHARDS = "[aria-label=Shards]"


async def test_without_shards_there_is_no_card_of_shards(page: Page, site: PageSite) -> None:
    await page.go(f"{site.url}/?view=cluster")
    await page.until("document.querySelector('[aria-label=\"This process\"]') !== null")
    assert await page.value(f"document.querySelector('{SHARDS}') === null")
    assert "it reports and marks" in await page.value("document.body.innerText")


async def test_shards_and_their_owners_are_shown(
    page: Page, etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    async with open_page_site(etcd, prefix, tmp_path, shards="3") as site:
        await page.go(f"{site.url}/?view=cluster")
        owned = (
            f"[...document.querySelectorAll('{SHARDS} tbody tr')].map(r => r.cells[3].innerText)"
        )
        await page.until(f"{owned}.join() === 'owner,owner,owner'")
        text = await page.value(f"document.querySelector('{SHARDS}').innerText")
        member = site.client.statistics().member
        assert "Shards: 3" in text
        assert f"Members: 1. This process is {member}, and owns 3." in text
        assert (
            await page.value(f"document.querySelectorAll('{SHARDS} td.bad:not(:empty)').length")
            == 0
        )
        # The service ends before the page.
        await page.go("about:blank")
