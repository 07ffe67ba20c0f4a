"""A browser for the session, and pages of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from etcd_actions.etcd.api import Etcd
from tests.support.chromium import (
    VARIABLE,
    Browser,
    Page,
    find_chromium,
    open_browser,
    running_chromium,
)
from tests.support.devtools import DevtoolsPipe
from tests.support.network_lock import network_lock
from tests.support.page_site import PageSite, open_page_site


@pytest.fixture(scope="session")
def chromium() -> Iterator[DevtoolsPipe]:
    """A browser for all tests. Where there is none, they are skipped."""
    program = find_chromium()
    if program is None:
        pytest.skip(f"no browser: install Debian's chromium, or name one with {VARIABLE}")
    with running_chromium(program) as pipe:
        yield pipe


@pytest.fixture
async def browser(chromium: DevtoolsPipe) -> AsyncIterator[Browser]:
    """The browser, for one test; meanwhile no other test changes the machine's network."""
    async with AsyncExitStack() as stack:
        await trio.to_thread.run_sync(stack.enter_context, network_lock(exclusive=False))
        yield await stack.enter_async_context(open_browser(chromium))


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page with nothing in its storage; at the end it has no problems that were not taken out."""
    async with browser.open_page() as page:
        yield page
        assert page.problems == []


@pytest.fixture
async def site(etcd: Etcd, prefix: bytes, tmp_path: Path) -> AsyncIterator[PageSite]:
    """A service on a real etcd, without tokens, whose page offers no changes."""
    async with open_page_site(etcd, prefix, tmp_path) as site:
        yield site
