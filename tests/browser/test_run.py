"""One run on the page: its tree, its timeline, and what changes while it is shown."""

from __future__ import annotations

import json

import pytest

from etcd_actions import Phase
from etcd_actions.model import ErrorState
from tests.browser.shown import NAMES, ROWS, minutes_ago, open_run, phase_shown
from tests.support import flyte
from tests.support.chromium import Page
from tests.support.names_in_order import IN_ORDER
from tests.support.page_data import Run, Step
from tests.support.page_runs import forecast, small_run, went
from tests.support.page_site import PageSite

pytestmark = pytest.mark.slow


async def test_the_actions_are_shown_each_below_its_parent(page: Page, site: PageSite) -> None:
    await open_run(page, site, small_run(minutes_ago(1)), "?view=tree")
    assert await page.value(NAMES) == ["a0", "extract", "check", "train", "fold-1", "fold-2"]
    levels = (
        f"[...document.querySelectorAll('{ROWS}')].map(each => [each.dataset.key, each.ariaLevel])"
    )
    found = dict(await page.value(levels))
    assert found == {
        "a0": "1",
        "extract": "2",
        "check": "2",
        "train": "2",
        "fold-1": "3",
        "fold-2": "3",
    }


async def test_siblings_are_in_the_order_of_the_numbers_in_their_names(
    page: Page, site: PageSite
) -> None:
    names = ["a1", "a2", "a10", "a20"]
    same = [Step(name=name, phases=went(1, 2, 3)) for name in ("a10", "a2", "a20", "a1")]
    steps = [Step(name="a0", parent="", phases=went(0, 1, 2)), *same]
    # What was created before comes first, whatever its name is.
    steps.append(Step(name="z", phases=went(0, 1, 2)))
    run = Run(name="numbered", started=minutes_ago(1), steps=steps)
    await open_run(page, site, run, "?view=tree")
    assert await page.value(NAMES) == ["a0", "z", *names]
    # It is the order of the command `tree`.
    sort = f"""import('/page/format.js').then(({{compareNames}}) =>
        {json.dumps(IN_ORDER[::-1])}.sort(compareNames))"""
    assert await page.value(sort) == list(IN_ORDER)


async def test_an_action_is_shown_once_its_parent_has_arrived(page: Page, site: PageSite) -> None:
    """Or once all actions have: then a parent that is missing does not exist."""
    await page.go(site.url)
    shown = await page.value(
        """import('/page/tree.js').then(({Tree}) => {
            const tree = new Tree();
            const found = [];
            for (const [name, parent] of [['c', 'b'], ['a0', ''], ['b', 'a0'], ['x', 'gone']]) {
                tree.put({name, parent, phase: 'QUEUED', start: 0, end: null});
                found.push(tree.rows(new Set(), null).map(row => row.name).join());
            }
            tree.complete();
            return [...found, tree.rows(new Set(), null).map(row => row.name).join()];
        })"""
    )
    assert shown == ["", "a0", "a0,b,c", "a0,b,c", "a0,b,c,x"]


async def test_a_change_is_shown_without_a_reload(page: Page, site: PageSite) -> None:
    run = small_run(minutes_ago(1))
    await open_run(page, site, run)
    await page.value("window.__same = true")
    await phase_shown(page, "fold-2", "RUNNING")
    await site.report(run.action_id("fold-2"), Phase.SUCCEEDED)
    await phase_shown(page, "fold-2", "SUCCEEDED")
    error = ErrorState(code="Boom", kind="USER", message="the last line says why")
    await site.report(run.action_id("train"), Phase.FAILED, error=error)
    await site.report(run.action_id(), Phase.FAILED, error=error)
    await phase_shown(page, "train", "FAILED")
    await page.until_shown("the last line says why")
    await page.until_shown("failed", ".bar .badge")
    # It is the same document all the time, and a screen reader hears of it.
    assert await page.value("window.__same") is True
    await page.until("document.getElementById('announcer').textContent.includes('failed')")


async def test_a_new_action_appears_below_its_parent(page: Page, site: PageSite) -> None:
    run = small_run(minutes_ago(1))
    await open_run(page, site, run)
    new = flyte.task(run.action_id("fold-3"), "train", name="models.fit")
    new.task.spec.short_name = "fit"
    await site.client.enqueue(new)
    await page.until(f"{NAMES}.at(-1) === 'fold-3'")
    await phase_shown(page, "fold-3", "QUEUED")


