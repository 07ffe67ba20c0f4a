"""`etcd-actions report`: its file in a browser, without a server."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest
import trio

from etcd_actions.cli.commands.report import read_snapshot
from etcd_actions.cli.etcd_names import EtcdNameLookup
from etcd_actions.cli.local_calls import open_local_calls
from etcd_actions.cli.names import Name
from etcd_actions.cli.reader import Reader
from etcd_actions.testing import EtcdServer
from tests.browser.shown import NAMES, ROWS, minutes_ago
from tests.browser.test_accessible import AXE, CONTRAST, SCREENS
from tests.browser.test_hostile import WITNESS, nothing_ran
from tests.cli.command import Finished, finish
from tests.support.chromium import Page
from tests.support.page_data import Run, Step
from tests.support.page_runs import HOSTILE, TRACEBACK, forecast, hostile_run, small_run, went
from tests.support.page_site import PageSite

pytestmark = pytest.mark.slow


async def report(run: Run, *arguments: str | Path) -> Finished:
    return await trio.to_thread.run_sync(lambda: finish("report", run.name, *arguments))


async def write(site: PageSite, run: Run, file: Path) -> str:
    """Put a run in, write its report by the service, and give the URL of the file."""
    await site.put(run)
    done = await report(run, "--service", str(site.server.address), "-o", file)
    assert (done.code, done.err) == (0, "")
    return file.as_uri()


async def test_a_report_shows_the_run_without_a_server(
    page: Page, site: PageSite, tmp_path: Path
) -> None:
    run = forecast(minutes_ago(8))
    url = await write(site, run, tmp_path / "report.html")
    await page.go(f"{url}?view=timeline&critical=1")
    await page.until(f"{NAMES}.length > 10")
    await page.until_shown("report of", ".connection")
    assert run.name in await page.value("document.title")
    critical = f"[...document.querySelectorAll('{ROWS}.critical')].map(each => each.dataset.key)"
    assert "train" in await page.value(critical)
    await page.click("button", "Tree")
    await page.click(f"{ROWS}[data-key=evaluate] .label-text")
    await page.until_shown("KeyError", "aside")
    shown = await page.value("document.querySelector('aside .error-block pre').textContent")
    assert shown == TRACEBACK
    # What a file cannot have is not offered.
    assert await page.texts("aside [role=tab]") == ["Overview", "Raw"]
    assert await page.count("a[href^='/'], a[data-go]") == 0
    assert {each for each in page.requests if not each.startswith("data:")} == {
        f"{url}?view=timeline&critical=1"
    }


async def test_a_report_has_the_order_of_the_command_tree(
    page: Page, site: PageSite, tmp_path: Path
) -> None:
    names = ["a10", "a2", "b", "a1"]
    steps = [Step(name="a0", parent="", phases=went(0, 1, 2))]
    steps += [Step(name=name, phases=went(1, 2, 3)) for name in names]
    run = Run(name="numbered", started=minutes_ago(1), steps=steps)
    url = await write(site, run, tmp_path / "report.html")
    await page.go(f"{url}?view=tree")
    await page.until(f"{NAMES}.length === {len(steps)}")
    arguments = (run.name, "-o", "name", "--service", str(site.server.address))
    tree = await trio.to_thread.run_sync(lambda: finish("tree", *arguments))
    in_tree = [line.rpartition("/")[2] for line in tree.out.splitlines()]
    assert await page.value(NAMES) == in_tree == ["a0", "a1", "a2", "a10", "b"]


async def test_the_times_of_a_report_stand_still(
    page: Page, site: PageSite, tmp_path: Path
) -> None:
    """An action that ran when the report was made has not run for longer later."""
    url = await write(site, small_run(minutes_ago(1)), tmp_path / "report.html")
    await page.run_before("const real = Date.now; Date.now = () => real() + 3_600_000;")
    await page.go(f"{url}?view=tree")
    await page.until(f"{NAMES}.length === 6")
    took = await page.value(f"document.querySelector('{ROWS}[data-key=a0] .took').textContent")
    assert re.fullmatch(r"1 m \d\d s", took)


async def test_etcd_and_the_service_give_the_same_report(
    site: PageSite, shared_etcd: EtcdServer, tmp_path: Path
) -> None:
    run = small_run(minutes_ago(1))
    await site.put(run)
    etcd = ("--endpoints", shared_etcd.endpoint, "--prefix", site.keys.prefix.decode())
    texts = []
    for where in (etcd, ("--service", str(site.server.address))):
        done = await report(run, *where)
        assert (done.code, done.err) == (0, "")
        texts.append(re.sub(r'"at":\d+', "", done.out))
    assert texts[0] == texts[1]
    missing = await report(small_run(minutes_ago(1), "r2"), *etcd)
    assert missing.code == 7
    assert "r2: there is no such run" in missing.complaint
    unwritable = await report(run, *etcd, "-o", tmp_path / "no" / "report.html")
    assert unwritable.code == 6
    assert "cannot be written" in unwritable.complaint


async def test_hostile_texts_stay_texts_in_a_report(
    page: Page, site: PageSite, tmp_path: Path
) -> None:
    url = await write(site, hostile_run(minutes_ago(1)), tmp_path / "report.html")
    await page.run_before(WITNESS)
    await page.go(f"{url}?view=tree")
    await page.until(f"{NAMES}.length === {len(HOSTILE) + 1}")
    for number, text in enumerate(HOSTILE):
        await page.value(
            f"document.querySelector('{ROWS}[data-key=h{number}] .label-text').click()"
        )
        await page.until(f"document.querySelector('aside code').textContent === 'h{number}'")
        await page.until("document.querySelector('aside .error-block pre') !== null")
        error = await page.value("document.querySelector('aside .error-block pre').textContent")
        assert error == f"{text}\n{text}"
    await nothing_ran(page)
    await page.value(
        """document.querySelector('main').append(Object.assign(document.createElement('script'),
            {textContent: "window.__ran = 'inline'"}))"""
    )
    await page.until("window.__refused.includes('script-src-elem')")
    assert await page.value("window.__ran === undefined")
    page.problems.clear()


@pytest.mark.parametrize("screen", SCREENS)
async def test_a_report_is_accessible(
    page: Page, site: PageSite, tmp_path: Path, screen: str
) -> None:
    url = await write(site, forecast(minutes_ago(8)), tmp_path / "report.html")
    await page.show_on(SCREENS[screen])
    await page.go(f"{url}?view=tree&action=evaluate")
    await page.until_shown("KeyError", "aside")
    await page.value(resources.files("axe_core_python").joinpath("axe.min.js").read_text())
    assert await page.value(AXE) == []
    assert (await page.value(CONTRAST))["poor"] == []
    width = await page.value("Math.max(document.documentElement.scrollWidth, innerWidth)")
    assert width == SCREENS[screen].width


async def test_of_many_actions_those_that_failed_have_their_details(site: PageSite) -> None:
    run = small_run(minutes_ago(1))
    await site.put(run)
    async with open_local_calls(site.etcd, site.client) as calls:
        reader = Reader(calls, EtcdNameLookup(site.etcd, site.keys.prefix, site.keys.namespace))
        name = Name(run.project, run.domain, run.name)
        snapshot, count = await read_snapshot(reader, name, most=2)
    assert count == 6
    detailed = {each for each in snapshot.responses if each.startswith("WatchActionDetails:")}
    assert detailed == {"WatchActionDetails:a0", "WatchActionDetails:check"}
    assert snapshot.detailed == 2
