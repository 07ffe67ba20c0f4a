"""The page for all people: keyboard, screen reader, contrast, dark colours, a phone."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Final

import pytest

from tests.browser.shown import NAMES, ROWS, SETTLED, minutes_ago
from tests.support.chromium import PHONE, Page, Screen
from tests.support.page_data import Run
from tests.support.page_runs import demonstration
from tests.support.page_site import PageSite

pytestmark = pytest.mark.slow

# The rows scroll by the keys of their grid, which has the focus.
AXE: Final = """(async () => {
    const rules = {'scrollable-region-focusable': {enabled: false}};
    const found = await axe.run(document, {resultTypes: ['violations'], rules});
    return found.violations.map(each => ({
        rule: each.id, help: each.help,
        where: each.nodes.map(node => `${node.target.join(' ')}: ${node.failureSummary}`),
    }));
})()"""

# All texts that are painted, with the ratio of their colour to what is behind them. Colours are
# read back from a canvas, which takes all that CSS has.
CONTRAST: Final = """(() => {
    const context = Object.assign(document.createElement('canvas'), {width: 1, height: 1})
        .getContext('2d', {willReadFrequently: true});
    const rgba = color => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = color;
        context.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, below) => {
        const mixed = [0, 1, 2].map(at => top[at] * top[3] + below[at] * (1 - top[3]));
        return [...mixed, 1];
    };
    const behind = element => {
        const layers = [];
        for (let at = element; at !== null; at = at.parentElement) {
            layers.push(rgba(getComputedStyle(at).backgroundColor));
            if (layers.at(-1)[3] === 1) break;
        }
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
    };
    const luminance = color => {
        const [r, g, b] = color.slice(0, 3).map(each => each / 255)
            .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const poor = [];
    let count = 0;
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node !== null; node = walker.nextNode()) {
        const element = node.parentElement;
        if (node.data.trim() === '' || !element.checkVisibility()) continue;
        const box = element.getBoundingClientRect();
        if (box.width < 2 || box.height < 2 || element.closest('[aria-hidden=true]')) continue;
        const style = getComputedStyle(element);
        const back = behind(element);
        const color = rgba(style.color);
        for (let at = element; at !== null; at = at.parentElement)
            color[3] *= Number(getComputedStyle(at).opacity);
        const [one, other] = [over(color, back), back].map(luminance);
        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        const isLarge = parseFloat(style.fontSize) >= 24
            || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
        count += 1;
        if (ratio < (isLarge ? 3 : 4.5)) poor.push(`${ratio.toFixed(2)}: ${node.data.trim()}`);
    }
    return {count, poor: [...new Set(poor)]};
})()"""

# What a finger has to hit, below 24 by 24 pixels, which WCAG 2.2 asks for; links in a text, and
# what is as large as its row, are no targets of their own.
_SMALL: Final = """[...document.querySelectorAll('button, a, input, select, summary')]
    .filter(each => each.checkVisibility())
    .map(each => [each, each.getBoundingClientRect()])
    .filter(([, box]) => box.width > 0 && box.right > 0 && box.bottom > 0)
    .filter(([each, box]) => box.height < 24 || box.width < 24)
    .filter(([each]) => each.closest('label') === null && each.closest('.row') === null)
    .map(([each, box]) =>
        `${each.outerHTML.slice(0, 90)}: ${Math.round(box.width)} x ${Math.round(box.height)}`)"""

Look = Callable[[Page, PageSite, Run], Awaitable[None]]


async def runs(page: Page, site: PageSite, run: Run) -> None:
    await page.go(site.url)
    await page.until_shown(run.name)


async def tree(page: Page, site: PageSite, run: Run) -> None:
    await page.go(f"{site.url_of(run)}?view=tree")
    await page.until(SETTLED)
    await page.until_shown("fetch_weather")


async def timeline(page: Page, site: PageSite, run: Run) -> None:
    await page.go(f"{site.url_of(run)}?view=timeline&critical=1")
    await page.until(SETTLED)
    await page.until_shown("fetch_weather")


async def error(page: Page, site: PageSite, run: Run) -> None:
    await page.go(f"{site.url_of(run)}?view=tree&action=evaluate")
    await page.until_shown("KeyError", "aside")


async def log(page: Page, site: PageSite, run: Run) -> None:
    (await site.log_of(run.action_id("train-anz"))).write_text("one line\n")
    await page.go(f"{site.url_of(run)}?view=tree&action=train-anz")
    await page.until(SETTLED)
    await page.click("aside [role=tab]", "Log")
    await page.until_shown("one line", "aside .log")


# A phone zooms out of a document that is wider than its screen, and calls that the width of it.
_WIDTH: Final = "document.documentElement.scrollWidth"

LOOKS: Final = [runs, tree, timeline, error, log]
SCREENS: Final = {
    "light": Screen(),
    "dark": Screen(is_dark=True),
    "phone": PHONE,
}


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("look", LOOKS)
async def test_a_view_is_accessible(page: Page, site: PageSite, look: Look, screen: str) -> None:
    """By axe's rules; by the contrast of all its texts; on a phone by the size of its targets."""
    found = list(demonstration(minutes_ago(0)))
    await site.put(*found)
    await page.show_on(SCREENS[screen])
    await look(page, site, found[0])
    await page.value(resources.files("axe_core_python").joinpath("axe.min.js").read_text())
    contrast = await page.value(CONTRAST)
    problems = {
        "by axe": await page.value(AXE),
        "poor contrast": contrast["poor"],
        "wider than the screen": await page.value(
            f"Math.max(innerWidth, {_WIDTH}) - {SCREENS[screen].width}"
        ),
        "too small for a finger": await page.value(_SMALL) if SCREENS[screen].is_phone else [],
    }
    assert not any(problems.values()), json.dumps(problems, indent=1)
    assert contrast["count"] > 20