async def test_actions_are_filtered_by_phase_and_by_name(page: Page, site: PageSite) -> None:
    await open_run(page, site, small_run(minutes_ago(1)))
    await page.click(".chip[data-phase=FAILED]")
    # What is above a match stays, so that one sees where it is.
    await page.until(f"{NAMES}.join() === 'a0,check'")
    await page.click(".chip[data-phase=FAILED]")
    await page.until(f"{NAMES}.length === 6")
    await page.press("/")
    await page.type("FIT")
    await page.until(f"{NAMES}.join() === 'a0,train,fold-1,fold-2'")
    await page.type("no such")
    await page.until_shown("No action meets the filter")


async def test_a_branch_is_collapsed_and_opened(page: Page, site: PageSite) -> None:
    await open_run(page, site, small_run(minutes_ago(1)))
    await page.click(f"{ROWS}[data-key=train] .twist")
    await page.until(f"{NAMES}.join() === 'a0,extract,check,train'")
    expanded = f"document.querySelector('{ROWS}[data-key=train]').ariaExpanded"
    assert await page.value(expanded) == "false"
    await page.click(f"{ROWS}[data-key=train] .twist")
    await page.until(f"{NAMES}.length === 6")


async def test_the_bars_of_the_timeline_are_to_scale(page: Page, site: PageSite) -> None:
    """A run of 100 s, in which one action has the first quarter, and another one the last half."""
    run = Run(
        name="scaled",
        started=minutes_ago(5),
        steps=[
            Step(name="a0", parent="", task="main", phases=went(0, 0, 0, end=100)),
            Step(name="first", phases=went(0, 0, 0, end=25)),
            Step(name="last", phases=went(50, 50, 50, end=100)),
        ],
    )
    await open_run(page, site, run, "?view=timeline")
    boxes = await page.value(
        f"""Object.fromEntries([...document.querySelectorAll('{ROWS}')].map(each => {{
            const [bar, all] = [each.querySelector('.gantt'), each.querySelector('.when')]
                .map(part => part.getBoundingClientRect());
            const place = [bar.left - all.left, bar.width].map(part => part / all.width);
            return [each.dataset.key, place];
        }}))"""
    )
    start, width = boxes["a0"]
    for name, share, begins in (("first", 0.25, 0.0), ("last", 0.5, 0.5)):
        assert boxes[name][1] / width == pytest.approx(share, abs=0.02)
        assert (boxes[name][0] - start) / width == pytest.approx(begins, abs=0.02)


async def test_the_critical_path_has_what_delayed_the_run(page: Page, site: PageSite) -> None:
    run = Run(
        name="critical",
        started=minutes_ago(5),
        steps=[
            Step(name="a0", parent="", task="main", phases=went(0, 0, 0, end=100)),
            Step(name="early", phases=went(0, 0, 0, end=20)),
            Step(name="early-too", phases=went(0, 0, 0, end=10)),
            Step(name="late", phases=went(20, 20, 20, end=99)),
            Step(name="late-part", parent="late", phases=went(21, 21, 21, end=98)),
            Step(name="late-side", parent="late", phases=went(21, 21, 21, end=50)),
        ],
    )
    await open_run(page, site, run)
    await page.click("button", "Critical path")
    await page.until(f"document.querySelectorAll('{ROWS}.critical').length > 0")
    marked = await page.value(
        f"[...document.querySelectorAll('{ROWS}.critical')].map(each => each.dataset.key).sort()"
    )
    assert marked == ["a0", "early", "late", "late-part"]


async def test_the_address_of_the_view_shows_the_same_again(page: Page, site: PageSite) -> None:
    run = forecast(minutes_ago(8))
    await open_run(page, site, run)
    await page.click("button", "Tree")
    await page.click(f"{ROWS}[data-key=evaluate] .label-text")
    await page.until_shown("KeyError", "aside")
    address = await page.value("location.href")
    await page.go("about:blank")
    await page.go(address)
    await page.until_shown("KeyError", "aside")
    assert await page.value("document.querySelector('[data-mode=tree]').ariaPressed") == "true"


async def test_a_run_that_is_not_there_is_said_to_be_missing(page: Page, site: PageSite) -> None:
    await page.go(f"{site.url}/v2/domain/d/project/p/runs/none")
    await page.until_shown("no such run")
    assert "none" in await page.value("document.body.innerText")
    # The browser reports the refused request itself.
    page.problems.clear()
