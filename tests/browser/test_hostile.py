"""Names and texts of others are shown as they are, and are nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.browser.shown import ROWS, minutes_ago, open_action, open_run
from tests.support.chromium import PHONE, Page, Screen
from tests.support.page_runs import HOSTILE, hostile_run, small_run
from tests.support.page_site import PageSite, with_data

pytestmark = pytest.mark.slow

# Before any script of a document: what is refused is noted.
WITNESS = """
window.__refused = [];
document.addEventListener('securitypolicyviolation', event => {
    window.__refused.push(event.effectiveDirective);
});
"""
# What texts could have become; the page draws icons of its own.
ADDED = """
document.querySelectorAll(
    ['main', 'aside'].flatMap(place => ['script', 'img', 'svg:not(.icon)', 'iframe', 'b']
        .map(tag => `${place} ${tag}`)).join()
    + ', [onerror], [onload], [onclick], a[href^="javascript" i]'
).length
"""


async def nothing_ran(page: Page) -> None:
    """No text of others became a script, an element, or a request."""
    assert await page.value("window.__ran === undefined")
    assert await page.value("window.__refused") == []
    assert await page.value(ADDED) == 0


@pytest.mark.parametrize("view", ["tree", "timeline"])
async def test_hostile_texts_of_actions(page: Page, site: PageSite, view: str) -> None:
    await page.run_before(WITNESS)
    await open_run(page, site, hostile_run(minutes_ago(1)), f"?view={view}")
    titles = f"[...document.querySelectorAll('{ROWS} .label-text')].map(each => each.textContent)"
    shown = await page.value(titles)
    for text in HOSTILE:
        assert text in shown
    await nothing_ran(page)
    for number, text in enumerate(HOSTILE):
        await page.value(
            f"document.querySelector('{ROWS}[data-key=h{number}] .label-text').click()"
        )
        error = "document.querySelector('aside .error-block pre').textContent"
        await page.until(f"{error} === {json.dumps(f'{text}{chr(10)}{text}')}")
        await page.until(f"document.querySelector('aside h2').textContent === {json.dumps(text)}")
    await nothing_ran(page)


async def test_hostile_texts_of_runs(page: Page, site: PageSite) -> None:
    await page.run_before(WITNESS)
    await site.put(hostile_run(minutes_ago(1)))
    await page.go(site.url)
    await page.until_shown(HOSTILE[0], "[role=grid]")
    await page.until_shown(f"{HOSTILE[1]}.main", "[role=grid]")
    await nothing_ran(page)


async def test_hostile_inputs_and_logs(page: Page, site: PageSite, tmp_path: Path) -> None:
    await page.run_before(WITNESS)
    inputs = {text: text for text in HOSTILE}
    run = with_data(small_run(minutes_ago(1)), tmp_path, inputs)
    await site.put(run)
    log = await site.log_of(run.action_id("extract"))
    log.write_text("\n".join(HOSTILE))
    await open_action(page, site, run, "extract", "Data")
    await page.until("document.querySelector('aside .values') !== null")
    values = "[...document.querySelectorAll('aside .values dd pre')].map(each => each.textContent)"
    shown = await page.value(values)
    for text in HOSTILE:
        assert text in shown
    await page.click("aside [role=tab]", "Log")
    await page.until_shown(HOSTILE[-1], "aside .log")
    await nothing_ran(page)


@pytest.mark.parametrize("text", HOSTILE[:6])
async def test_hostile_addresses(page: Page, site: PageSite, text: str) -> None:
    await page.run_before(WITNESS)
    part = quote(text, safe="")
    # A slash in a name is another path, which the service does not have.
    name = quote(text.replace("/", ""), safe="")
    run = f"/v2/domain/{name}/project/{name}/runs/{name}?action={part}&view={part}#{part}"
    for address in (run, f"/?q={part}&label={part}&phase={part}&view={part}#{part}"):
        await page.go(f"{site.url}{address}")
        await page.until("document.querySelector('main h1') !== null")
        await page.until("!document.body.innerText.includes('Loading')")
        await nothing_ran(page)
    # The browser reports requests that the service refuses.
    page.problems.clear()


async def test_the_policy_stops_what_would_get_in(page: Page, site: PageSite) -> None:
    """That nothing runs is not only escaping: an injected element would do nothing either."""
    await page.run_before(WITNESS)
    await open_run(page, site, small_run(minutes_ago(1)))
    inject = """(() => {
        const at = document.querySelector('main');
        const script = document.createElement('script');
        script.textContent = "window.__ran = 'inline'";
        at.append(script);
        const outside = document.createElement('script');
        outside.src = 'data:text/javascript,window.__ran = "data"';
        at.append(outside);
        at.insertAdjacentHTML('beforeend', `<img src=x onerror="window.__ran = 'handler'">`);
        at.insertAdjacentHTML('beforeend', `<p style="color: red">x</p><style>p {}</style>`);
        at.insertAdjacentHTML('beforeend', `<iframe src="https://example.com"></iframe>`);
        at.insertAdjacentHTML('beforeend', `<form action="https://example.com"><button></form>`);
        at.querySelector('form button').click();
        const base = document.createElement('base');
        base.href = 'https://example.com';
        document.head.append(base);
        fetch('https://example.com').catch(() => {});
        setTimeout(() => { try { eval("window.__ran = 'eval'") } catch {} });
    })()"""
    await page.value(inject)
    stopped = {
        "script-src-elem",
        "script-src-attr",
        "style-src-attr",
        "style-src-elem",
        "frame-src",
        "form-action",
        "base-uri",
        "connect-src",
        "script-src",
    }
    for directive in stopped:
        await page.until(f"window.__refused.includes('{directive}')")
    assert await page.value("window.__ran === undefined")
    page.problems.clear()


async def test_long_and_turned_names_stay_in_their_place(page: Page, site: PageSite) -> None:
    run = hostile_run(minutes_ago(1))
    await open_run(page, site, run, "?view=tree")
    for screen in (Screen(), PHONE):
        await page.show_on(screen)
        await page.go(f"{site.url_of(run)}?view=tree")
        await page.until(f"document.querySelectorAll('{ROWS}').length > 8")
        width = await page.value("Math.max(document.documentElement.scrollWidth, innerWidth)")
        assert width == screen.width
        outside = f"""[...document.querySelectorAll('{ROWS}')].filter(row => {{
            const [name, ...others] = [...row.children].filter(each => each.offsetWidth > 0);
            const end = name.getBoundingClientRect().right;
            return others.some(each => each.getBoundingClientRect().left < end - 1);
        }}).map(row => row.dataset.key)"""
        assert await page.value(outside) == []
    # An override of the direction ends with its own element.
    isolated = f"""[...document.querySelectorAll('{ROWS} .label-text')].every(each =>
        ['isolate', 'plaintext', 'isolate-override'].includes(getComputedStyle(each).unicodeBidi)
        || getComputedStyle(each).display !== 'inline')"""
    assert await page.value(isolated)