async def test_dark_colours_follow_the_person_and_the_choice_is_kept(
    page: Page, site: PageSite
) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    await page.go(site.url)
    await page.until_shown("No runs yet")
    light = await page.value(background)
    await page.show_on(Screen(is_dark=True))
    dark = await page.value(background)
    assert dark != light
    assert await page.value("getComputedStyle(document.documentElement).colorScheme") == "dark"
    await page.click(".theme")
    await page.until(f"{background} === '{light}'")
    await page.go(site.url)
    await page.until(f"{background} === '{light}'")
    await page.show_on(Screen())
    await page.click(".theme")
    await page.until(f"{background} === '{dark}'")


async def test_a_run_is_found_and_read_with_the_keyboard_alone(page: Page, site: PageSite) -> None:
    found = list(demonstration(minutes_ago(0)))
    await site.put(*found)
    await page.go(site.url)
    await page.until_shown(found[0].name)
    # The rows have the focus: down to the run, and into it.
    names = [run.name for run in sorted(found, key=lambda run: run.started, reverse=True)]
    current = "document.querySelector('[role=row].current .run-link')?.textContent"
    while await page.value(current) != found[0].name:
        before = await page.value(current)
        await page.press("ArrowDown")
        await page.until(f"{current} !== {before!r}".replace("None", "undefined"))
        assert await page.value(current) in names
    await page.press("Enter")
    await page.until(f"location.pathname === '{found[0].path}'")
    await page.until(SETTLED)
    row = "document.querySelector('[role=treegrid] .row.current')?.dataset.key"
    await page.value("document.querySelector('[role=treegrid]').focus()")
    while await page.value(row) != "train":
        before = await page.value(row)
        await page.press("ArrowDown")
        await page.until(f"{row} !== {before!r}".replace("None", "undefined"))
    # Left closes a branch, right opens it, and goes into it.
    count = len(await page.value(NAMES))
    await page.press("ArrowLeft")
    await page.until(f"{NAMES}.length < {count}")
    await page.press("ArrowRight")
    await page.until(f"{NAMES}.length === {count}")
    await page.press("ArrowRight", "Enter")
    await page.until_shown("train-emea", "aside code")
    # The panel has the focus now; its tabs change with the arrows, and Escape leaves it.
    assert await page.value("document.activeElement.closest('aside') !== null")
    for _ in range(12):
        await page.press("Tab")
        if await page.value("document.activeElement.getAttribute('role') === 'tab'"):
            break
    await page.press("ArrowRight")
    await page.until("document.activeElement.textContent === 'Log'")
    await page.press("Escape")
    await page.until("document.querySelector('aside').hidden")
    assert await page.value("document.activeElement.getAttribute('role')") == "treegrid"
    # What has the focus is seen.
    for _ in range(6):
        await page.press("Shift+Tab")
        seen = """(() => {
            const style = getComputedStyle(document.activeElement);
            return style.outlineStyle !== 'none' || style.boxShadow !== 'none';
        })()"""
        assert await page.value(seen), await page.value("document.activeElement.outerHTML")


async def test_a_phone_reads_an_action_by_touch(page: Page, site: PageSite) -> None:
    found = list(demonstration(minutes_ago(0)))
    await site.put(*found)
    await page.show_on(PHONE)
    await page.go(site.url)
    await page.tap(".run-link", found[0].name)
    await page.until(SETTLED)
    await page.tap(f"{ROWS}[data-key=weather] .label-text")
    await page.until_shown("3 attempts", "aside")
    assert await page.value(f"Math.max(innerWidth, {_WIDTH})") == PHONE.width
    await page.tap("aside .close")
    await page.until("document.querySelector('aside').hidden")


async def test_a_screen_reader_hears_what_a_row_is(page: Page, site: PageSite) -> None:
    """The tree of accessibility, as a browser gives it to a screen reader."""
    found = list(demonstration(minutes_ago(0)))
    await site.put(*found)
    await tree(page, site, found[0])
    await page.call("Accessibility.enable")
    nodes = (await page.call("Accessibility.getFullAXTree"))["nodes"]
    heard = {
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    }
    roles = {role for role, _ in heard}
    assert {"banner", "main", "navigation", "treegrid", "row", "columnheader"} <= roles
    assert ("row", "fetch_weather, succeeded") in heard
    assert ("treegrid", f"Actions of {found[0].name}") in heard
    assert ("heading", found[0].name) in heard
