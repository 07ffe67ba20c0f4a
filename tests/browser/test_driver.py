"""The driver of the browser: what it notices, and that it leaves nothing."""

from __future__ import annotations

import os

import psutil
import pytest

from tests.support import chromium
from tests.support.chromium import PHONE, Browser, Page, ScriptError, open_browser, running_chromium
from tests.support.devtools import DevtoolsError

pytestmark = pytest.mark.slow

DOCUMENT = """data:text/html;charset=utf-8,<!doctype html><title>before</title>
<meta http-equiv="content-security-policy" content="script-src 'unsafe-inline'; img-src 'none'">
<button onclick="document.title = 'pushed'">Push</button><input>
"""


async def test_a_person_clicks_types_and_presses_keys(page: Page) -> None:
    await page.go(DOCUMENT)
    await page.click("button", "Push")
    assert await page.value("document.title") == "pushed"
    await page.press("Tab")
    await page.type("hé")
    await page.press("a", "ArrowLeft", "b")
    assert await page.value("document.querySelector('input').value") == "héba"
    await page.press("Shift+Tab")
    assert await page.value("document.activeElement.innerText") == "Push"


async def test_defects_of_a_page_are_noticed(page: Page) -> None:
    await page.go(DOCUMENT)
    with pytest.raises(ScriptError, match="not here"):
        await page.value("(() => { throw Error('not here') })()")
    await page.value("console.error('said', 1); setTimeout(() => { throw Error('late') })")
    await page.value("document.body.append(Object.assign(new Image(), {src: 'data:image/png,x'}))")
    with pytest.raises(TimeoutError, match="no such"):
        await page.until("document.title === 'no such'", within=0.3)
    said, late, refused = page.problems
    assert said == "said 1"
    assert "late" in late
    assert "Content Security Policy" in refused
    page.problems.clear()


async def test_pages_have_screens_and_storage_of_their_own(browser: Browser) -> None:
    async with browser.open_page() as one, browser.open_page(PHONE) as other:
        for page in (one, other):
            await page.go("chrome://version")
        await one.value("localStorage.setItem('a', '1')")
        assert await other.value("localStorage.getItem('a')") is None
        assert await one.value("matchMedia('(pointer: coarse)').matches") is False
        assert await other.value("matchMedia('(pointer: coarse)').matches") is True


async def test_a_page_that_cannot_be_loaded_is_an_error(page: Page) -> None:
    with pytest.raises(DevtoolsError, match="net::ERR_"):
        await page.go("http://127.0.0.1:1/")


async def test_nothing_is_left_of_a_browser() -> None:
    program = chromium.find_chromium()
    if program is None:
        pytest.skip("no browser")
    before = set(psutil.Process().children(recursive=True))
    with running_chromium(program) as pipe:
        async with open_browser(pipe) as browser, browser.open_page() as page:
            home = await page.value("navigator.userAgent")
            assert "Chrome" in home
        children = set(psutil.Process().children(recursive=True)) - before
        assert len(children) > 1
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE], gone
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipe.reading)


def test_a_browser_that_is_named_and_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(chromium.VARIABLE, "/no/such/browser")
    with pytest.raises(FileNotFoundError, match="/no/such/browser"):
        chromium.find_chromium()
