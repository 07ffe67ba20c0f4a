"""The pictures of the page: a service with a demonstration's data, and a browser that looks."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import structlog
import trio

from etcd_actions import Phase, open_etcd
from etcd_actions.testing import EtcdProcess
from tests.support.chromium import (
    PHONE,
    Browser,
    Page,
    Screen,
    find_chromium,
    open_browser,
    running_chromium,
)
from tests.support.devtools import DevtoolsPipe
from tests.support.page_runs import demonstration, forecast_log, small_run
from tests.support.page_site import PageSite, open_page_site, with_data

NOW: Final = datetime(2026, 11, 28, 9, 41, 30, tzinfo=UTC)
FOLDER: Final = Path(__file__).parents[1] / "docs" / "screens"

# The page's clock stands: durations of what runs are the same each time.
_STOP_THE_CLOCK: Final = f"""
(() => {{
    const at = {int(NOW.timestamp() * 1000)};
    const Real = Date;
    globalThis.Date = class extends Real {{
        constructor(...given) {{ given.length ? super(...given) : super(at); }}
        static now() {{ return at; }}
    }};
}})();
"""
_WIDE: Final = Screen(width=1280, height=760)
_RUNS: Final = "document.querySelectorAll('[role=grid] .row[data-key]')"
_COUNTED: Final = f"[...{_RUNS}].every((row) => row.querySelector('.count').textContent !== '')"
_LIVE: Final = "document.querySelector('.connection')?.dataset.state === 'live'"


async def _nothing(_: Page) -> None:
    await trio.lowlevel.checkpoint()


class Picture(NamedTuple):
    """One picture.

    Attributes:
        path: What comes after the URL of the service; ``RUN`` is the path of the run in progress.
        shows: An expression that is true once the page has all that the picture shows.
        screen: The screen.
        before: What is done before it is taken.
    """

    path: str
    shows: str
    screen: Screen = _WIDE
    before: Callable[[Page], Awaitable[None]] = _nothing


async def _open_log(page: Page) -> None:
    await page.click("aside [role=tab]", "Log")
    await page.until_shown("fold 3 of 5", "aside .log")


def _has(text: str, selector: str) -> str:
    return f"document.querySelector('{selector}')?.innerText.includes('{text}')"


PICTURES: Final = {
    "runs": Picture("/", f"{_RUNS}.length > 10 && {_COUNTED}"),
    "tree": Picture("RUN?view=tree", _has("publish", "[role=treegrid]")),
    "timeline": Picture("RUN?view=timeline&critical=1", _has("publish", "[role=treegrid]")),
    "failed": Picture("RUN?view=tree&action=evaluate", _has("KeyError", "aside")),
    "log": Picture(
        "RUN?view=tree&action=train-iberia", _has("running", "aside .panel-state"), before=_open_log
    ),
    "dark": Picture(
        "RUN?view=timeline",
        _has("publish", "[role=treegrid]"),
        Screen(width=1280, height=760, is_dark=True),
    ),
    "phone": Picture("RUN?view=tree", _has("train_region", "[role=treegrid]"), PHONE),
    "phone-runs": Picture("/", f"{_RUNS}.length > 5 && {_COUNTED}", PHONE),
    # The last one: it has runs of its own, so that there are rates to show.
    "cluster": Picture(
        "/?view=cluster", "document.querySelectorAll('.cards .spark polyline').length > 3"
    ),
}


async def _take_all(pipe: DevtoolsPipe, endpoint: str, names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with (
            open_etcd(endpoint) as etcd,
            open_page_site(etcd, b"/demo/", Path(folder), page_actions="true") as site,
            open_browser(pipe) as browser,
        ):
            running, *others = demonstration(NOW)
            inputs = {"horizon_days": 14, "regions": "all", "as_of": "2026-11-28"}
            running = with_data(running, Path(folder), inputs)
            await site.put(running, *others)
            log = await site.log_of(running.action_id("train-iberia"))
            log.write_text(forecast_log())
            for name in names:
                picture = PICTURES[name]
                path = picture.path.replace("RUN", running.path)
                async with trio.open_nursery() as nursery:
                    if name == "cluster":
                        picture = picture._replace(before=_some_samples)
                        nursery.start_soon(_work, site)
                    await _take(browser, site, picture, path, FOLDER / f"{name}.png")
                    nursery.cancel_scope.cancel("the picture is taken")


async def _work(site: PageSite) -> None:
    """Some changes a second, in waves."""
    for second in range(60):
        run = small_run(NOW, f"batch-{second}")
        await site.put(run)
        for name in ("fold-2", "train", "a0")[: second % 4]:
            await site.report(run.action_id(name), Phase.SUCCEEDED)
        await trio.sleep(1)


async def _some_samples(_: Page) -> None:
    await trio.sleep(30)


async def _take(browser: Browser, site: PageSite, picture: Picture, path: str, file: Path) -> None:
    async with browser.open_page(picture.screen) as page:
        await page.run_before(_STOP_THE_CLOCK)
        await page.go(f"{site.url}{path}")
        await page.until(_LIVE)
        await page.until(picture.shows)
        await picture.before(page)
        # All fonts and frames are there.
        await page.value("document.fonts.ready.then(() => new Promise(requestAnimationFrame))")
        picture_bytes = await page.screenshot()
        await trio.Path(file).write_bytes(picture_bytes)
        print(f"{file.name}: {len(picture_bytes) // 1024} KiB", *page.problems)


def main(names: list[str]) -> int:
    """Take the pictures of these names; of all without any."""
    program = find_chromium()
    if program is None:
        print("screenshots: no browser: apt-get install --no-install-recommends chromium")
        return 1
    if unknown := sorted(set(names) - set(PICTURES)):
        print(f"screenshots: no picture {unknown[0]!r}: there are {', '.join(PICTURES)}")
        return 2
    structlog.configure(processors=[_drop])
    FOLDER.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_chromium(program) as pipe,
        EtcdProcess(Path(folder)) as etcd,
    ):
        etcd.start()
        trio.run(_take_all, pipe, etcd.endpoint, names or list(PICTURES))
    return 0


def _drop(*_: object) -> structlog.typing.EventDict:
    raise structlog.DropEvent


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
