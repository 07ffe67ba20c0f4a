"""The page of a service that needs a token, and of one that restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from etcd_actions import Phase, open_actions_client
from etcd_actions.actions.status import ActionStatus
from etcd_actions.etcd.api import Etcd
from etcd_actions.testing import EtcdServer
from tests.browser.shown import SETTLED, minutes_ago, phase_shown
from tests.cli.command import running
from tests.support import flyte
from tests.support.chromium import Page
from tests.support.devtools import DevtoolsError
from tests.support.etcd_server import free_port
from tests.support.page_data import put_runs
from tests.support.page_runs import HOSTILE, small_run
from tests.support.page_site import open_page_site

pytestmark = pytest.mark.slow

LOGIN = "document.querySelector('dialog[open] input[type=password]') !== null"


async def give(page: Page, token: str) -> None:
    await page.until(LOGIN)
    await page.click("dialog input")
    await page.type(token)
    await page.press("Enter")


async def test_a_token_is_asked_for_kept_and_forgotten(
    page: Page, etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("of-all\nof-others projects=others\n")
    async with open_page_site(etcd, prefix, tmp_path, token_file=str(tokens)) as site:
        run = small_run(minutes_ago(1))
        await site.put(run)
        await page.go(site.url_of(run))
        # Neither the document nor its files have anything of a run.
        await page.until(LOGIN)
        assert "extract" not in await page.value("document.documentElement.outerHTML")
        await give(page, HOSTILE[1])
        await page.until_shown("Give another one", "dialog")
        await give(page, "wrong")
        await page.until_shown("Give another one", "dialog")
        await give(page, "of-all")
        await page.until(SETTLED)
        await page.until_shown("extract")
        assert await page.value("window.__ran === undefined")
        assert "of-all" not in await page.value("document.documentElement.outerHTML")
        assert "of-all" not in await page.value("document.cookie + location.href")
        # The tab keeps it over a reload.
        await page.go(site.url)
        await page.until_shown(run.name)
        await page.click("button", "Forget the token")
        await page.until(LOGIN)
        assert await page.value("JSON.stringify(sessionStorage)") == "{}"
        await give(page, "of-others")
        await page.until_shown("No runs yet")
        await page.go(site.url_of(run))
        await page.until_shown("this token may not use project")
        assert "extract" not in await page.value("document.body.innerText")
    page.problems.clear()


async def test_over_a_restart_of_the_service_nothing_is_missed(
    page: Page, etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    """The real process, killed, and another one on its port."""
    run, port = small_run(minutes_ago(1)), free_port()
    flags = (
        "run",
        *("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode()),
        *("--listen", f"127.0.0.1:{port}", "--blob-dir", str(tmp_path / "blobs")),
    )
    async with open_actions_client(etcd, prefix=prefix) as client:
        await put_runs(etcd, client.keys, [run])
        with running(tmp_path, *flags) as service:
            await service.logged("serving")
            await page.go(f"http://127.0.0.1:{port}{run.path}")
            await page.until(SETTLED)
            await phase_shown(page, "fold-2", "RUNNING")
            await page.value("window.__same = true")
        await page.until("document.querySelector('.connection').dataset.state === 'lost'")
        await page.until_shown("connection is lost", ".banner")
        # While no service runs one action ends, and one is new.
        await client.put_status(run.action_id("fold-2"), 1, ActionStatus(Phase.SUCCEEDED))
        await client.enqueue(flyte.task(run.action_id("fold-3"), "train"))
        with running(tmp_path, *flags) as service:
            await service.logged("serving")
            await phase_shown(page, "fold-2", "SUCCEEDED")
            await phase_shown(page, "fold-3", "QUEUED")
            await page.until("document.querySelector('.banner').hidden")
            await client.put_status(run.action_id("train"), 1, ActionStatus(Phase.FAILED))
            await phase_shown(page, "train", "FAILED")
            assert await page.value("window.__same") is True
    # The browser reports each request that found no service.
    assert not [each for each in page.problems if "ERR_" not in each]
    page.problems.clear()


async def test_a_service_without_a_page_serves_none(
    page: Page, etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    async with open_page_site(etcd, prefix, tmp_path, page="false") as site:
        with pytest.raises(DevtoolsError, match="ERR_HTTP_RESPONSE_CODE_FAILURE"):
            await page.go(site.url)
    page.problems.clear()
