"""How long the page of a run takes to show its actions, and to show a change of one.

The times are the browser's own. A load lasts from the start of the navigation to the end of the
frame in which the first rows are, or all actions are known. A change lasts from the arrival of its
message to the end of the next frame; the wait for the screen's refresh is in it. Processor time of
the page's process is what the browser accounts to scripts, styles and layout.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, Final

import structlog
import trio

from etcd_actions import Phase, open_etcd
from etcd_actions.testing import EtcdProcess
from tests.support.chromium import Browser, Page, find_chromium, open_browser, running_chromium
from tests.support.devtools import DevtoolsPipe
from tests.support.page_data import Run
from tests.support.page_runs import large_run
from tests.support.page_site import PageSite, open_page_site

ROUNDS: Final = 5
CHANGES: Final = 40

# Runs before the page's scripts: when a part of a response arrives, and when the next frame ends.
_WATCH: Final = """
window.__times = {chunks: [], first: 0, all: 0};
const afterFrame = done => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = done;
    channel.port2.postMessage(0);
});
const read = ReadableStreamDefaultReader.prototype.read;
ReadableStreamDefaultReader.prototype.read = async function () {
    const result = await read.call(this);
    const arrived = performance.now();
    afterFrame(() => window.__times.chunks.push(performance.now() - arrived));
    return result;
};
const look = () => {
    const grid = document.querySelector('[role=treegrid]');
    const rows = Number(grid?.ariaRowCount || 0);
    const {first, all} = window.__times;
    if (!first && document.querySelector('[role=treegrid] .row[data-key]'))
        afterFrame(() => { window.__times.first ||= performance.now(); });
    if (!all && rows >= ACTIONS) afterFrame(() => { window.__times.all ||= performance.now(); });
    if (!first || !all) requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""


async def _measure(pipe: DevtoolsPipe, endpoint: str, sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with (
            open_etcd(endpoint) as etcd,
            open_page_site(etcd, b"/bench/", Path(folder)) as site,
            open_browser(pipe) as browser,
        ):
            print(
                "| actions | first rows | all actions | their CPU | a change | its CPU "
                "| rows in the document |"
            )
            print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
            for size in sizes:
                run = large_run(datetime.now(UTC) - timedelta(hours=1), size, f"large-{size}")
                await site.put(run)
                await _one_size(browser, site, run)


async def _one_size(browser: Browser, site: PageSite, run: Run) -> None:
    loads: list[dict[str, Any]] = []
    changes: list[float] = []
    spent: list[float] = []
    shown = 0
    running = [step.name for step in run.steps if step.phases[-1][0] is Phase.RUNNING]
    for number in range(ROUNDS):
        async with browser.open_page() as page:
            await page.run_before(_WATCH.replace("ACTIONS", str(len(run.steps))))
            await page.call("Performance.enable")
            await page.go(f"{site.url_of(run)}?view=timeline&critical=1")
            await page.until("window.__times.all && window.__times.first")
            loads.append(await page.value("window.__times"))
            loads[-1]["cpu"] = await _cpu(page)
            shown = max(shown, await page.count("[role=treegrid] .row"))
            # What the load still draws is not a change.
            await trio.sleep(1)
            for name in running[number * CHANGES : (number + 1) * CHANGES]:
                took, cpu = await _one_change(page, site, run, name)
                changes.append(took)
                spent.append(cpu)
    first, all_, cpu = (median(each[name] for each in loads) for name in ("first", "all", "cpu"))
    changes.sort()
    print(
        f"| {len(run.steps):,} | {first:.0f} ms | {all_:.0f} ms | {cpu:.0f} ms "
        f"| p50 {median(changes):.0f} ms, p95 {changes[len(changes) * 95 // 100]:.0f} ms "
        f"| {median(spent):.1f} ms | {shown} |"
    )


async def _one_change(page: Page, site: PageSite, run: Run, name: str) -> tuple[float, float]:
    """The milliseconds of a change, and the processor time of them."""
    before = await _cpu(page)
    await page.value("window.__times.chunks = []")
    await site.report(run.action_id(name), Phase.SUCCEEDED)
    took: float = await page.until("window.__times.chunks[0]")
    return took, await _cpu(page) - before


async def _cpu(page: Page) -> float:
    metrics = (await page.call("Performance.getMetrics"))["metrics"]
    named = {each["name"]: each["value"] for each in metrics}
    parts = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration")
    return sum(1000 * float(named[part]) for part in parts)


def main(sizes: list[int]) -> int:
    """Print a line for each number of actions."""
    program = find_chromium()
    if program is None:
        print("bench: no browser: apt-get install --no-install-recommends chromium")
        return 1
    structlog.configure(processors=[_drop])
    with (
        tempfile.TemporaryDirectory() as folder,
        running_chromium(program) as pipe,
        EtcdProcess(Path(folder)) as etcd,
    ):
        etcd.start()
        trio.run(_measure, pipe, etcd.endpoint, sizes)
    return 0


def _drop(*_: object) -> structlog.typing.EventDict:
    raise structlog.DropEvent


if __name__ == "__main__":
    sys.exit(main([int(each) for each in sys.argv[1:]] or [100, 10_000]))
